"""The unit under a real systemd: it starts the node, restarts a killed agent, and ends with down."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.host import Host
from tests.lab.world import World
from tests.vm.systemd import Systemd, can_run, systemd_on

#: Without KVM a Python program takes seconds to start.
DEADLINE_S = 600

pytestmark = pytest.mark.skipif(not can_run(), reason="missing: systemd and the unified cgroup hierarchy")


@pytest.fixture
def head() -> Iterator[Host]:
    with World("unit") as world:
        yield world.host("head", world.switch("wan", "203.0.113.0/24"), "203.0.113.10")


@pytest.fixture
def systemd(head: Host) -> Iterator[Systemd]:
    with systemd_on(head) as inside:
        yield inside


def test_processes_that_the_agent_started_outlive_it(head: Host, systemd: Systemd) -> None:
    init = ["meshray", "init", "--no-ray", "--name", "head", "--advertise", str(head.address), "--json"]
    systemd.run(init, deadline_s=DEADLINE_S)
    assert systemd.property("meshray", "ActiveState") == "active"
    agent = systemd.property("meshray", "MainPID")
    coordinator = systemd.run(["pgrep", "-f", "meshray.coordinator"]).stdout
    link = systemd.run(["ip", "-json", "link", "show", "meshray0"]).json()[0]["ifindex"]

    systemd.run(["kill", "-KILL", agent])
    head.wait_until(
        lambda: (
            systemd.property("meshray", "NRestarts") == "1" and systemd.property("meshray", "SubState") == "running"
        ),
        DEADLINE_S,
        "the unit running again",
    )
    assert systemd.property("meshray", "MainPID") != agent
    assert systemd.run(["pgrep", "-f", "meshray.coordinator"]).stdout == coordinator
    assert systemd.run(["ip", "-json", "link", "show", "meshray0"]).json()[0]["ifindex"] == link

    systemd.run(["meshray", "down"], deadline_s=DEADLINE_S)
    assert systemd.property("meshray", "ActiveState") == "inactive"
    assert systemd.property("meshray", "Result") == "success"
    assert systemd.run(["pgrep", "-f", "meshray"], check=False).stdout == ""
