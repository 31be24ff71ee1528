"""The Ansible collection: ansible-lint accepts it, and a real ansible-playbook runs it with a fake meshray.

The lab tier runs it over a real sshd, with the real meshray.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path
from textwrap import dedent

import pytest

from tests import ansible_programs
from tests.lab.host import REPOSITORY

#: A fake meshray with a mesh in a folder, which the head and the workers share, and a state folder for each machine.
MESHRAY = """\
    import json, os, pathlib, sys
    home, mesh = pathlib.Path(os.environ["MESHRAY_HOME"]), pathlib.Path(os.environ["FAKE_MESH"])
    words = sys.argv[1:]
    (mesh / "calls").open("a").write(f"{home.name}: {' '.join(words)}\\n")

    def answer(code=0, **fields):
        print(json.dumps({"schema": 1, **fields}))
        sys.exit(code)

    def fail(code, name, text):
        answer(code, error={"code": name, "message": text, "hint": ""})

    def name_of():
        return json.loads((home / "node.json").read_text())["name"]

    if words[0] == "status":
        if not (home / "up").exists():
            fail(5, "agent_down", "no agent runs here")
        answer(3, mesh="lab", self=name_of(), nodes=[{"name": name_of(), "ip": "10.99.0.2"}])
    if words[0] in ("init", "join"):
        name = words[words.index("--name") + 1]
        if words[0] == "join" and sys.stdin.read().strip() != f"token-{name}":
            fail(4, "token_unknown", "the token is unknown")
        (home / "node.json").write_text(json.dumps({"name": name}))
        (mesh / name).touch()
    if words[0] in ("init", "join", "up"):
        (home / "up").touch()
        answer(mesh="lab")
    if words[0] == "leave":
        (mesh / name_of()).unlink()
        (home / "node.json").unlink()
        (home / "up").unlink()
        answer(node="", unenrolled=True)
    if words[:2] == ["node", "list"]:
        online = os.environ.get("FAKE_ONLINE") == "1"
        answer(nodes=[{"name": path.name, "online": online} for path in mesh.iterdir() if path.name != "calls"])
    if words[:2] == ["token", "create"]:
        name = words[words.index("--name") + 1]
        if ("--replace" in words) != (mesh / name).exists():
            fail(4, "name_taken", "the name is taken")
        answer(token=f"token-{name}")
    """
INVENTORY = """\
[headnode]
head
[workernode]
gpu-1
gpu-2.example.org
[all:vars]
ansible_connection=local
ansible_python_interpreter={python}
node_install=false
node_program={program}
node_ray_args=["--num-cpus=1"]
"""
#: The modules find the state folder of their machine in the environment.
PLAYBOOK = """\
---
- name: Bring up the head
  hosts: headnode
  environment:
    MESHRAY_HOME: "{{ lookup('env', 'FAKE_HOMES') }}/{{ inventory_hostname_short }}"
  roles:
    - role: meshray.mesh.node
- name: Bring up the workers
  hosts: workernode
  environment:
    MESHRAY_HOME: "{{ lookup('env', 'FAKE_HOMES') }}/{{ inventory_hostname_short }}"
  roles:
    - role: meshray.mesh.node
