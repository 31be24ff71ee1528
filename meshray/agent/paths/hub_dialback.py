"""A hub that its nodes cannot reach dials them: those that have reported endpoints.

    node with endpoints, not heard for 3 s ──► each of its endpoints in turn, 4 s ──► pause, longer each time
                              heard ──► nothing more: WireGuard knows its endpoint

>>> dialback = HubDialback()
>>> dialback.step(mesh_map, own_id, handshakes={}, now=0.0), dialback.step(mesh_map, own_id, handshakes={}, now=3.0)
({}, {'n2': Endpoint(host='192.0.2.7', port=51888)})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from meshray.agent.paths.hubs import PATIENCE_S, HubChoice
from meshray.linux.clock import BootSeconds, boot_s
from meshray.model.address import Endpoint
from meshray.model.meshmap import MeshMap
from meshray.model.node import HUB, STATIC, Node
from meshray.wireguard.config import DeviceState, is_fresh

#: Most nodes dial the hub and are heard before this, seconds.
DIAL_AFTER_S = 3.0
#: The first and the longest pause before a machine that is off is tried again, seconds.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 10.0, 120.0

#: Return the endpoint of the node with this id, with an address in place of a name; None if none is known now.
Resolve = Callable[[str, Endpoint], "Endpoint | None"]


@dataclass(frozen=True)
class _Silent:
    """A node that does not answer.

    Attributes:
        since: when this round of attempts began, or will begin, seconds of the boot clock.
        rounds: the number of failed rounds.
    """

    choice: HubChoice
    since: float
    rounds: int = 0

    def step(self, endpoints: tuple[Endpoint, ...], now: BootSeconds) -> _Silent:
        if set(endpoints) != set(self.choice.candidates):  # It may have moved: try at once.
            return _Silent(HubChoice.start(endpoints, "", now), now)
        if now < self.since:
            return self
        if now - self.since >= PATIENCE_S * len(self.choice.candidates):
            pause_s = min(FIRST_PAUSE_S * 2**self.rounds, LONGEST_PAUSE_S)
            return _Silent(HubChoice.start(endpoints, "", now + pause_s), now + pause_s, min(self.rounds + 1, 8))
        return replace(self, choice=self.choice.step(None, now))


class HubDialback:
    """Record which nodes are silent, since when, and at which endpoints they were tried."""

    def __init__(self) -> None:
        self._silent: dict[str, _Silent] = {}

    def step(
        self, mesh_map: MeshMap, own_id: str, handshakes: Mapping[str, BootSeconds | None], now: BootSeconds
    ) -> dict[str, Endpoint]:
        """Return the endpoint at which this hub dials each silent node now, by node id.

        Args:
            handshakes: the last handshake with each node, seconds of the boot clock, by node id.
            now: seconds of the boot clock.
        """
        silent = {
            node.id: self._attempt(node, now)
            for node in mesh_map.nodes.values()
            if node.id != own_id and _may_be_dialled(node) and not is_fresh(handshakes.get(node.id), now)
        }
        self._silent = silent
        return {
            node_id: item.choice.endpoint
            for node_id, item in silent.items()
            if item.choice.endpoint is not None and item.since <= now
        }

    def dial(
        self, mesh_map: MeshMap, own_id: str, observed: DeviceState | None, resolve: Resolve
    ) -> dict[str, Endpoint]:
        """Return the endpoints of `step` for the device's state, with addresses in place of names."""
        peers = observed.peers if observed is not None else {}
        handshakes = {
            node.id: peers[node.public_key].handshake_at for node in mesh_map.nodes.values() if node.public_key in peers
        }
        endpoints = self.step(mesh_map, own_id, handshakes, boot_s())
        resolved = {node_id: resolve(node_id, endpoint) for node_id, endpoint in endpoints.items()}
        return {node_id: endpoint for node_id, endpoint in resolved.items() if endpoint is not None}

    def _attempt(self, node: Node, now: BootSeconds) -> _Silent:
        known = self._silent.get(node.id)
        if known is None:
            return _Silent(HubChoice.start(node.endpoints, "", now + DIAL_AFTER_S), now + DIAL_AFTER_S)
        return known.step(node.endpoints, now)


def _may_be_dialled(node: Node) -> bool:
    # Hubs dial each other anyway; a device with wg-quick has no reported endpoint.
    return bool(node.endpoints) and not node.roles & {HUB, STATIC}
