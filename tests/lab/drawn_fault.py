"""A generated fault as data, and the draw of some of them by a seed.

>>> draw = Draw.of({"MESHRAY_FAULTS_SEED": "7", "MESHRAY_FAULTS": "40"})
>>> len(draw.faults(SPACE))
40

Everything that a fault does is shell text for a host, so that each combination can be examined without being carried
out, and a user can repeat it by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from tests.lab.drawn_verdict import Truth

#: The environment variables for the seed, and for the number of faults.
SEED, NUMBER = "MESHRAY_FAULTS_SEED", "MESHRAY_FAULTS"
#: What `make test` draws. Its seed is always the same, so that a run of all tests does not fail by chance.
DEFAULT_NUMBER, DEFAULT_SEED = 25, 7
#: The least number of each layer: some have few combinations, and all others would hardly leave room for them.
OF_EACH_LAYER = 2


@dataclass(frozen=True)
class Step:
    """Shell text for one host. {head}, {near} and {far} are overlay addresses, {token} is a token for a join."""

    host: str
    shell: str


@dataclass(frozen=True)
class DrawnFault:
    """One combination of layer, place, direction and degree.

    Attributes:
        layer: where in the stack it is: name, route, rule, NAT, link, process, files, clock or identity.
        place: the machine that is broken.
        what: the fault in words, with its direction and degree; unique within layer and place.
        inject: causes it.
        heal: removes it, even if ``inject`` only got half way.
        effect: a condition, whose shell text ends with status 0 as soon as the fault has its effect.
        asked: the host on which the doctor is asked.
        truth: what is right to answer there.
    """

    layer: str
    place: str
    what: str
    inject: tuple[Step, ...]
    heal: tuple[Step, ...]
    effect: Step
    asked: str
    truth: Truth

    @property
    def name(self) -> str:
        """The unique name."""
        return f"{self.layer}/{self.place}/{self.what}/asked-on-{self.asked}"


@dataclass(frozen=True)
class Draw:
    """How many faults, and which: one number determines them."""

    seed: int
    number: int

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Draw:
        """Return the draw that the environment requests."""
        return cls(int(environ.get(SEED, DEFAULT_SEED)), int(environ.get(NUMBER, DEFAULT_NUMBER)))

    def faults(self, space: Sequence[DrawnFault]) -> list[DrawnFault]:
        """Return `OF_EACH_LAYER` faults of every layer, and the rest from all that are left."""
        random = Random(self.seed)
        layers: dict[str, list[DrawnFault]] = {}
        for fault in random.sample(space, len(space)):
            layers.setdefault(fault.layer, []).append(fault)
        first = [fault for faults in layers.values() for fault in faults[:OF_EACH_LAYER]]
        others = [fault for faults in layers.values() for fault in faults[OF_EACH_LAYER:]]
        drawn = [*first, *random.sample(others, len(others))][: self.number]
        return random.sample(drawn, len(drawn))

    def __str__(self) -> str:
        return f"{SEED}={self.seed} {NUMBER}={self.number} repeats it"
