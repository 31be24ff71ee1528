"""The Ansible collection over a real sshd: a head and two workers become a mesh.

           switch wan 203.0.113.0/24
     ┌────────────────┼────────────────┐
   head             gpu-1            gpu-2
203.0.113.10     203.0.113.21     203.0.113.22
runs Ansible, logs in to all three as root
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import ansible_programs
from tests.lab.host import REPOSITORY, Host
from tests.lab.test_ssh import MESHRAY, answer, authorise
from tests.lab.world import World

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="ansible-core 2.19 needs Python 3.11")

ADDRESSES = {"head": "203.0.113.10", "gpu-1": "203.0.113.21", "gpu-2": "203.0.113.22"}
INVENTORY = f"""
[headnode]
head ansible_host={ADDRESSES["head"]}
[workernode]
gpu-1 ansible_host={ADDRESSES["gpu-1"]}
gpu-2 ansible_host={ADDRESSES["gpu-2"]}
[all:vars]
ansible_user=root
ansible_python_interpreter=/usr/bin/python3
node_install=false
node_program={MESHRAY}
node_options=["--no-ray"]
"""
PLAY_DEADLINE_S = 240


class Place:
    """Three hosts, and Ansible on the first."""

    def __init__(self, world: World) -> None:
        wan = world.switch("wan", "203.0.113.0/24")
        self.hosts = {name: world.host(name, wan, address) for name, address in ADDRESSES.items()}
        for host in self.hosts.values():
            authorise(host, self.head)
        self.head.run(["sh", "-c", "cat > /root/hosts.ini"], stdin=INVENTORY)
        render = ["meshray", "render", "ansible"]
        self.head.run([*render, "--collection", "-o", "/root/mesh.tgz"], cwd=REPOSITORY)
        self.head.run([*render, "-o", "/root/site.yml"], cwd=REPOSITORY)
        self.head.shell("mkdir -p ~/.ansible/collections && tar -xzf /root/mesh.tgz -C ~/.ansible/collections")

    @property
    def head(self) -> Host:
        return self.hosts["head"]

    def play(self, *words: str, playbook: str = "/root/site.yml") -> dict[str, dict[str, int]]:
        """Run a playbook; return the counts of each machine."""
        environ = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_HOST_KEY_CHECKING": "False"}
        command = [str(ansible_programs.program("ansible-playbook")), "-i", "/root/hosts.ini", playbook, *words]
        done = self.head.run(command, env=environ, check=False, deadline_s=PLAY_DEADLINE_S, cwd="/root")
        stats = ansible_programs.counts_of(done.stdout + done.stderr)
        assert not [counts for counts in stats.values() if counts["failed"] or counts["unreachable"]], done.stdout
        return stats

    def nodes(self) -> dict[str, dict[str, Any]]:
        return {node["name"]: node for node in answer(self.head, "node", "list")["nodes"]}


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    ansible_programs.make()
    with World("ansible", keep=[ansible_programs.CACHE, Path(sys.prefix)]) as world:
        yield Place(world)


def changed(stats: dict[str, dict[str, int]]) -> dict[str, int]:
    return {name: counts["changed"] for name, counts in stats.items()}


def test_check_mode_shows_the_changes_and_makes_none(place: Place) -> None:
    assert changed(place.play("--check", "--diff")) == {"head": 1, "gpu-1": 2, "gpu-2": 2}
    assert not [name for name, host in place.hosts.items() if host.path("/var/lib/meshray/node.json").exists()]


def test_three_machines_become_a_mesh(place: Place) -> None:
    place.play()
    place.head.wait_until(lambda: all(node["online"] for node in place.nodes().values()), 30, "all nodes")
    assert set(place.nodes()) == set(ADDRESSES)


def test_a_second_run_changes_nothing(place: Place) -> None:
    before = place.nodes()
    assert changed(place.play(playbook="meshray.mesh.site")) == dict.fromkeys(ADDRESSES, 0)
    assert {name: node["id"] for name, node in place.nodes().items()} == {n: node["id"] for n, node in before.items()}


def test_a_wiped_machine_comes_back_under_its_name_and_address(place: Place) -> None:
    before, worker = place.nodes()["gpu-2"], place.hosts["gpu-2"]
    answer(worker, "down")
    worker.shell("rm -rf /var/lib/meshray /run/meshray")
    place.head.wait_until(lambda: not place.nodes()["gpu-2"]["online"], 60, "the end of the old node")
    assert changed(place.play()) == {"head": 0, "gpu-1": 0, "gpu-2": 2}
    after = place.nodes()["gpu-2"]
    assert (after["ip"], after["id"] != before["id"]) == (before["ip"], True)
    assert len(place.nodes()) == 3
