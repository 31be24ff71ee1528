"""Restore routes that another program removes: at once, then with growing pauses (pure).

>>> repairs = RouteRepairs()
>>> steps = repairs.due(plan(observed, desired), now=boot_s())      # without the routes that are not due yet
>>> repairs.complaints(boot_s())
('another program keeps removing the route 10.99.0.0/16 …',)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network

from meshray.wireguard.config import Route
from meshray.wireguard.plan import CreateDevice, RemoveRoute, SetRoute, SetUp, Step

#: A route that was not changed for this long is stable again, seconds.
STABLE_S = 60.0
#: A program that has not changed a route for this long no longer contests it, seconds; it is no longer reported.
OVER_S = 15.0
#: A route is restored immediately this many times in a row: a manager that restarts removes it once or twice.
IMMEDIATE_REPAIRS = 8
#: The pauses after that double, seconds. Without the route the node is cut off, so the longest pause is short.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 4.0


@dataclass
class _History:
    """The history of one route.

    Attributes:
        route: the route as last set.
        times: the number of times that it was restored since it was last stable.
        missing_at: when it was last observed missing; None: never.
        due_at: it is not restored before this time.
        found: the route in its place; empty: none.
    """

    route: Route
    times: int = 0
    missing_at: float | None = None
    due_at: float = 0.0
    found: str = ""

    def is_stable(self, now: float) -> bool:
        return self.missing_at is None or now - self.missing_at >= STABLE_S

    def is_over(self, now: float) -> bool:
        return self.missing_at is None or now - self.missing_at >= OVER_S


class RouteRepairs:
    """The history of the routes that were set. All times are seconds of one clock that never goes back."""

    def __init__(self) -> None:
        self._routes: dict[IPv4Network, _History] = {}
        self._culprit = ""
        self._withheld_until: float | None = None

    def due(self, steps: Iterable[Step], now: float) -> tuple[Step, ...]:
        """Return the steps to take now."""
        steps, self._withheld_until = tuple(steps), None
        if any(isinstance(step, (CreateDevice, SetUp)) for step in steps):
            self._routes.clear()  # The routes were removed with the interface.
        for step in steps:
            if isinstance(step, RemoveRoute):
                self._routes.pop(step.destination, None)
        return tuple(step for step in steps if not isinstance(step, SetRoute) or self._is_due(step, now))

    def _is_due(self, step: SetRoute, now: float) -> bool:
        history = self._routes.get(step.route.destination)
        if history is None or history.route != step.route:
            self._routes[step.route.destination] = _History(step.route)
            return True
        if history.is_stable(now):
            history.times = 0
        history.missing_at, history.found = now, step.replaces
        if now < history.due_at:
            self._withheld_until = min(history.due_at, self._withheld_until or history.due_at)
            return False
        history.times += 1
        more = history.times - IMMEDIATE_REPAIRS
        history.due_at = now + (min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(more, 16)) if more >= 0 else 0.0)
        return True

    def wait_s(self, now: float) -> float:
        """Return the time until the first withheld route is due, seconds; infinite if none is withheld."""
        return math.inf if self._withheld_until is None else max(0.0, self._withheld_until - now)

    def reset(self) -> None:
        """Forget the history: missing routes are restored at once."""
        self._routes.clear()

    def record_culprit(self, culprit: str) -> None:
        """Record which program changed a route of the overlay, as far as the kernel knows."""
        self._culprit = culprit or self._culprit

    def complaints(self, now: float) -> tuple[str, ...]:
        """Return one sentence for the user per contested route."""
        return tuple(
            f"{self._culprit or 'another program'} keeps {_doing(history)} the route {destination} of the overlay: "
            f"it was put back {history.times} times"
            for destination, history in sorted(self._routes.items())
            if history.times > IMMEDIATE_REPAIRS and not history.is_over(now)
        )


def _doing(history: _History) -> str:
    return f"replacing (by {history.found})" if history.found else "removing"
