"""Recognises two machines with one identity (a cloned disk) by how their agents take the connection from each other.

An agent that restarts, or whose network changed, connects once more and its old connection is never heard of again.
Two machines with one identity take turns: an agent that was replaced by another one comes back. Each agent process has
a random instance id, which it sends when it connects.

    A ──► B            an agent that was started again
    A ──► B ──► A      both live: the identity is in use on two machines

>>> takeovers = Takeovers()
>>> [takeovers.connected("n1", who, f"192.0.2.{n}", now=float(n)) for n, who in enumerate("aba", 1)]
['', '', '192.0.2.2 and 192.0.2.3']
"""

from __future__ import annotations

from dataclasses import dataclass, field

#: An agent that was replaced longer ago than this and comes back proves nothing any more, seconds.
MEMORY_S = 600.0
#: The conflict is over when nobody took over for so long: longer than agents pause between two tries, seconds.
QUIET_S = 25.0
#: So many replaced agents of one node are remembered.
MOST_REPLACED = 8


@dataclass
class _Seen:
    """One node's agents: the newest one and the earlier ones, with the time at which each was replaced."""

    instance: str
    address: str
    replaced: dict[str, float] = field(default_factory=dict)
    conflict_at: float | None = None


class Takeovers:
    """The agents of every node, as they connected."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def address(self, node_id: str) -> str:
        """From where the node's newest agent connected; empty where none did."""
        seen = self._seen.get(node_id)
        return seen.address if seen is not None else ""

    def is_other(self, node_id: str, instance: str) -> bool:
        """Whether the node's newest agent is another one than this."""
        seen = self._seen.get(node_id)
        return seen is not None and bool(instance) and seen.instance != instance

    def connected(self, node_id: str, instance: str, address: str, now: float) -> str:
        """An agent of the node connected. Returns both addresses where this proves that two machines take turns.

        Args:
            instance: of the agent's process; empty: it does not send one.
            now: seconds of a clock that is not set.
        """
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
        """The nodes whose conflict ended since this was asked last."""
        over = [
            node_id
            for node_id, seen in self._seen.items()
            if seen.conflict_at is not None and now - seen.conflict_at > QUIET_S
        ]
        for node_id in over:
            self._seen[node_id].conflict_at = None
        return over

    def dropped(self, node_id: str, instance: str) -> bool:
        """This agent gives the identity up: it will not come back. Returns whether that ends a conflict."""
        seen = self._seen.get(node_id)
        if seen is None or instance not in (seen.instance, *seen.replaced):
            return False
        others = {one: at for one, at in seen.replaced.items() if one != instance}
        had_conflict, seen.conflict_at = seen.conflict_at is not None, None
        # With two machines the other one is the only agent that is left: its return is no takeover.
        seen.replaced = others if len(others) > 1 else {}
        if seen.instance == instance and len(others) == 1:
            seen.instance = next(iter(others))
        return had_conflict

    def forget(self, node_id: str) -> None:
        """The node was removed."""
        self._seen.pop(node_id, None)