"""


class Controller:
    """A machine with Ansible and the collection, and the machines of an inventory, which are folders."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.homes, self.mesh = folder, folder / "homes", folder / "mesh"
        self.mesh.mkdir()
        for name in ("head", "gpu-1", "gpu-2"):
            (self.homes / name).mkdir(parents=True)
        program = folder / "meshray"
        program.write_text(f"#!{sys.executable}\n" + dedent(MESHRAY))
        program.chmod(0o755)
        (folder / "hosts.ini").write_text(INVENTORY.format(python=sys.executable, program=program))
        (folder / "site.yml").write_text(PLAYBOOK)
        archive = folder / "mesh.tgz"
        render = [sys.executable, "-m", "meshray", "render", "ansible", "--collection", "-o", str(archive)]
        subprocess.run(render, check=True, cwd=REPOSITORY, timeout=60, stderr=subprocess.DEVNULL)
        with tarfile.open(archive) as tar:
            tar.extractall(folder / "collections", filter="data")

    @property
    def collection(self) -> Path:
        return self.folder / "collections/ansible_collections/meshray/mesh"

    def run(self, name: str, *words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        environ = {
            **os.environ,
            "PATH": f"{ansible_programs.place() / 'bin'}:{os.environ['PATH']}",
            "ANSIBLE_COLLECTIONS_PATH": str(self.folder / "collections"),
            "ANSIBLE_HOME": str(self.folder / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
            "FAKE_HOMES": str(self.homes),
            "FAKE_MESH": str(self.mesh),
            **more,
        }
        command = [str(ansible_programs.program(name)), *map(str, words)]
        return subprocess.run(
            command, cwd=self.folder, env=environ, capture_output=True, text=True, check=False, timeout=280
        )

    def play(self, *words: str, **more: str) -> dict[str, dict[str, int]]:
        """Run the playbook, and return the counts of each machine."""
        done = self.run("ansible-playbook", "-i", "hosts.ini", "site.yml", *words, **more)
        self.output = done.stdout + done.stderr
        return ansible_programs.counts_of(self.output)

    def calls(self) -> list[str]:
        """Return the commands of meshray since the last call, without those that only look."""
        file = self.mesh / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return [line for line in lines if "status" not in line and "node list" not in line]


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    if sys.version_info < (3, 11):
        pytest.skip("ansible-core 2.19 needs Python 3.11")
    ansible_programs.make()


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    return Controller(tmp_path)


def changed(stats: dict[str, dict[str, int]]) -> dict[str, int]:
    assert not [name for name, counts in stats.items() if counts["failed"] or counts["unreachable"]], stats
    return {name: counts["changed"] for name, counts in stats.items()}


def test_ansible_lint_accepts_the_collection_for_production(controller: Controller) -> None:
    subprocess.run(["git", "init", "--quiet"], check=True, cwd=controller.collection)
    done = controller.run("ansible-lint", "--offline", "--profile", "production", str(controller.collection))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_playbooks_are_valid(controller: Controller) -> None:
    rendered = controller.folder / "rendered.yml"
    render = [sys.executable, "-m", "meshray", "render", "ansible", "-o", str(rendered)]
    subprocess.run(render, check=True, cwd=REPOSITORY, timeout=60, stderr=subprocess.DEVNULL)
    for playbook in (rendered, controller.collection / "playbooks/site.yml"):
        done = controller.run("ansible-playbook", "--syntax-check", "-i", "hosts.ini", playbook)
        assert done.returncode == 0, done.stdout + done.stderr
    documented = controller.run("ansible-doc", "--json", "meshray.mesh.node", "meshray.mesh.token")
    assert set(json.loads(documented.stdout)) == {"meshray.mesh.node", "meshray.mesh.token"}, documented.stderr


def test_a_second_run_changes_nothing_and_a_wiped_machine_comes_back(controller: Controller) -> None:
    checked = changed(controller.play("--check", "--diff"))
    assert (checked, controller.calls()) == ({"head": 1, "gpu-1": 2, "gpu-2.example.org": 2}, [])
    assert "-state: absent\n+state: up\n" in controller.output
    changed(controller.play())
    assert sorted(controller.calls()) == [
        *("gpu-1: join - --json --name gpu-1 -- --num-cpus=1", "gpu-1: token create --name gpu-1 --ttl 1h --json"),
        *("gpu-2: join - --json --name gpu-2 -- --num-cpus=1", "gpu-2: token create --name gpu-2 --ttl 1h --json"),
        "head: init --json --name head -- --num-cpus=1",
    ]
    assert "token-gpu-1" not in controller.output
    assert changed(controller.play()) == {"head": 0, "gpu-1": 0, "gpu-2.example.org": 0}
    assert controller.calls() == []
    shutil.rmtree(controller.homes / "gpu-1")
    (controller.homes / "gpu-1").mkdir()
    (controller.homes / "head/up").unlink()
    assert changed(controller.play()) == {"head": 1, "gpu-1": 2, "gpu-2.example.org": 0}
    assert controller.calls() == [
        "head: up --json",
        "gpu-1: token create --name gpu-1 --ttl 1h --replace --json",
        "gpu-1: join - --json --name gpu-1 -- --num-cpus=1",
    ]


def test_a_running_node_keeps_its_name(controller: Controller) -> None:
    changed(controller.play())
    shutil.rmtree(controller.homes / "gpu-1")
    (controller.homes / "gpu-1").mkdir()
    stats = controller.play(FAKE_ONLINE="1")
    assert (stats["gpu-1"]["failed"], stats["gpu-2.example.org"]["failed"]) == (1, 0)
    assert stat.S_ISDIR((controller.homes / "gpu-1").stat().st_mode)
    assert not (controller.homes / "gpu-1/node.json").exists()
