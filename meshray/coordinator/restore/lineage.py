"""Which past a coordinator's database has, so that one restored from an older copy is recognised.

Every write to the database has a serial number. The number alone would not tell: a coordinator that was put back
to 7 counts 8, 9, 10 again, for other changes. So each run of the coordinator that writes begins a timeline with a
random name, and a moment is named by both, its mark. (PostgreSQL does the same after a recovery to a point in time.)

    run a: 1 2 3 ──────► run b: 4 5 6 7 8      a node was told b8
                  └ copy, put back ─► run c: 4 …      b8 is not in the past of c: it was restored

>>> lineage = Lineage("c", {"a": 3})
>>> lineage.holds(Mark("a", 2, 0)), lineage.holds(Mark("b", 8, 0))
(True, False)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from meshray.protocol.fields import FIRST_EPOCH


@dataclass(frozen=True)
class Mark:
    """A moment of a coordinator: everything up to this write.

    Attributes:
        timeline: of the run that wrote.
        serial: of the write; they only grow, over all timelines of one past.
        revision: of the map at that time.
        epoch: the newest epoch of the mesh's secrets at that time.
    """

    timeline: str
    serial: int
    revision: int
    epoch: int = FIRST_EPOCH


@dataclass(frozen=True)
class Restored:
    """What is known of the last time that the database turned out to be an older copy.

    Attributes:
        at: when that was noticed, unix seconds.
        serial: nodes were told moments up to this one.
        whole: the coordinator's own machine still had the map of that serial, and it was put back.
        added: names of the nodes that the copy did not know and that are members again.
        removed: names of the nodes that the copy still had and that had been removed.
        had: the last serial that the copy had.
    """

    at: float
    serial: int
    whole: bool
    had: int = 0
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """The form in the store and in ``node list --json``."""
        return {
            "at": self.at,
            "serial": self.serial,
            "whole": self.whole,
            "had": self.had,
            "added": list(self.added),
            "removed": list(self.removed),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Restored:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for anything else."""
        added, removed = value["added"], value["removed"]
        if not isinstance(added, list) or not isinstance(removed, list):
            raise TypeError("added and removed must be lists")
        return cls(
            float(str(value["at"])),
            int(str(value["serial"])),
            value["whole"] is True,
            int(str(value["had"])),
            tuple(str(name) for name in added),
            tuple(str(name) for name in removed),
        )


@dataclass(frozen=True)
class Lineage:
    """The past of one database.

    Attributes:
        run: the timeline that this run's first write begins.
        timelines: the last serial of each run that wrote.
        restored: None where it was never found to be an older copy.
    """

    run: str = ""
    timelines: Mapping[str, int] = field(default_factory=dict)
    restored: Restored | None = None

    @property
    def serial(self) -> int:
        """The last one that was given out, here or in a future that is lost."""
        return max((*self.timelines.values(), self.restored.serial if self.restored else 0), default=0)

    def mark(self, revision: int) -> Mark:
        """The moment up to which everything is on disk."""
        newest = max(self.timelines, key=lambda name: self.timelines[name], default="")
        return Mark(newest, self.timelines.get(newest, 0), revision)

    def holds(self, mark: Mark) -> bool:
        """Whether this moment is in the past of the database; the beginning always is."""
        return mark.serial == 0 or mark.serial <= self.timelines.get(mark.timeline, -1)

    def noticed(self, mark: Mark) -> bool:
        """Whether it is known that nodes were told as much as this."""
        return self.holds(mark) or (self.restored is not None and mark.serial <= self.restored.serial)

    def written(self) -> Lineage:
        """After one more write."""
        return replace(self, timelines={**self.timelines, self.run: self.serial + 1})
