"""Detect two machines with one identity (a cloned disk): their agents take the connection from each other.

An agent that restarts, or whose network changed, connects again and never uses its old connection. Two
machines with one identity take turns: an agent that was replaced by another one reconnects. Each agent process has a
random instance id, which it sends when it connects.

    A ──► B            an agent that was restarted
    A ──► B ──► A      both live: the identity is in use on two machines

>>> takeovers = Takeovers()
>>> [takeovers.connected("n1", instance, f"192.0.2.{n}", now=float(n)) for n, instance in enumerate("aba", 1)]
['', '', '192.0.2.2 and 192.0.2.3']
"""

from __future__ import annotations

from dataclasses import dataclass, field

#: An agent that was replaced longer ago than this and reconnects proves nothing, seconds.
MEMORY_S = 600.0
#: The conflict is over when no agent took over for this long, seconds: longer than agents pause between attempts.
QUIET_S = 25.0
#: The number of replaced agents that are kept per node.
MOST_REPLACED = 8


@dataclass
class _Connected:
    """One node's agents: the newest one, and the earlier ones with the time of each one's replacement."""

    instance: str
    address: str
    replaced: dict[str, float] = field(default_factory=dict)
    conflict_at: float | None = None


class Takeovers:
    """The agents of every node, in the order of their connections."""

    def __init__(self) -> None:
        self._newest: dict[str, _Connected] = {}

    def address(self, node_id: str) -> str:
        """Return the address of the node's newest agent; empty if there was none."""
        newest = self._newest.get(node_id)
        return newest.address if newest is not None else ""

    def is_different(self, node_id: str, instance: str) -> bool:
        """Return whether the node's newest agent differs from this one."""
        newest = self._newest.get(node_id)
        return newest is not None and bool(instance) and newest.instance != instance

    def connected(self, node_id: str, instance: str, address: str, now: float) -> str:
        """Record a connection of the node; return both addresses if it proves that two machines alternate."""
        if not instance:
            return ""
        newest = self._newest.get(node_id)
        if newest is None or newest.instance == instance:
            known = newest or _Connected(instance, address)
            known.address = address
            self._newest[node_id] = known
            return ""
        replaced = {one: at for one, at in newest.replaced.items() if now - at < MEMORY_S}
        has_returned = replaced.pop(instance, None) is not None
        replaced[newest.instance] = now
        for oldest in list(replaced)[:-MOST_REPLACED]:
            del replaced[oldest]
        conflict_at = now if has_returned else newest.conflict_at
        self._newest[node_id] = _Connected(instance, address, replaced, conflict_at)
        return f"{newest.address} and {address}" if has_returned else ""

    def resolved(self, now: float) -> list[str]:
        """Return the nodes whose conflict ended since the last call."""
        over = [
            node_id
            for node_id, newest in self._newest.items()
            if newest.conflict_at is not None and now - newest.conflict_at > QUIET_S
        ]
        for node_id in over:
            self._newest[node_id].conflict_at = None
        return over

    def given_up(self, node_id: str, instance: str) -> bool:
        """Record that this agent gives up the identity and will not reconnect; return whether that ends a conflict."""
        newest = self._newest.get(node_id)
        if newest is None or instance not in (newest.instance, *newest.replaced):
            return False
        others = {one: at for one, at in newest.replaced.items() if one != instance}
        had_conflict, newest.conflict_at = newest.conflict_at is not None, None
        # With two machines the other one is the only remaining agent: its return is not a takeover.
        newest.replaced = others if len(others) > 1 else {}
        if newest.instance == instance and len(others) == 1:
            newest.instance = next(iter(others))
        return had_conflict

    def forget(self, node_id: str) -> None:
        """Forget a removed node."""
        self._newest.pop(node_id, None)
