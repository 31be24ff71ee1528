"""Asks the doctor, and judges it: that it names what was broken, and that it finds nothing where nothing is.

    doctor.passes("two hubs", head, second)
    doctor.names(fault, stage, stage.cluster.hosts)

What it was right about is counted in the closing table of the run (see `tests.doctor_count`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any

from tests.doctor_count import BROKEN, HEALTHY, NAMED, TOOK, WELL
from tests.harm import harms
from tests.lab.faults import Fault, Stage
from tests.lab.host import Host
from tests.lab.waiting import wait_until

OVERLAY = IPv4Network("10.99.0.0/16")
#: What a fault cut must be found again: ways and their sizes, a coordinator that was away.
WHOLE_AGAIN_S = 60
#: How often a healthy mesh is asked before it counts as slow.
TRIES = 3

Check = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What `meshray doctor --json` said on one host.

    Attributes:
        seconds: from the command to its end.
    """

    report: dict[str, Any]
    seconds: float

    @property
    def checks(self) -> list[Check]:
        """All of them, in the doctor's order."""
        return list(self.report["checks"])

    @property
    def failing(self) -> list[Check]:
        """The first is the cause."""
        return [check for check in self.checks if check["status"] == "fail"]

    def __str__(self) -> str:
        """For a failed assertion: what is not in order."""
        return json.dumps([check for check in self.checks if check["status"] in ("fail", "warn")], indent=1)


def ask(host: Host, *options: str, deadline_s: float = 60) -> Answer:
    """`meshray doctor --json …` there."""
    began = time.monotonic()
    done = host.run(["meshray", "doctor", "--json", *options], check=False, deadline_s=deadline_s)
    answer = Answer(json.loads(done.stdout), time.monotonic() - began)
    for check in answer.report.get("checks", ()):
        assert harms(check["fix"], OVERLAY) == [], check
    assert "checks" in answer.report, done
    assert done.returncode == (0 if answer.report["healthy"] else 3), done
    return answer


@dataclass(frozen=True)
class Doctor:
    """See the module's text. ``record``: pytest's `record_property`."""

    record: Callable[[str, object], None]

    def passes(self, shape: str, *hosts: Host) -> None:
        """No check fails on this healthy mesh, whichever of the hosts is asked,.

        Args:
            shape: of the mesh, for the closing table.
        """
        self.record(HEALTHY, shape)
        slowest = 0.0
        for host in hosts:
            answer = ask(host)
            assert not answer.failing, f"asked on {host.name}: {answer}"
            slowest = max(slowest, answer.seconds)
        print(f"doctor, {shape}: {slowest:.1f} s at most")
        self.record(WELL, shape)

    def answers(self, shape: str, host: Host, within_s: float) -> None:
        """The answer comes in time. Other tests run beside this one: one of three tries must be quick enough."""
        tries: list[float] = []
        while len(tries) < TRIES and (not tries or tries[-1] >= within_s):
            tries.append(ask(host).seconds)
        self.record(TOOK, f"{shape} in {tries[-1]:.1f} s")
        assert tries[-1] < within_s, tries

    def names(
        self,
        fault: Fault[Stage],
        stage: Stage,
        hosts: Collection[Host],
        whole: Callable[[Answer], bool] | None = None,
        whole_again_s: float = WHOLE_AGAIN_S,
    ) -> None:
        """The first check that fails while this is broken is about it; after that, all is well again.

        Args:
            hosts: of the mesh, the head first: it is asked in the end as well.
            whole: what else must be true of the head's answer then.
            whole_again_s: until which it must be.
        """
        asked = next(host for host in hosts if host.name == (fault.asked or fault.node))
        name = f"{fault.group}/{fault.name}"
        self.record(BROKEN, name)
        try:
            fault.inject(stage)
            answer = ask(asked)
        finally:
            fault.heal(stage)
            until_well([next(iter(hosts)), asked], whole, whole_again_s)
        assert answer.failing, [check for check in answer.checks if check["code"] == fault.code]
        first = answer.failing[0]
        assert first["code"] == fault.code, answer
        # Without an agent, what is found is about the machine on which it was asked.
        assert fault.node in (first["node"] or asked.name, first["peer"]), answer
        assert first["evidence"], first
        assert first["fix"], first
        self.record(NAMED, name)


def until_well(
    hosts: Sequence[Host], whole: Callable[[Answer], bool] | None = None, deadline_s: float = WHOLE_AGAIN_S
) -> None:
    """Until no check fails on any of these hosts; ``whole`` is asked of the first one's answer."""
    hosts = list(dict.fromkeys(hosts))
    answers: list[Answer] = []

    def well() -> bool:
        # At the same time: an agent that is asked twice looks once.
        with ThreadPoolExecutor() as pool:
            answers[:] = pool.map(ask, hosts)
        return not any(answer.failing for answer in answers) and (whole is None or whole(answers[0]))

    wait_until(well, deadline_s, "no failing check", evidence=lambda: "\n".join(map(str, answers)))
