"""The duration of the doctor for a whole mesh."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.bench.figures import Figure, Measured, Target
from tests.lab.cluster import Cluster
from tests.lab.doctoring import ask, until_well
from tests.lab.topologies import ten
from tests.lab.world import World

TITLE = "How long the doctor takes for ten nodes"
HOW = """
Wall time of `meshray doctor --json` on the head of a mesh of ten, which asks every node and checks every ordered
pair: four open workers, two behind an easy and two behind a symmetric NAT, one without UDP. Ray does not run. All
nodes are healthy and share the cores.
"""
ROUNDS = 9
LIMIT_S = 5.0


def measure(report: Callable[[str], None]) -> Measured:
    """Measure ten nodes, with one command repeated."""
    with World("bench-doctor") as world:
        report("starting ten nodes")
        head, *workers = ten(world)
        Cluster.without_ray(head, workers)
        until_well([head])
        taken, checks = [], set()
        for number in range(ROUNDS):
            report(f"round {number + 1} of {ROUNDS}")
            begun = time.monotonic()
            answer = ask(head)
            taken.append(time.monotonic() - begun)
            assert not answer.failing, answer
            checks.add(len(answer.checks))
    return Measured(
        (Figure("meshray doctor", "s", tuple(taken), Target(LIMIT_S)),), (f"Checks in an answer: {max(checks)}.",)
    )
