"""How often one member may cause something that others pay for: changes of the map, notices, connections, new keys.

Each budget has a burst, which honest agents do not use up, and what is restored in a second. Who has used it up waits
or is refused; nobody else waits. A budget belongs to the node, not to its connection.

>>> budgets = Budgets(clock=time.monotonic, size=lambda: len(registry.members))
>>> budgets.charge_changes("n2", 1)
>>> budgets.changes_wait_s("n2")
0.0
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

#: Characters of a message that cost as much as another message.
_MESSAGE_CHARACTERS = 4096
_TOKEN = "token "  # noqa: S105 - a prefix, not a secret


@dataclass(frozen=True)
class Rate:
    """What a budget restores in a second, and what it holds at most."""

    per_s: float
    burst: float


class Bucket:
    """What was spent of one budget and is not restored yet (pure)."""

    def __init__(self, now: float) -> None:
        self._spent = 0.0
        self._at = now

    def spend(self, cost: float, rate: Rate, now: float) -> float:
        """Spends it in any case, so that a debt may remain, of one burst at most. Returns the debt, in seconds."""
        self._restore(rate, now)
        self._spent = min(self._spent + cost, 2 * rate.burst)
        return self.debt_s(rate, now)

    def take(self, cost: float, rate: Rate, now: float) -> bool:
        """Spends it where that leaves no debt. Returns whether it did."""
        self._restore(rate, now)
        if self._spent + cost > rate.burst:
            return False
        self._spent += cost
        return True

    def debt_s(self, rate: Rate, now: float) -> float:
        """Seconds until there is no debt; 0 where there is none."""
        self._restore(rate, now)
        return max(0.0, self._spent - rate.burst) / rate.per_s

    def _restore(self, rate: Rate, now: float) -> None:
        self._spent = max(0.0, self._spent - max(0.0, now - self._at) * rate.per_s)
        self._at = now


class Budgets:
    """The budgets of one mesh's members.

    Args:
        clock: seconds of a clock that is not set.
        size: how many members there are now: with each of them an agent may have something to do at once.
    """

    def __init__(self, clock: Callable[[], float], size: Callable[[], int]) -> None:
        self._clock = clock
        self._size = size
        self._buckets: dict[str, dict[str, Bucket]] = {}

    def charge_changes(self, node_id: str, nodes: int, *, is_hub: bool = False) -> None:
        """This member's report changed the map's entries of so many nodes: every agent is sent them."""
        self._bucket(node_id, "changes").spend(nodes, self._changes(is_hub), self._clock())

    def changes_wait_s(self, node_id: str, *, is_hub: bool = False) -> float:
        """So long this member's next report has to wait, seconds."""
        return self._bucket(node_id, "changes").debt_s(self._changes(is_hub), self._clock())

    def message_wait_s(self, node_id: str, characters: int) -> float:
        """The member sent a message: so long the next one is not read, seconds."""
        cost = 1 + characters / _MESSAGE_CHARACTERS
        return self._bucket(node_id, "messages").spend(cost, Rate(100, 1000 + 4 * self._size()), self._clock())

    def may_notify(self, node_id: str) -> bool:
        """Whether another agent is to get a notice from this member now. Its agent sends what matters again."""
        return self._bucket(node_id, "notices").take(1, Rate(10, 64 + 4 * self._size()), self._clock())

    def connection_wait_s(self, node_id: str, kind: str = "agent") -> float:
        """The member opened another WebSocket of this kind: so long it is not used yet, seconds."""
        return self._bucket(node_id, f"{kind} connections").spend(1, Rate(0.5, 20), self._clock())

    def may_rotate(self, node_id: str) -> bool:
        """Whether the member may have another key now: every node shakes hands with it again."""
        return self._bucket(node_id, "keys").take(1, Rate(1 / 60, 10), self._clock())

    def may_enrol(self, token_id: str) -> bool:
        """Whether a node may enrol with this token now, be it for the first time or again."""
        return self._bucket(f"{_TOKEN}{token_id}", "enrolments").take(1, Rate(5, 2000), self._clock())

    def retain(self, members: Container[str], tokens: Container[str]) -> None:
        """Forgets what belongs to none of these members and tokens; to be called every few seconds."""
        for key in list(self._buckets):
            if key not in members and key.removeprefix(_TOKEN) not in tokens:
                del self._buckets[key]

    def _changes(self, is_hub: bool) -> Rate:
        # A hub reports where it sees each of the nodes.
        return Rate(5 + self._size() / 20, 100 + 4 * self._size()) if is_hub else Rate(1, 40)

    def _bucket(self, key: str, kind: str) -> Bucket:
        buckets = self._buckets.setdefault(key, {})
        if kind not in buckets:
            buckets[kind] = Bucket(self._clock())
        return buckets[kind]
