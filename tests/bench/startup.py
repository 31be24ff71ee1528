"""The duration of the command line."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable

from tests.bench.figures import Figure, Measured, Target
from tests.lab.cluster import Cluster
from tests.lab.host import REPOSITORY
from tests.lab.world import World

TITLE = "How long the command line takes"
HOW = """
Wall time of whole processes with a warm cache, the commands in turn. `status` asks a live agent on a head with Ray,
and that agent asks Ray. `python -c pass` shows the share of the interpreter.
"""
ROUNDS = 15
LIMIT_S = 0.25


def measure(report: Callable[[str], None]) -> Measured:
    """Measure a head with Ray, and commands on it."""
    with World("bench-startup") as world:
        head = world.host("head", world.switch("wan", "203.0.113.0/24"), "203.0.113.10")
        report("starting a head with Ray")
        Cluster.start(head, [])
        commands = {
            "meshray --help": Target(LIMIT_S),
            "meshray status": Target(LIMIT_S),
            f"{shlex.quote(sys.executable)} -c pass": None,
        }
        report(f"{ROUNDS} rounds of {len(commands)} commands")
        program = [sys.executable, "-m", "tests.bench.wall_time", str(ROUNDS), *commands]
        taken = head.run(program, cwd=REPOSITORY, deadline_s=120).json()
    names = ("meshray --help", "meshray status", "python -c pass")
    return Measured(
        tuple(
            Figure(name, "s", tuple(seconds), target)
            for name, seconds, target in zip(names, taken, commands.values(), strict=True)
        )
    )
