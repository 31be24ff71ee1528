"""What the Ray job of `--deep` saw."""

from __future__ import annotations

from dataclasses import dataclass

#: What is moved between two nodes, bytes.
SIZE = 16 * 2**20
#: Ray ends a node that its head cannot dial after 30 to 60 s: what works after so long stays, seconds.
SOAK_S = 80


@dataclass(frozen=True)
class Step:
    """A task on ``target``, or what was moved there from ``source``.

    Attributes:
        again: in the second round, after `SOAK_S`.
        source: empty: it was a task.
        error: Ray's own words; empty: it worked.
    """

    again: bool = False
    source: str = ""
    target: str = ""
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class DeepFacts:
    """What the job told.

    Attributes:
        soak: a second round was asked for.
        skipped: why it was not run at all; empty: it was.
        error: why it did not come to its end; empty: it did.
    """

    soak: bool = False
    skipped: str = ""
    error: str = ""
    steps: tuple[Step, ...] = ()
