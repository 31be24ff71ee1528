"""`meshray node add --from` over a real sshd on every machine: thirty machines at once, and machines that fail.

           switch wan 203.0.113.0/24
     ┌─────────────┬──────┴──────┬─────── …
   head          gpu-01        gpu-02
203.0.113.10   203.0.113.101  203.0.113.102
logs in to all others as root
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.lab.host import Host
from tests.lab.test_ssh import MESHRAY, answer, authorise
from tests.lab.world import Switch, World

MACHINES = 30
#: About half of this is measured on a free machine with two cores; other tests run beside this one.
MANY_S = 240
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


def test_thirty_machines_become_nodes_with_one_command() -> None:
    names = [f"gpu-{number:02}" for number in range(1, MACHINES + 1)]
    with lab("many", names) as found:
        found.write("[headnode]", "head", "[workernode]", *map(found.line, names))
        added = found.head.run([*ADD, "--parallel", "12"], deadline_s=MANY_S)
        assert results(added.stdout) == {"head": "head", **dict.fromkeys(names, "added")}, added.stderr
        assert len(set(re.findall(r"^(gpu-\d\d): ok \1, 10\.99\.0\.\d+ ", added.stderr, re.MULTILINE))) == MACHINES
        found.wait_until_online()
        assert set(found.nodes()) == {"head", *names}
        assert found.head.can_reach(found.nodes()[names[-1]]["ip"], deadline_s=5)


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
