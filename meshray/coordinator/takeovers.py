"""Detect two machines with one identity (a cloned disk): their agents take the connection from each other.

An agent that restarts, or whose network changed, connects once more and never uses its old connection again. Two
machines with one identity take turns: an agent that was replaced by another one comes back. Each agent process has a
random instance id, which it sends when it connects.

    A ──► B            an agent that was restarted
    A ──► B ──► A      both live: the identity is in use on two machines

>>> takeovers = Takeovers()
>>> [takeovers.connected("n1", who, f"192.0.2.{n}", now=float(n)) for n, who in enumerate("aba", 1)]
['', '', '192.0.2.2 and 192.0.2.3']
"""

from __future__ import annotations

from dataclasses import dataclass, field

#: An agent that was replaced longer ago than this and comes back proves nothing, seconds.
MEMORY_S = 600.0
#: The conflict is over when no agent took over for this long, seconds: longer than agents pause between attempts.
QUIET_S = 25.0
#: The number of replaced agents that are kept per node.
MOST_REPLACED = 8


@dataclass
class _Seen:
    """One node's agents: the newest one, and the earlier ones with the time of each one's replacement."""

    instance: str
    address: str
    replaced: dict[str, float] = field(default_factory=dict)
    conflict_at: float | None = None


class Takeovers:
    """The agents of every node, in the order of their connections."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def address(self, node_id: str) -> str:
        """Return the address of the node's newest agent; empty if there was none."""
        seen = self._seen.get(node_id)
        return seen.address if seen is not None else ""

    def is_other(self, node_id: str, instance: str) -> bool:
        """Return whether the node's newest agent is another one than this."""
        seen = self._seen.get(node_id)
        return seen is not None and bool(instance) and seen.instance != instance

    def connected(self, node_id: str, instance: str, address: str, now: float) -> str:
        """Record a connection of the node; return both addresses if it proves that two machines alternate."""
        if not instance:
            return ""
        seen = self._seen.get(node_id)
        if seen is None or seen.instance == instance:
            known = seen or _Seen(instance, address)
            known.address = address
            self._seen[node_id] = known
            return ""
        replaced = {one: at for one, at in seen.replaced.items() if now - at < MEMORY_S}
        came_back = replaced.pop(instance, None) is not None
        replaced[seen.instance] = now
        for oldest in list(replaced)[:-MOST_REPLACED]:
            del replaced[oldest]
        conflict_at = now if came_back else seen.conflict_at
        self._seen[node_id] = _Seen(instance, address, replaced, conflict_at)
        return f"{seen.address} and {address}" if came_back else ""

    def settled(self, now: float) -> list[str]:
        """Return the nodes whose conflict ended since the last call."""
        over = [
            node_id
            for node_id, seen in self._seen.items()
            if seen.conflict_at is not None and now - seen.conflict_at > QUIET_S
        ]
        for node_id in over:
            self._seen[node_id].conflict_at = None
        return over

    def dropped(self, node_id: str, instance: str) -> bool:
        """Record that this agent gives up the identity and will not come back; return whether that ends a conflict."""
        seen = self._seen.get(node_id)
        if seen is None or instance not in (seen.instance, *seen.replaced):
            return False
        others = {one: at for one, at in seen.replaced.items() if one != instance}
        had_conflict, seen.conflict_at = seen.conflict_at is not None, None
        # With two machines the other one is the only remaining agent: its return is not a takeover.
        seen.replaced = others if len(others) > 1 else {}
        if seen.instance == instance and len(others) == 1:
            seen.instance = next(iter(others))
        return had_conflict

    def forget(self, node_id: str) -> None:
        """Forget a removed node."""
        self._seen.pop(node_id, None)
