"""Run the doctor and verify its report: it names the injected fault, and finds nothing on a healthy mesh.

    doctor.passes("two hubs", head, second)
    doctor.names(fault, stage, stage.cluster.hosts)

The closing table of the run counts its correct answers (see `tests.doctor_count`).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any

from tests.doctor_count import BROKEN, CARRIED_OUT, HEALTHY, NAMED, TOOK, WELL
from tests.harm import harms
from tests.lab.faults import Fault, Stage
from tests.lab.host import Host
from tests.lab.waiting import wait_until

OVERLAY = IPv4Network("10.99.0.0/16")
#: The time until everything that a fault interrupted is found again: paths and their sizes, a coordinator that was
#: away.
WHOLE_AGAIN_S = 60
#: The number of answers of a healthy mesh, of which one must be quick.
TRIES = 3

#: A fix, with the node on which to run it if that is another.
ON_A_NODE = re.compile(r"(?:on (?P<name>\S+): )?(?P<command>.*)", re.DOTALL)

Check = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """The answer of `meshray doctor --json` on one host.

    Attributes:
        seconds: the duration of the command.
    """

    report: dict[str, Any]
    seconds: float

    @property
    def checks(self) -> list[Check]:
        """All checks, in the doctor's order."""
        return list(self.report["checks"])

    @property
    def failing(self) -> list[Check]:
        """The failed checks; the first is the cause."""
        return [check for check in self.checks if check["status"] == "fail"]

    def __str__(self) -> str:
        """Return the problems, for a failed assertion."""
        return json.dumps([check for check in self.checks if check["status"] in ("fail", "warn")], indent=1)


def ask(host: Host, *options: str, deadline_s: float = 60) -> Answer:
    """Run `meshray doctor --json …` there."""
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
    """The doctor; see the module's docstring. ``record``: pytest's `record_property`."""

    record: Callable[[str, object], None]

    def passes(self, shape: str, *hosts: Host) -> None:
        """Assert that no check fails on this healthy mesh, on any of the hosts.

        Args:
            shape: the shape of the mesh, for the closing table.
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
        """Assert that the answer comes in time. Other tests run beside this one: one of three must be quick."""
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
        """Assert that the first failing check reports this fault, and that all is well after its repair.

        The repair is the printed fix if it consists of commands that work here (see `Fault.by_hand`).

        Args:
            hosts: the hosts of the mesh, the head first: it is also asked at the end.
            whole: an additional condition on the head's answer then.
            whole_again_s: the time until it must be true.
        """
        asked = next(host for host in hosts if host.name == (fault.asked or fault.node))
        name = f"{fault.group}/{fault.name}"
        self.record(BROKEN, name)
        concerned, carried_out = [next(iter(hosts)), asked], False
        try:
            fault.inject(stage)
            answer = ask(asked)
            if not fault.by_hand and answer.failing and answer.failing[0]["code"] == fault.code:
                carry_out(answer.failing[0]["fix"], asked, hosts)
                until_well(concerned, whole, whole_again_s)
                self.record(CARRIED_OUT, name)
                carried_out = True
        finally:
            fault.heal(stage)
            if fault.leftover is not None:
                fault.leftover(stage)
            if not carried_out:
                until_well(concerned, whole, whole_again_s)
        assert answer.failing, [check for check in answer.checks if check["code"] == fault.code]
        first = answer.failing[0]
        assert first["code"] == fault.code, answer
        # Without an agent, the findings concern the machine that was asked.
        assert fault.node in (first["node"] or asked.name, first["peer"]), answer
        assert first["evidence"], first
        assert first["fix"], first
        self.record(NAMED, name)


def carry_out(fix: str, asked: Host, hosts: Collection[Host]) -> None:
    """Run the commands of a printed fix, as a user pastes them, on the host that it names or that was asked."""
    name, command = ON_A_NODE.fullmatch(fix).group("name", "command")  # type: ignore[union-attr]
    host = next((host for host in hosts if host.name == name), asked)
    # What follows are words for the reader.
    command = re.split(r"; see |; or |, or ", command)[0]
    done = host.shell(command, check=False, deadline_s=WHOLE_AGAIN_S)
    print(f"on {host.name}: {command}: exit code {done.returncode}")


def until_well(
    hosts: Sequence[Host], whole: Callable[[Answer], bool] | None = None, deadline_s: float = WHOLE_AGAIN_S
) -> None:
    """Wait until no check fails on any of these hosts; ``whole`` is applied to the first one's answer."""
    hosts = list(dict.fromkeys(hosts))
    answers: list[Answer] = []

    def well() -> bool:
        # At the same time: an agent that is asked twice surveys once.
        with ThreadPoolExecutor() as pool:
            answers[:] = pool.map(ask, hosts)
        return not any(answer.failing for answer in answers) and (whole is None or whole(answers[0]))

    wait_until(well, deadline_s, "no failing check", evidence=lambda: "\n".join(map(str, answers)))
