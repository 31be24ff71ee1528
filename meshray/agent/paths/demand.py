"""Which direct paths are worth having: those over which packets would flow (pure).

    mesh of at most WARM_NODES ──► all
    larger ──► a packet, a ping, the other side's punch ──► wanted for IDLE_S after the last of them

Every direct path costs both nodes a WireGuard peer, a keepalive and probes, for ever. In a mesh of a thousand nodes
nearly all pairs never exchange a packet, and the hub carries the first packets of a pair that does.

    >>> demand = Demand()
    >>> demand.note("n2", now=10.0)
    >>> demand.wanted_until("n2"), demand.wanted_until("n3")
    (190.0, -inf)
"""

from __future__ import annotations

import math
from collections.abc import Collection

#: In meshes of at most this many nodes every pair has its direct path ready before the first packet.
WARM_NODES = 16
#: The time after the last sign of demand for which a pair is contacted, seconds.
IDLE_S = 180.0
#: Both sides see the same packets, but each reports a peer only every 30 s: a side that saw the last packet this long
#: ago follows the other side when it lets the path go, seconds.
FOLLOW_S = 90.0


class Demand:
    """The last sign of demand for each pair, by node id. Times are of a monotonic clock, seconds."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def note(self, node_id: str, now: float) -> None:
        """Record a packet, or another sign that the direct path is useful."""
        self._last[node_id] = now

    def wanted_until(self, node_id: str) -> float:
        """Return when the pair is idle, if no packet follows."""
        return self._last.get(node_id, -math.inf) + IDLE_S

    def may_follow(self, node_id: str, now: float) -> bool:
        """Return whether to let the path go because the other side has."""
        return now - self._last.get(node_id, -math.inf) >= FOLLOW_S

    def forget(self, node_id: str) -> None:
        """Treat the pair as idle until the next sign."""
        self._last.pop(node_id, None)

    def keep(self, node_ids: Collection[str]) -> None:
        """Forget all other nodes."""
        self._last = {node_id: at for node_id, at in self._last.items() if node_id in node_ids}
