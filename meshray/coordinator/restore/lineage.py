"""The past of a coordinator's database, which identifies a database restored from an older copy.

Every write to the database has a serial number. The number alone would not suffice: a coordinator that was restored to
7 counts 8, 9, 10 again, for other changes. So each run of the coordinator that writes begins a timeline with a random
name, and both together, its mark, identify a moment. (PostgreSQL does the same after point-in-time recovery.)

    run a: 1 2 3 ──────► run b: 4 5 6 7 8      a node received b8
                  └ copy, put back ─► run c: 4 …      b8 is not in the past of c: it was restored

>>> lineage = Lineage("c", {"a": 3})
>>> lineage.contains(Mark("a", 2, 0)), lineage.contains(Mark("b", 8, 0))
(True, False)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from meshray.protocol.api import Restored
from meshray.protocol.fields import FIRST_EPOCH


@dataclass(frozen=True)
class Mark:
    """A moment of a coordinator: all writes up to this one.

    Attributes:
        timeline: the timeline of the run that wrote.
        serial: the serial of the write; serials only grow, over all timelines of one past.
        revision: no map up to the next write has a higher revision.
        epoch: the newest epoch of the mesh's secrets at that time.
    """

    timeline: str
    serial: int
    revision: int
    epoch: int = FIRST_EPOCH


@dataclass(frozen=True)
class Lineage:
    """The past of one database.

    Attributes:
        run: the timeline that this run's first write begins.
        timelines: the last serial of each run that wrote.
        restored: None if it was never found to be an older copy.
    """

    run: str = ""
    timelines: Mapping[str, int] = field(default_factory=dict)
    restored: Restored | None = None

    @property
    def serial(self) -> int:
        """The last serial that was used, here or in a future that is lost."""
        return max((*self.timelines.values(), self.restored.serial if self.restored else 0), default=0)

    def mark(self, revision: int) -> Mark:
        """Return the moment up to which all writes are on disk."""
        newest = max(self.timelines, key=lambda name: self.timelines[name], default="")
        return Mark(newest, self.timelines.get(newest, 0), revision)

    def contains(self, mark: Mark) -> bool:
        """Return whether this moment is in the past of the database; the beginning always is."""
        return mark.serial == 0 or mark.serial <= self.timelines.get(mark.timeline, -1)

    def is_known(self, mark: Mark) -> bool:
        """Return whether it is already known that nodes have received a moment at least this late."""
        return self.contains(mark) or (self.restored is not None and mark.serial <= self.restored.serial)

    def written(self) -> Lineage:
        """Return the lineage after one more write."""
        return replace(self, timelines={**self.timelines, self.run: self.serial + 1})
