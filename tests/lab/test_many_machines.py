"""`meshray node add --from` over a real sshd on every machine: thirty machines at once, and machines that fail.

           switch wan 203.0.113.0/24
     ┌─────────────┬──────┴──────┬─────── …
   head          gpu-01        gpu-02
203.0.113.10   203.0.113.101  203.0.113.102
logs in to all others as root
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.lab.host import USER, Host, HostProcess
from tests.lab.test_ssh import MESHRAY, answer, authorise
from tests.lab.world import Switch, World

MACHINES = 30
#: Measured on two cores: 57 s, and 81 to 100 s beside other programs. Here they have one core.
MANY_S = 300
#: ssh gives up a machine that does not answer any more after 45 s.
ADD_S = 150
ADD = ["meshray", "node", "add", "--json", "--no-ray", "--meshray", MESHRAY, "--from", "/root/hosts.ini"]


@dataclass
class Lab:
    """A head, and machines to which its root may log in.

    Attributes:
        machines: by name, in the order of the inventory.
    """

    world: World
    wan: Switch
    head: Host
    machines: dict[str, Host] = field(default_factory=dict)

    def add(self, name: str, number: int) -> None:
        self.machines[name] = self.world.host(name, self.wan, f"203.0.113.{number}")
        authorise(self.machines[name], self.head)

    def line(self, name: str) -> str:
        """Return the machine's line in an inventory."""
        return f"{name} ansible_host={self.machines[name].address}"

    def write(self, *lines: str) -> None:
        """Write the inventory."""
        self.head.run(["sh", "-c", "cat > /root/hosts.ini"], stdin="".join(f"{line}\n" for line in lines))

    def nodes(self) -> dict[str, dict[str, Any]]:
        return {node["name"]: node for node in answer(self.head, "node", "list")["nodes"]}

    def wait_until_online(self) -> None:
        self.head.wait_until(lambda: all(node["online"] for node in self.nodes().values()), 30, "all nodes")


@contextmanager
def lab(name: str, names: list[str]) -> Iterator[Lab]:
    """Yield a mesh with a head, and machines with these names."""
    with World(name) as world:
        wan = world.switch("wan", "203.0.113.0/24")
        found = Lab(world, wan, world.host("head", wan, "203.0.113.10"))
        for number, machine in enumerate(names, 101):
            found.add(machine, number)
        answer(found.head, "init", "--no-ray")
        yield found


def results(output: str) -> dict[str, str]:
    """Return the machines of an answer, with what was done or the code of the error."""
    return {
        machine["machine"]: machine["error"]["code"] if machine["done"] == "failed" else machine["done"]
        for machine in json.loads(output)["machines"]
    }


@contextmanager
def one_core() -> Iterator[None]:
    """Let this thread and what it starts use one core, so that the tests beside it keep the others."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.timeout(MANY_S + 120)
def test_thirty_machines_become_nodes_with_one_command() -> None:
    names = [f"gpu-{number:02}" for number in range(1, MACHINES + 1)]
    with one_core(), lab("many", names) as found:
        found.write("[headnode]", "head", "[workernode]", *map(found.line, names))
        added = found.head.run([*ADD, "--parallel", "12"], deadline_s=MANY_S)
        assert results(added.stdout) == {"head": "head", **dict.fromkeys(names, "added")}, added.stderr
        assert len(set(re.findall(r"^(gpu-\d\d): ok \1, 10\.99\.0\.\d+ ", added.stderr, re.MULTILINE))) == MACHINES
        found.wait_until_online()
        assert set(found.nodes()) == {"head", *names}
        assert found.head.can_reach(found.nodes()[names[-1]]["ip"], deadline_s=5)


def allow_sudo(machine: Host, commands: str) -> None:
    """Let the machine's user run commands with sudo; without NOPASSWD it asks for a password."""
    rule = f"{USER} ALL=(ALL) {commands}\n"
    machine.shell("cat > /etc/sudoers.d/lab && chmod 440 /etc/sudoers.d/lab", stdin=rule)


