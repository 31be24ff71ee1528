"""Detect that a node's NAT mapping changed without the node, as observed by a hub (pure).

The hub's WireGuard uses the endpoint at which a node was heard last. If its port changes while the node reports
unchanged addresses and port, its router has dropped the mapping.

>>> rebinds.observe(nodes, device, now)
>>> rebinds.ages(now)
{'gpu-1': (12.0,)}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from meshray.model.address import Endpoint
from meshray.model.node import STATIC, Node
from meshray.wireguard.config import DeviceState

#: The number of changes that are kept per node.
_KEPT = 16


@dataclass(frozen=True)
class _Mapping:
    """The endpoint at which a node was observed, and its own report at that time."""

    endpoint: Endpoint
    own: tuple[Endpoint, ...]

    def was_rebound(self, after: _Mapping) -> bool:
        return (
            self.own == after.own
            and self.endpoint.host == after.endpoint.host
            and self.endpoint.port != after.endpoint.port
        )


class Rebinds:
    """The last mapping of each node, and when it changed. Times are of any clock that only goes forward."""

    def __init__(self) -> None:
        self._last: dict[str, _Mapping] = {}
        self._changes: dict[str, tuple[float, ...]] = {}

    def observe(self, nodes: Iterable[Node], observed: DeviceState, now: float) -> None:
        """Record where every node is observed now; a node that used the relay meanwhile starts over."""
        members = [node for node in nodes if STATIC not in node.roles]
        names = {str(node.name) for node in members}
        self._last = {name: last for name, last in self._last.items() if name in names}
        self._changes = {name: times for name, times in self._changes.items() if name in names}
        for node in members:
            peer = observed.peers.get(node.public_key)
            endpoint = peer.config.endpoint if peer is not None else None
            if endpoint is not None and endpoint.ip is not None:
                self._take(str(node.name), _Mapping(endpoint, node.endpoints), now)

    def ages(self, now: float) -> Mapping[str, tuple[float, ...]]:
        """Return the seconds since each change, the newest last, of every observed node."""
        return {name: tuple(round(now - at, 1) for at in self._changes.get(name, ())) for name in self._last}

    def _take(self, name: str, mapping: _Mapping, now: float) -> None:
        before = self._last.get(name)
        # Loopback addresses belong to the relay, which uses another port for each connection.
        if before is not None and before.was_rebound(mapping) and not _is_relay(mapping.endpoint):
            self._changes[name] = (*self._changes.get(name, ()), now)[-_KEPT:]
        self._last[name] = mapping


def _is_relay(endpoint: Endpoint) -> bool:
    return endpoint.ip is not None and endpoint.ip.is_loopback
