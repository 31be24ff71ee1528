"""The accuracy of the doctor in this run: tests record their faults and its findings, which are summed up here."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from tests.lab.drawn_verdict import Score, Verdict

#: The names of the properties that tests record (pytest's `record_property`): a fault was injected, as group/name; …
BROKEN = "doctor: broken"
#: … the first failing check reported it; …
NAMED = "doctor: named"
#: … the commands that it printed repaired it; …
CARRIED_OUT = "doctor: carried out"
#: … a healthy mesh of this shape was checked; …
HEALTHY = "doctor: healthy"
#: … and nothing failed there, at any node that was asked.
WELL = "doctor: well"
#: The duration of an answer, in words.
TOOK = "doctor: took"
#: A drawn fault was injected, as "LAYER VERDICT NAME" (`tests.lab.drawn_verdict`); and how to repeat the draw.
DRAWN = "doctor: drawn"
DRAWN_BY = "doctor: drawn by"


class DoctorCount:
    """The sum of the tests' records."""

    def __init__(self) -> None:
        self._noted: dict[str, set[str]] = defaultdict(set)

    def note(self, properties: Iterable[tuple[str, object]]) -> None:
        """Count one test that has ended; other properties are ignored."""
        for name, value in properties:
            if name in (BROKEN, NAMED, CARRIED_OUT, HEALTHY, WELL, TOOK, DRAWN, DRAWN_BY):
                self._noted[name].add(str(value))

    def __bool__(self) -> bool:
        return bool(self._noted)

    @property
    def missed(self) -> set[str]:
        """Return the faults that were not reported, and the healthy meshes at which a check failed."""
        return (self._noted[BROKEN] - self._noted[NAMED]) | (self._noted[HEALTHY] - self._noted[WELL])

    def __str__(self) -> str:
        parts = (self._faults(), self._fixes(), self._drawn(), self._meshes(), *sorted(self._noted[TOOK]))
        return "; ".join(filter(None, parts))

    def _faults(self) -> str:
        broken, named = self._noted[BROKEN], self._noted[NAMED]
        groups = Counter(fault.partition("/")[0] for fault in named)
        counts = ", ".join(f"{group} {number}" for group, number in sorted(groups.items()))
        answer = f" ({counts})" if counts else ""
        return f"{len(named)} of {len(broken)} faults named by the first failing check{answer}" if broken else ""

    def _fixes(self) -> str:
        number = len(self._noted[CARRIED_OUT])
        return f"{number} of them repaired by the printed commands" if number else ""

    def _drawn(self) -> str:
        drawn = [note.split(" ", 2) for note in self._noted[DRAWN]]
        if not drawn:
            return ""
        score = Score.of((layer, Verdict(verdict)) for layer, verdict, _ in drawn)
        return f"drawn faults: {score}; {', '.join(sorted(self._noted[DRAWN_BY]))}"

    def _meshes(self) -> str:
        healthy, ill = self._noted[HEALTHY], sorted(self._noted[HEALTHY] - self._noted[WELL])
        if not healthy:
            return ""
        meshes = "mesh" if len(healthy) == 1 else "meshes"
        if not ill:
            return f"no failing check on {len(healthy)} healthy {meshes}"
        return f"failing checks on {len(ill)} of {len(healthy)} healthy {meshes}: {', '.join(ill)}"
