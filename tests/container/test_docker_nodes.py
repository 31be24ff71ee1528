"""Nodes in containers on bridges that cannot reach each other, and a node on a host: one Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.container.conftest import BRIDGES, RAY_ARGS, Dock
from tests.lab.host import REPOSITORY

TOGETHER = ["head", *BRIDGES]


@pytest.fixture(scope="module")
def nodes(dock: Dock, worker_image: str) -> Iterator[Dock]:
    """Run one node in the plain base, which gets meshray, and one in the image of containers/Dockerfile."""
    dock.host.shell("mkdir /root/shared && echo hello > /root/shared/note")
    for name, image in zip(BRIDGES, ("base", worker_image), strict=True):
        options = ["--runtime=docker", f"--image={image}", f"--bridge={name}", f"--name={name}", "--json"]
        options += ["--volume=/root/shared:/data"]
        answer = dock.meshray(name, "join", *options, "-", "--", *RAY_ARGS, stdin=dock.token).json()
        assert answer["node"]["name"] == name
        assert answer["ray"]["alive"]
    yield dock
    for name in BRIDGES:
        dock.meshray(name, "leave", "--yes", check=False)


def test_objects_move_in_both_directions_between_isolated_containers(nodes: Dock) -> None:
    address = nodes.engine.docker(
        "inspect", "--format={{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", "meshray-blue"
    ).stdout.strip()
    ping = ("exec", "meshray-red", "ping", "-n", "-c1", "-W1")
    assert nodes.engine.docker(*ping, address, check=False).returncode == 1
    output = nodes.cluster.job("python", str(REPOSITORY / "tests/lab/pairs.py"), "--nodes=3", "--mebibytes=8", "--json")
    done = output.last_json()
    assert sorted(done["nodes"]) == sorted(TOGETHER)
    assert len(done["objects"]) == 6
    assert all(one["intact"] for one in done["objects"])


def test_the_token_is_not_visible_anywhere(nodes: Dock) -> None:
    answer = [nodes.engine.docker("inspect", f"meshray-{name}").stdout for name in BRIDGES]
    answer += [nodes.engine.docker("top", f"meshray-{name}", "-eo", "pid,args").stdout for name in BRIDGES]
    answer += [nodes.host.path(f"/root/{name}/container.json").read_text() for name in BRIDGES]
    assert all("container" in text or "meshray" in text for text in answer)
    assert not [text for text in answer if "meshray1_" in text or nodes.token[9:40] in text]


def test_a_node_answers_through_its_container(nodes: Dock) -> None:
    status = nodes.meshray("red", "status", "--json").json()
    assert status["self"] == "red"
    assert sorted(node["name"] for node in status["nodes"]) == sorted(TOGETHER)
    doctor = nodes.meshray("red", "doctor", "--json", check=False).json()
    assert {check["node"] for check in doctor["checks"]} >= {"red"}
    assert not [check for check in doctor["checks"] if check["status"] == "fail"]
    output = nodes.meshray("red", "run", "--", "python", "-", stdin="import socket; print(socket.gethostname())")
    assert output.stdout == "red\n"
    assert nodes.meshray("red", "run", "--", "cat", "/data/note").stdout == "hello\n"
    assert nodes.meshray("red", "run", "--", "sh", "-c", "exit 7", check=False).returncode == 7
    assert "Ray was started" in nodes.meshray("red", "logs").stdout
    nodes.meshray("red", "doctor", "--bundle", "/root/report.tar.gz", check=False)
    assert nodes.host.run(["tar", "tzf", "/root/report.tar.gz"]).stdout


def test_down_up_and_leave_from_outside(nodes: Dock) -> None:
    """Last of all: the nodes go."""

    def logged(name: str) -> str:
        return nodes.engine.docker("logs", f"meshray-{name}").stdout + nodes.meshray(name, "logs", check=False).stdout

    def inspected(name: str, what: str) -> str:
        return nodes.engine.docker("inspect", f"--format={what}", f"meshray-{name}").stdout.strip()

    assert nodes.meshray("blue", "down", "--json").json() == {"schema": 1, "node": "blue", "was_running": True}
    refused = nodes.meshray("blue", "status", "--json", check=False)
    assert (refused.returncode, refused.json()["error"]["code"]) == (5, "container_down")
    assert "going down" in nodes.meshray("blue", "logs").stdout
    assert nodes.meshray("blue", "up", "--json").json()["ray"]["alive"]
    # One leaves after the head has removed it, one after it went down.
    nodes.meshray("red", "down")
    nodes.head.run(["meshray", "node", "rm", "blue", "--yes"])
    nodes.head.wait_until(lambda: "was removed from its mesh" in logged("blue"), 20, "the end of blue's agent")
    assert inspected("blue", "{{.State.Running}} {{.RestartCount}}") == "true 0"
    refused = nodes.meshray("blue", "status", "--json", check=False)
    assert (refused.returncode, refused.json()["error"]["code"]) == (4, "node_removed"), refused
    for name in BRIDGES:
        left = nodes.meshray(name, "leave", "--yes", "--json").json()
        assert left == {"schema": 1, "node": name, "unenrolled": True}
        assert not nodes.host.path(f"/root/{name}").exists()
    assert nodes.engine.left() == {"containers": [], "volumes": [], "networks": sorted(BRIDGES)}
    listed = nodes.head.run(["meshray", "node", "list", "--json"]).json()["nodes"]
    assert [node["name"] for node in listed] == ["head"]
