"""Measurements, and whether they meet their targets. Pure.

>>> figure = Figure("--help", "s", (0.12, 0.10, 0.11), Target(0.25))
>>> figure.verdict
0.11
>>> figure.met
True
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Target:
    """The target of a figure.

    Attributes:
        limit: the limit, in the figure's unit.
        at_least: it is a lower limit.
        of: the value of the samples to which it applies: ``median``, ``min`` or ``max``.
    """

    limit: float
    at_least: bool = False
    of: str = "median"

    def text(self, unit: str) -> str:
        """Return the text for the table."""
        return f"{self.of} {'≥' if self.at_least else '≤'} {self.limit:g} {unit}".rstrip()


@dataclass(frozen=True)
class Figure:
    """One quantity that was measured at least once.

    Attributes:
        target: None if the figure only serves for comparison.
    """

    what: str
    unit: str
    samples: tuple[float, ...]
    target: Target | None = None

    @property
    def median(self) -> float:
        """The median sample."""
        return median(self.samples)

    @property
    def min(self) -> float:
        """The smallest sample."""
        return min(self.samples)

    @property
    def max(self) -> float:
        """The largest sample."""
        return max(self.samples)

    @property
    def verdict(self) -> float:
        """The value to which the target applies."""
        values = {"median": self.median, "min": self.min, "max": self.max}
        return values[self.target.of if self.target else "median"]

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target."""
        if self.target is None:
            return None
        return self.verdict >= self.target.limit if self.target.at_least else self.verdict <= self.target.limit


@dataclass(frozen=True)
class Measured:
    """The result of a benchmark's `measure`.

    Attributes:
        notes: sentences that a reader needs to judge the figures.
    """

    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """One benchmark of one run.

    Attributes:
        measured: None if it failed.
        failure: the reason.
        load: the machine's load average (1 minute) before it began: other work makes everything slower.
        seconds: its duration.
    """

    name: str
    title: str
    how: str
    measured: Measured | None
    failure: str
    load: float
    seconds: float

    @property
    def met(self) -> bool:
        """Whether it was measured and every target was met."""
        return self.measured is not None and all(figure.met is not False for figure in self.measured.figures)
