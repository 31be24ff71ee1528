"""A hundred machines that enrol at the same moment."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tests.bench.figures import Figure, Measured, Target
from tests.lab.cluster import Cluster
from tests.lab.host import REPOSITORY, Host
from tests.lab.world import World

PROCESSES = 4
EACH = 25
COUNT = PROCESSES * EACH
ROUNDS = 3
LIMIT_S = 5.0
TITLE = f"{COUNT} enrolments at once"
HOW = f"""
{COUNT} clients in {PROCESSES} processes on a second host enrol at the same moment with one reusable token, each over
its own TLS connections and with the code of `meshray join`. The coordinator is the process that `meshray init`
started, and meanwhile the head's agent adds each new node to its WireGuard device. Every round has a new head and
mesh. The clients' work (mostly TLS) uses the same cores.
"""


def measure(report: Callable[[str], None]) -> Measured:
    """Measure several rounds, each with a new head."""
    slowest, middle, with_address = [], [], []
    with World("bench-enrolments") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        crowd = world.host("crowd", wan, "203.0.113.100")
        for number in range(ROUNDS):
            report(f"round {number + 1} of {ROUNDS}")
            head = world.host(f"head{number}", wan, f"203.0.113.{10 + number}")
            rows = enrol(head, crowd)
            seconds = sorted(float(row["seconds"]) for row in rows)
            slowest.append(seconds[-1])
            middle.append(seconds[len(seconds) // 2])
            with_address.append(len({row["ip"] for row in rows if "ip" in row}))
            head.end()
    return Measured(
        (
            Figure("enrolled with an address of its own", "", tuple(with_address), Target(COUNT, True, "min")),
            Figure(f"the slowest of {COUNT}", "s", tuple(slowest), Target(LIMIT_S, of="max")),
            Figure(f"the middle one of {COUNT}", "s", tuple(middle)),
        )
    )


def enrol(head: Host, crowd: Host) -> list[dict[str, Any]]:
    """Return each client's result. Raises AssertionError if the head counts other nodes than the clients report."""
    cluster = Cluster(head, ())
    told = cluster.meshray(head, "init", "--no-ray")
    program = [sys.executable, "-m", "tests.bench.crowd", "--processes", str(PROCESSES), "--each", str(EACH)]
    rows = crowd.run(program, env={"TOKEN": told["token"]}, cwd=REPOSITORY, deadline_s=120).json()
    assert isinstance(rows, list)
    nodes = head.run(["meshray", "node", "list", "--json"]).json()["nodes"]
    enrolled = [row for row in rows if "ip" in row]
    assert len(nodes) == len(enrolled) + 1, f"{len(enrolled)} were told that they are nodes, the head has {len(nodes)}"
    return rows
