"""Apply the epochs of the mesh's secrets: write changes, and send connected agents the secrets that they should hold.

>>> keeper = SecretsKeeper(ledger, publisher, clock)
>>> await keeper.rotate()
Rotation(epoch=2, started=True, away=('gpu-1',), static=(), too_old=())
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from meshray.coordinator.publisher import Publisher
from meshray.coordinator.records import Member, SecretEpoch
from meshray.coordinator.registry_writer import Ledger
from meshray.coordinator.secret_epochs import Removal, newest, ray_token, reduced, rotated, rotated_without, shared_with
from meshray.model.node import STATIC
from meshray.protocol.api import Rotation
from meshray.protocol.fields import FIRST_EPOCH

_log = logging.getLogger(__name__)


class SecretsKeeper:
    """The secrets that each agent received last.

    Args:
        clock: unix seconds.
    """

    def __init__(self, ledger: Ledger, publisher: Publisher, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._publisher = publisher
        self._clock = clock
        self._sent = self._state()

    async def rotate(self) -> Rotation:
        """Start a new epoch of the mesh secret and of Ray's token. Raises as `rotated` does."""
        fresh = self.fresh()
        rotation = await self._ledger.change(lambda registry: rotated(registry, fresh))
        self.announce(rotation)
        return rotation

    async def remove(self, node_id: str, remove: Removal | None = None) -> tuple[Member, Rotation]:
        """Remove a node; the others get secrets that it does not know. Arguments as of `rotated_without`."""
        fresh = self.fresh()
        member, rotation = await self._ledger.change(
            lambda registry: rotated_without(registry, node_id, self._clock(), fresh, remove)
        )
        if rotation.started:
            self.announce(rotation)
        return member, rotation

    async def settle(self) -> None:
        """Drop or retire epochs that are no longer needed; to be called every few seconds."""
        if reduced(self._ledger.registry, self._clock())[2]:
            await self._ledger.change(lambda registry: reduced(registry, self._clock()), durable=False)
        if self._state() != self._sent:
            self._send_all()

    def send_first(self, node_id: str) -> None:
        """Send an agent that has just connected its secrets, if there was ever more than one epoch."""
        if newest(self._ledger.registry).number > FIRST_EPOCH:
            self.send(node_id)

    def send(self, node_id: str) -> None:
        """Send a connected agent the secrets that it should hold."""
        registry = self._ledger.registry
        member = registry.members.get(node_id)
        if member is not None:
            shared = shared_with(registry, member, self._clock())
            self._publisher.notify(node_id, shared.message())

    def announce(self, rotation: Rotation) -> None:
        """Send every connected agent its secrets after this rotation, which is written."""
        _log.info("epoch %d of the mesh's secrets began", rotation.epoch)
        self._send_all()

    def ray_token(self) -> str:
        """Return the token of the head's running Ray; while that is down, the token of its next start."""
        return ray_token(self._ledger.registry)

    def _send_all(self) -> None:
        self._sent = self._state()
        for node_id, member in self._ledger.registry.members.items():
            if STATIC not in member.node.roles:
                self.send(node_id)

    def _state(self) -> tuple[tuple[int, bool], ...]:
        return tuple((epoch.number, epoch.retired) for epoch in self._ledger.registry.epochs)

    def fresh(self) -> SecretEpoch:
        """Return secrets for the next epoch; its number is decided when it starts."""
        return SecretEpoch.make(FIRST_EPOCH, self._clock())
