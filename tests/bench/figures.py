"""What was measured, and whether it is good enough. Pure.

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
    """How good is good enough.

    Attributes:
        limit: in the figure's unit.
        at_least: the limit is a lower one.
        of: which value of the samples it is for: ``median``, ``min`` or ``max``.
    """

    limit: float
    at_least: bool = False
    of: str = "median"

    def text(self, unit: str) -> str:
        """For the table."""
        return f"{self.of} {'≥' if self.at_least else '≤'} {self.limit:g} {unit}".rstrip()


@dataclass(frozen=True)
class Figure:
    """One thing that was measured several times; at least once.

    Attributes:
        target: None where the figure is there to be compared with others.
    """

    what: str
    unit: str
    samples: tuple[float, ...]
    target: Target | None = None

    @property
    def median(self) -> float:
        """The middle one."""
        return median(self.samples)

    @property
    def min(self) -> float:
        """The smallest one."""
        return min(self.samples)

    @property
    def max(self) -> float:
        """The largest one."""
        return max(self.samples)

    @property
    def verdict(self) -> float:
        """The value to which the target applies."""
        values = {"median": self.median, "min": self.min, "max": self.max}
        return values[self.target.of if self.target else "median"]

    @property
    def met(self) -> bool | None:
        """Whether it is good enough; None where there is no target."""
        if self.target is None:
            return None
        return self.verdict >= self.target.limit if self.target.at_least else self.verdict <= self.target.limit


@dataclass(frozen=True)
class Measured:
    """What a benchmark's `measure` returns.

    Attributes:
        notes: sentences that a reader needs to judge the figures.
    """

    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """One benchmark of one run.

    Attributes:
        measured: None where it failed.
        failure: why.
        load: the machine's load average (1 minute) before it began: other work makes everything slower.
        seconds: how long it took.
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
