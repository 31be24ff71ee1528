"""Budgets for what one member may cost others: changes of the map, notices, connections, new keys.

Each budget has a burst, which honest agents do not use up, and a rate per second that is restored. A member that has
used it up waits or is refused; no other member waits. A budget belongs to the node, not to its connection.

>>> budgets = Budgets(clock=time.monotonic, size=lambda: len(registry.members))
>>> budgets.charge_changes("n2", 1)
>>> budgets.changes_wait_s("n2")
0.0
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

#: The number of characters of a message that cost as much as another message.
_MESSAGE_CHARACTERS = 4096
_TOKEN, _PASS = "token ", "pass "


@dataclass(frozen=True)
class Rate:
    """The rate per second that a budget restores, and its maximum."""

    per_s: float
    burst: float


class Bucket:
    """The spent part of one budget that is not restored yet (pure)."""

    def __init__(self, now: float) -> None:
        self._spent = 0.0
        self._at = now

    def spend(self, cost: float, rate: Rate, now: float) -> float:
        """Spend the amount in any case; a debt of at most one burst may remain. Return the debt, in seconds."""
        self._restore(rate, now)
        self._spent = min(self._spent + cost, 2 * rate.burst)
        return self.debt_s(rate, now)

    def take(self, cost: float, rate: Rate, now: float) -> bool:
        """Spend the amount if that leaves no debt; return whether it did."""
        self._restore(rate, now)
        if self._spent + cost > rate.burst:
            return False
        self._spent += cost
        return True

    def remaining(self, rate: Rate, now: float) -> float:
        """Return the amount that can be spent without a debt; negative while there is one."""
        self._restore(rate, now)
        return rate.burst - self._spent

    def debt_s(self, rate: Rate, now: float) -> float:
        """Return the seconds until there is no debt; 0 without one."""
        self._restore(rate, now)
        return max(0.0, self._spent - rate.burst) / rate.per_s

    def _restore(self, rate: Rate, now: float) -> None:
        self._spent = max(0.0, self._spent - max(0.0, now - self._at) * rate.per_s)
        self._at = now


class Budgets:
    """The budgets of one mesh's members.

    Args:
        clock: seconds of a clock that is never set.
        size: returns the current number of members: an agent may have to act on each of them at once.
    """

    def __init__(self, clock: Callable[[], float], size: Callable[[], int]) -> None:
        self._clock = clock
        self._size = size
        self._buckets: dict[str, dict[str, Bucket]] = {}

    def charge_changes(self, node_id: str, nodes: int, *, is_hub: bool = False) -> None:
        """Charge this member for a report that changed this many entries of the map: every agent gets them."""
        self._bucket(node_id, "changes").spend(nodes, self._changes(is_hub), self._clock())

    def changes_wait_s(self, node_id: str, *, is_hub: bool = False) -> float:
        """Return the seconds that this member's next report must wait."""
        return self._bucket(node_id, "changes").debt_s(self._changes(is_hub), self._clock())

    def message_wait_s(self, node_id: str, characters: int) -> float:
        """Charge a message of the member; return the seconds until the next one is read."""
        cost = 1 + characters / _MESSAGE_CHARACTERS
        return self._bucket(node_id, "messages").spend(cost, Rate(100, 1000 + 4 * self._size()), self._clock())

    def may_notify(self, node_id: str) -> bool:
        """Return whether another agent gets this member's notice now. Its agent repeats notices that matter."""
        return self._bucket(node_id, "notices").take(1, Rate(10, 64 + 4 * self._size()), self._clock())

    def connection_wait_s(self, node_id: str, kind: str = "agent") -> float:
        """Charge another WebSocket of this kind; return the seconds until it is used."""
        return self._bucket(node_id, f"{kind} connections").spend(1, Rate(0.5, 20), self._clock())

    def may_record_refusal(self, account: str) -> bool:
        """Return whether another refused order is recorded now: records are never deleted.

        Args:
            account: the node of a member, or `pass_account` of a pass.
        """
        return self._bucket(account, "refusals").take(1, Rate(1 / 60, 20), self._clock())

    def may_rotate(self, node_id: str) -> bool:
        """Return whether the member may rotate its key now: every node performs a handshake with it again."""
        return self._bucket(node_id, "keys").take(1, Rate(1 / 60, 10), self._clock())

    def may_enrol(self, token_id: str) -> bool:
        """Return whether a node may enrol with this token now, for the first time or again."""
        return self._bucket(f"{_TOKEN}{token_id}", "enrolments").take(1, Rate(5, 2000), self._clock())

    def retain(self, members: Container[str], tokens: Container[str], passes: Container[str]) -> None:
        """Forget all other members, tokens and passes; to be called every few seconds."""
        for key in list(self._buckets):
            if key in members or key.removeprefix(_TOKEN) in tokens or key.removeprefix(_PASS) in passes:
                continue
            del self._buckets[key]

    def _changes(self, is_hub: bool) -> Rate:
        # A hub reports the observed endpoint of each node.
        return Rate(5 + self._size() / 20, 100 + 4 * self._size()) if is_hub else Rate(1, 40)

    def _bucket(self, key: str, kind: str) -> Bucket:
        buckets = self._buckets.setdefault(key, {})
        if kind not in buckets:
            buckets[kind] = Bucket(self._clock())
        return buckets[kind]


def pass_account(pass_id: str) -> str:
    """Return the name under which the budgets of a pass are kept."""
    return f"{_PASS}{pass_id}"
