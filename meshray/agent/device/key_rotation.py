"""This node's WireGuard key, and its rotation without losing a connection.

    generate ──► private.key.next ──► POST /v1/rotate ──► the map shows it ──► private.key
                 (pending, 0600)      (credential, proof)  or the answer does   (renamed)

A crash at any point leaves a working node: both keys are kept until the coordinator's answer decides, which is
requested again after a start. The key changes after about 30 days, on request, and at once when the wall clock was set
back: until the clock has caught up, peers reject the key's handshakes, because they are older than its last one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Mapping
from enum import Enum

from meshray.agent.device.desired_device import PairKeys
from meshray.agent.device.rekeying import Rekeying
from meshray.agent.paths.paths import Paths
from meshray.agent.state import NodeState
from meshray.errors import MeshrayError, UnreachableError
from meshray.home import Home
from meshray.linux.clock import ClockWatch, boot_s
from meshray.model.keys import MeshSecret, PrivateKey, PublicKey
from meshray.model.meshmap import MeshMap
from meshray.model.node import HUB, STATIC, Node
from meshray.node.enrolment import read_private_key, save_private_key

log = logging.getLogger(__name__)

#: The maximum age of a key, seconds. Up to a tenth is subtracted, so that not all nodes change theirs at once.
MAX_AGE_S = 30 * 86400.0
_JITTER = 0.1
#: The interval at which the clocks and the map are checked, seconds.
CHECK_S = 2.0
#: The request to the coordinator is repeated after this; a refusal (a hub with static peers) is valid for an hour.
RESEND_S = 10.0
REFUSED_S = 3600.0


class Step(Enum):
    """The next action on the key."""

    WAIT = "wait"
    GENERATE = "generate a new one"
    SEND_PENDING = "send the coordinator the pending one"
    SEND_OWN = "send the coordinator the one in use"
    SWITCH = "use the pending one"


def next_step(
    own: PublicKey, pending: PublicKey | None, published: PublicKey | None, *, due: bool, may_send: bool
) -> Step:
    """Return the next step of a rotation.

    Args:
        own: the key in use.
        published: the key in the map; None if this node is not in the map.
        due: a rotation is due.
        may_send: the last request to the coordinator is long enough ago.
    """
    if pending is not None and published == pending:
        return Step.SWITCH
    if not may_send or published is None:
        return Step.WAIT
    if pending is not None:
        return Step.SEND_PENDING
    if published != own:  # The coordinator was restored to an older state.
        return Step.SEND_OWN
    return Step.GENERATE if due else Step.WAIT


def is_old(own: PublicKey, age_s: float) -> bool:
    """Return whether a key of this age must be changed; the exact time is derived from the key itself."""
    share = hashlib.sha256(own.raw).digest()[0] / 256
    return age_s >= MAX_AGE_S * (1 - _JITTER * share)


def may_rotate_automatically(me: Node, mesh_map: MeshMap) -> bool:
    """Return False for a hub that devices with wg-quick use: their files contain its key."""
    return HUB not in me.roles or not any(STATIC in node.roles for node in mesh_map.nodes.values())


class KeyRotation:
    """The rotation of one node's key.

    Args:
        own: the key from private.key; a pending key is read here, and used if the cached map shows it.

    Attributes:
        tried: see `meshray.agent.device.epoch_trials`.
    """

    def __init__(self, state: NodeState, own: PrivateKey, paths: Paths, rekeying: Rekeying) -> None:
        home = state.home
        self._state = state
        self._paths = paths
        self._rekeying = rekeying
        self._home = home
        self._node_id = state.enrolment.node_id
        self._secrets = state.enrolment.mesh_secrets
        self._own = own
        self._pending = read_private_key(home.pending_key) if home.pending_key.exists() else None
        self._trial = False
        self._is_requested = _was_clock_set_back(home)
        self._not_before = 0.0
        self._changing = asyncio.Lock()
        self._wake = asyncio.Event()
        self.tried: dict[str, int] = {}
        self.pair_keys = PairKeys(self._secrets, own.public(), self.tried)

    @property
    def private(self) -> PrivateKey:
        """The private key that the device should have now."""
        return self._pending if self._trial and self._pending is not None else self._own

    @property
    def since(self) -> float | None:
        """When the key in use was created, unix seconds; None: not known."""
        try:
            return self._home.private_key.stat().st_mtime
        except OSError:
            return None

    def hold_secrets(self, mesh_secrets: Mapping[int, MeshSecret]) -> None:
        """Hold these mesh secrets, by epoch."""
        self._secrets = mesh_secrets
        self.pair_keys = PairKeys(mesh_secrets, self.private.public(), self.tried)

    def check_map(self) -> None:
        """Compare with the map, which may show another key of this node."""
        self._wake.set()

    async def run(self) -> None:
        """Rotate the key when it is due, until cancelled."""
        watch = ClockWatch(time.time(), boot_s())
        while True:
            jumped_s = watch.jumped_s(time.time(), boot_s())
            if jumped_s < 0:
                log.warning("the clock was set back by %.0f s: peers would refuse handshakes of this key", -jumped_s)
                self._is_requested, self._not_before = True, 0.0
            await self._step()
            self._wake.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), CHECK_S)

    async def rotate(self) -> Mapping[str, object]:
        """Rotate the key now. Raises the coordinator's error, and UnreachableError if it does not answer."""
        async with self._changing:
            if self._pending is None:
                self._generate()
            await self._send(pending=True)
        return {"public_key": str(self._own.public())}

    async def _step(self) -> None:
        async with self._changing:
            me = self._state.map.nodes.get(self._node_id)
            step = next_step(
                self._own.public(),
                self._pending.public() if self._pending is not None else None,
                me.public_key if me is not None else None,
                due=me is not None and may_rotate_automatically(me, self._state.map) and self._is_due(),
                may_send=boot_s() >= self._not_before,
            )
            if step is Step.SWITCH:
                self._switch()
            elif step is not Step.WAIT:
                if step is Step.GENERATE:
                    self._generate()
                try:
                    await self._send(pending=step is not Step.SEND_OWN)
                except MeshrayError as error:
                    log.warning("the key was not changed: %s", error)

    def _is_due(self) -> bool:
        made = self.since
        return made is not None and (self._is_requested or is_old(self._own.public(), time.time() - made))

    def _generate(self) -> None:
        self._pending = PrivateKey.generate()
        save_private_key(self._home, self._pending, pending=True)

    async def _send(self, *, pending: bool) -> None:
        key = self._pending if pending and self._pending is not None else self._own
        self._not_before = boot_s() + RESEND_S
        try:
            body = {"public_key": str(key.public()), **self._signature_of(key.public())}
            await self._state.coordinator.call("POST", "/v1/rotate", body, prove_with=key)
        except UnreachableError:
            # The coordinator may have received it nevertheless, and the hub with it: then only the pending key still
            # works.
            if self._pending is not None and self._paths.is_cut_off:
                self._use(trial=not self._trial)
            raise
        except MeshrayError as error:
            self._drop_pending()
            if error.code != "hub_away":
                self._is_requested, self._not_before = False, boot_s() + REFUSED_S
            raise
        if key == self._pending:
            self._switch()

    def _signature_of(self, key: PublicKey) -> Mapping[str, object]:
        """Return the identity's signature as a field of the request; without it others reject the key."""
        identity, me = self._state.identity, self._state.map.nodes.get(self._node_id)
        if identity is None or me is None:
            return {}
        return {"attestation": identity.sign(key, me.ip).to_json()}

    def _switch(self) -> None:
        if self._pending is None:
            return
        self._home.pending_key.replace(self._home.private_key)
        self._own, self._pending, self._is_requested = self._pending, None, False
        log.info("this node's key is %s now", self._own.public())
        self._use(trial=False)

    def _use(self, *, trial: bool) -> None:
        self._trial = trial
        self.pair_keys = PairKeys(self._secrets, self.private.public(), self.tried)
        self._rekeying.own_changed()
        self._paths.begin_handshakes()

    def _drop_pending(self) -> None:
        self._pending = None
        self._home.pending_key.unlink(missing_ok=True)
        if self._trial:
            self._use(trial=False)


def _was_clock_set_back(home: Home) -> bool:
    """Return whether the last map was written in the future: the clock was set back while no agent ran."""
    with contextlib.suppress(OSError):
        return home.map_cache.stat().st_mtime > time.time() + 1.0
    return False