def cut_while_it_joins(machine: Host) -> None:
    """Pull the machine's network cable as soon as `meshray join` runs there."""
    machine.wait_until(lambda: machine.run(["pgrep", "-f", "meshray join"], check=False).stdout, 60, "meshray join")
    machine.run(["ip", "link", "set", "eth0", "down"])


def finished(adding: HostProcess, deadline_s: float) -> tuple[int, str]:
    """Return the exit code of the command, and its answer: the line of JSON in its output."""
    code = adding.wait(deadline_s)
    (line,) = [line for line in adding.output.splitlines() if line.startswith("{")]
    return code, line


#: What each message names: the machine, and the cause in the words of ssh or sudo.
CAUSES = (
    r"nosudo: FAILED on 203\.0\.113\.\d+: sudo: a password is required",
    r"silent: FAILED ssh to 203\.0\.113\.\d+ failed: .*timed out",
    r"cut: FAILED ssh to 203\.0\.113\.\d+ failed: .*not responding",
    r"gone: FAILED ssh to 203\.0\.113\.99 failed: .*No route to host",
    r"nas: FAILED nas is only in storage",
    r"head: FAILED head and head-2 are listed as heads",
)
FIRST = {
    **dict.fromkeys(("good", "fine"), "added"),
    "nosudo": "no_sudo_there",
    **dict.fromkeys(("silent", "cut", "gone"), "ssh_failed"),
    "nas": "group_unknown",
    **dict.fromkeys(("head", "head-2"), "two_heads"),
}


def test_machines_that_fail_are_named_the_others_join_and_a_second_run_adds_the_rest() -> None:
    with lab("failing", ["good", "fine", "nosudo", "silent", "cut", "nas"]) as found:
        machines = found.machines
        allow_sudo(machines["nosudo"], "ALL")
        machines["silent"].drop_inbound()
        workers = [
            *map(found.line, ("good", "fine", "silent", "cut")),
            f"{found.line('nosudo')} ansible_user={USER}",
            "gone ansible_host=203.0.113.99",
        ]
        found.write("[headnode]", "head", "head-2", "[storage]", found.line("nas"), "[workernode]", *workers)
        adding = found.head.popen(ADD, name="first")
        cut_while_it_joins(machines["cut"])
        code, output = finished(adding, ADD_S)
        assert (code, results(output)) == (1, FIRST), adding.output
        assert [cause for cause in CAUSES if not re.search(cause, adding.output)] == [], adding.output
        before = found.nodes()

        allow_sudo(machines["nosudo"], "NOPASSWD: ALL")
        machines["silent"].run(["nft", "flush", "ruleset"])
        machines["cut"].run(["ip", "link", "set", "eth0", "up"])
        found.add("gone", 99)
        found.write("[headnode]", "head", "[workernode]", *workers, found.line("nas"))
        again = found.head.run(ADD, deadline_s=ADD_S)
        done = results(again.stdout)
        assert done.pop("cut") in ("added", "already"), again.stderr
        assert done == {
            "head": "head",
            **dict.fromkeys(("good", "fine"), "already"),
            **dict.fromkeys(("nosudo", "silent", "gone", "nas"), "added"),
        }
        found.wait_until_online()
        after = found.nodes()
        assert set(after) == {"head", *machines}
        assert [after[name]["id"] for name in ("good", "fine")] == [before[name]["id"] for name in ("good", "fine")]


def test_ctrl_c_ends_the_connections_and_a_second_run_adds_the_rest() -> None:
    names = ["one", "two", "three"]
    with lab("interrupted", names) as found:
        found.write("[workernode]", *map(found.line, names))
        adding = found.head.popen([*ADD, "--parallel", "1"], name="interrupted")
        found.head.wait_until(lambda: "two: …" in adding.output, 60, "the second machine")
        adding.send_signal(signal.SIGINT)
        assert adding.wait(20) == 130, adding.output
        assert "Traceback" not in adding.output
        assert not found.head.shell("pgrep -x ssh", check=False).stdout
        done = results(found.head.run(ADD, deadline_s=ADD_S).stdout)
        assert (done["one"], done["two"] in ("added", "already"), done["three"]) == ("already", True, "added")
        assert set(found.nodes()) == {"head", *names}
