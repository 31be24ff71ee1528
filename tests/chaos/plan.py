"""The events and their order: one number determines all of them.

>>> plan = Plan.of({"MESHRAY_CHAOS_SEED": "7"}, "demo")
>>> list(plan.rounds(["kill", "freeze", "reboot"], at_once=2))
[['kill', 'freeze'], ['reboot']]
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

#: The environment variables for the seed, and for the duration in seconds.
SEED, SECONDS = "MESHRAY_CHAOS_SEED", "MESHRAY_CHAOS_S"
#: The property of a test's report that the closing table shows.
SUMMARY = "chaos"
#: One pass over all kinds of trouble, including setup and teardown, on two slow cores beside other tests.
ONE_PASS_S = 600


def longest_s(environ: Mapping[str, str]) -> float:
    """Return the maximum duration of a test, seconds."""
    return ONE_PASS_S + float(environ.get(SECONDS, "0"))


@dataclass
class Plan:
    """The choices of one world.

    Attributes:
        seconds: rounds begin during this time; the first pass over all kinds is always made.
        random: the source of every choice.
        reported: one line for each round, for users.
    """

    seed: int
    seconds: float
    random: Random
    reported: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, environ: Mapping[str, str], world: str) -> Plan:
        """Return the plan that the environment requests; worlds of one seed have different ones."""
        seed = int(environ[SEED])
        return cls(seed, float(environ.get(SECONDS, "0")), Random(f"{seed} {world}"))

    def rounds(self, kinds: Sequence[str], *, at_once: int) -> Iterator[list[str]]:
        """Yield groups of one to ``at_once`` kinds: every kind once, and again until the time is over."""
        begun = time.monotonic()
        while True:
            left = self.random.sample(kinds, len(kinds))
            while left:
                size = self.random.randint(1, at_once)
                group, left = left[:size], left[size:]
                yield group
                if self.seconds and time.monotonic() - begun > self.seconds:
                    return
            if not self.seconds:
                return

    def report(self, line: str) -> None:
        """Record a line, and print it."""
        self.reported.append(line)
        print(line, flush=True)

    def note(self, wrong: Sequence[str]) -> None:
        """Report what is wrong now, if that is new."""
        line = f"    {time.strftime('%H:%M:%S')} {wrong[0][:200] if wrong else 'whole'}"
        if not self.reported or self.reported[-1].split()[1:] != line.split()[1:]:
            self.report(line)
