"""When a node's mapping at its router changed by itself, as a hub sees it (pure).

The hub's WireGuard follows a node to wherever it was heard last. Another port there, while the node says
that its own addresses and port are the same, is its router's doing: it forgot the mapping.

>>> rebinds.look(nodes, device, now)
>>> rebinds.ages(now)
{'gpu-1': (12.0,)}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from meshray.model.address import Endpoint
from meshray.model.node import STATIC, Node
from meshray.wireguard.config import DeviceState

#: So many changes of one node are remembered.
_KEPT = 16


@dataclass(frozen=True)
class _Mapping:
    """Where a node was seen, and what it said of itself then."""

    seen: Endpoint
    own: tuple[Endpoint, ...]

    def was_rebound(self, after: _Mapping) -> bool:
        return self.own == after.own and self.seen.host == after.seen.host and self.seen.port != after.seen.port


class Rebinds:
    """Remembers the last mapping of each node, and when it changed. Times are of any clock that only goes forward."""

    def __init__(self) -> None:
        self._last: dict[str, _Mapping] = {}
        self._changes: dict[str, tuple[float, ...]] = {}

    def look(self, nodes: Iterable[Node], observed: DeviceState, now: float) -> None:
        """Takes note of where everybody is seen now; who went through the relay meanwhile begins anew."""
        there = [node for node in nodes if STATIC not in node.roles]
        names = {str(node.name) for node in there}
        self._last = {name: last for name, last in self._last.items() if name in names}
        self._changes = {name: times for name, times in self._changes.items() if name in names}
        for node in there:
            peer = observed.peers.get(node.public_key)
            endpoint = peer.config.endpoint if peer is not None else None
            if endpoint is not None and endpoint.ip is not None:
                self._take(str(node.name), _Mapping(endpoint, node.endpoints), now)

    def ages(self, now: float) -> Mapping[str, tuple[float, ...]]:
        """Seconds since each change, the newest last, of every node that is seen."""
        return {name: tuple(round(now - at, 1) for at in self._changes.get(name, ())) for name in self._last}

    def _take(self, name: str, seen: _Mapping, now: float) -> None:
        before = self._last.get(name)
        # Loopback is the relay's, which takes another port for each connection.
        if before is not None and before.was_rebound(seen) and not _is_relay(seen.seen):
            self._changes[name] = (*self._changes.get(name, ()), now)[-_KEPT:]
        self._last[name] = seen


def _is_relay(endpoint: Endpoint) -> bool:
    return endpoint.ip is not None and endpoint.ip.is_loopback
