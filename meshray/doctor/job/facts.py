"""The facts from the Ray job of `--deep`."""

from __future__ import annotations

from dataclasses import dataclass

#: The size of an object that moves between two nodes, bytes.
SIZE = 16 * 2**20
#: Ray removes a node that its head cannot dial after 30 to 60 s: what works after this time is stable, seconds.
SOAK_S = 80


@dataclass(frozen=True)
class Step:
    """A task on ``target``, or an object that was moved there from ``source``.

    Attributes:
        again: it belongs to the second round, after `SOAK_S`.
        source: empty for a task.
        error: Ray's own message; empty: it succeeded.
    """

    again: bool = False
    source: str = ""
    target: str = ""
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class DeepFacts:
    """The results of the job.

    Attributes:
        soak: a second round was requested.
        skipped: why the job did not run; empty: it ran.
        error: why the job did not finish; empty: it finished.
    """

    soak: bool = False
    skipped: str = ""
    error: str = ""
    steps: tuple[Step, ...] = ()
