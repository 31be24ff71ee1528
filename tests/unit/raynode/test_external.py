"""A Ray that another program starts: when its file exists, which token it names, and when it counts as running."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from meshray.errors import MeshrayError, RefusedError
from meshray.home import Home
from meshray.linux.user import User
from meshray.model.node import Versions
from meshray.raynode import external
from meshray.raynode.dashboard_client import LiveNode
from meshray.raynode.external import OFFERED, ExternalOptions, ExternalRay
from meshray.raynode.supervisor import DRAINED, RUNNING, WAITING
from meshray.raynode.tokens import RayTokens, epoch_of
from tests.unit.raynode.test_command import HEAD, WORKER

OLD, NEW = "old-token", "new-token"
VERSIONS = Versions("", "2.60.0", "3.11.7")
NODE_ID = "0123456789abcdef" * 3


@dataclass
class Machine:
    """What another program has started, and what was reported to the agent."""

    listens: bool | None = False
    rows: list[LiveNode] = field(default_factory=list)
    instances: list[str] = field(default_factory=list)
    versions: list[Versions] = field(default_factory=list)
    head_versions: Versions = VERSIONS
    #: What the head's dashboard answers; empty if it does not answer in time.
    dashboard_versions: Versions = VERSIONS
    refusal: str = ""
    refuses: bool = False
    #: The tokens with which the head's dashboard was asked.
    shown: list[str | None] = field(default_factory=list)

    def check(self) -> None:
        if self.refusal:
            raise MeshrayError("unguarded", self.refusal)

    def alive(self, ip: str, started: float = 2e9) -> None:
        self.listens, self.rows = True, [LiveNode(IPv4Address(ip), started, {"CPU": 1.0}, "n", NODE_ID)]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "state", tmp_path / "run")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()

    async def dial(ip: IPv4Address, port: int) -> tuple[None, object]:
        assert port == 20101
        if found.listens is None:
            raise asyncio.TimeoutError
        if not found.listens:
            raise ConnectionRefusedError(111, "refused")

        class Writer:
            def close(self) -> None:
                pass

        return None, Writer()

    async def gcs(gcs: object) -> bool:
        return bool(found.listens)

    async def nodes(dashboard: object, token: str | None, timeout_s: float) -> list[LiveNode]:
        found.shown.append(token)
        if found.refuses:
            raise RefusedError("token_refused", "the dashboard refuses the token")
        return list(found.rows)

    async def versions(dashboard: object, token: str | None, timeout_s: float) -> Versions:
        return found.dashboard_versions

    monkeypatch.setattr("meshray.linux.overlay_netns.open_connection", dial)
    monkeypatch.setattr(external, "gcs_answers", gcs)
    monkeypatch.setattr(external, "ray_versions", versions)
    monkeypatch.setattr("meshray.raynode.node_table.live_nodes", nodes)
    return found


def ray_of(machine: Machine, home: Home, *, head: bool, tokens: dict[int, str] | None = None) -> ExternalRay:
    options = ExternalOptions(
        on_instance=machine.instances.append,
        on_versions=machine.versions.append,
        head_versions=lambda: machine.head_versions,
        check_start=machine.check,
    )
    plan = replace(HEAD if head else WORKER, token_path=home.ray_token)
    return ExternalRay(None, plan, home, User.invoking({}), tokens=RayTokens(tokens or {1: OLD}), options=options)


def steps(ray: ExternalRay, number: int = 1) -> str:
    async def go() -> None:
        for _ in range(number):
            await ray.step()

    asyncio.run(go())
    return ray.now.state


def test_a_head_may_be_started_at_once(machine: Machine, home: Home) -> None:
    ray = ray_of(machine, home, head=True)
    assert steps(ray) == OFFERED
    assert home.ray_token.read_text() == OLD
    assert home.ray_token.stat().st_mode & 0o777 == 0o600
    assert home.ray_environment.stat().st_mode & 0o777 == 0o644
    assert OLD not in home.ray_environment.read_text()
    assert machine.instances == []
    assert ray.failure == ""


def test_an_alive_head_is_published_under_the_id_of_its_ray(machine: Machine, home: Home) -> None:
    ray = ray_of(machine, home, head=True, tokens={1: OLD, 3: NEW})
    steps(ray)
    machine.alive("10.99.0.1")
    assert steps(ray) == RUNNING
    assert machine.instances == [f"{NODE_ID[:16]}-3"]
    assert epoch_of(machine.instances[0]) == 3
    assert machine.versions == [VERSIONS]
    assert machine.shown == [NEW]

    # The agent's next process finds it under the same id.
    assert steps(ray_of(machine, home, head=True, tokens={1: OLD, 3: NEW})) == RUNNING
    assert machine.instances[1:] == machine.instances[:1]


@pytest.mark.parametrize("head", [True, False])
def test_versions_that_a_busy_head_does_not_answer_are_read_again(machine: Machine, home: Home, head: bool) -> None:
    ray = ray_of(machine, home, head=head)
    ray.head_instance("a" * 16)
    steps(ray)
    machine.head_versions = machine.dashboard_versions = Versions("")
    machine.alive("10.99.0.1" if head else "10.99.0.2")
    assert (steps(ray, 2), machine.versions) == (RUNNING, [])
    machine.head_versions = machine.dashboard_versions = VERSIONS
    assert (steps(ray, 3), machine.versions) == (RUNNING, [VERSIONS])


def test_a_running_heads_token_stays_until_its_ray_has_ended(machine: Machine, home: Home) -> None:
    steps(ray_of(machine, home, head=True))
    machine.alive("10.99.0.1")
    ray = ray_of(machine, home, head=True, tokens={1: OLD, 2: NEW})
    assert steps(ray, 2) == RUNNING
    assert home.ray_token.read_text() == OLD
    assert machine.instances == [NODE_ID[:16]]

    machine.listens = False
    assert steps(ray, 2) == OFFERED
    assert home.ray_token.read_text() == NEW
    assert machine.instances == [NODE_ID[:16], ""]


def test_a_worker_waits_for_the_heads_ray_and_its_token(machine: Machine, home: Home) -> None:
    ray = ray_of(machine, home, head=False)
    assert steps(ray) == WAITING
    assert not home.ray_environment.exists()
    ray.head_instance(f"{'a' * 16}-2")
    assert steps(ray) == WAITING
    ray.hold_tokens({1: OLD, 2: NEW})
    assert steps(ray) == OFFERED
    assert home.ray_token.read_text() == NEW
    assert ray.failure == ""

    machine.alive("10.99.0.2")
    assert steps(ray) == RUNNING
    assert (machine.versions, machine.instances) == ([VERSIONS], [])


def test_a_worker_gets_the_token_of_the_heads_next_ray(machine: Machine, home: Home) -> None:
    ray = ray_of(machine, home, head=False, tokens={1: OLD, 2: NEW})
    ray.head_instance("a" * 16)
    steps(ray)
    assert home.ray_token.read_text() == OLD
    ray.head_instance("")
    assert steps(ray) == WAITING
    assert not home.ray_environment.exists()
    ray.head_instance(f"{'b' * 16}-2")
    assert steps(ray) == OFFERED
    assert home.ray_token.read_text() == NEW


def test_a_raylet_that_was_there_before_does_not_count(machine: Machine, home: Home) -> None:
    """Ray lists a killed raylet as ALIVE until its patience is over, and the next one listens before it registers."""
    ray = ray_of(machine, home, head=False)
    ray.head_instance("a" * 16)
    steps(ray)
    machine.alive("10.99.0.2", started=1.0)
    assert steps(ray, 2) == OFFERED
    machine.alive("10.99.0.2")
    assert steps(ray) == RUNNING


def test_a_silent_port_changes_nothing(machine: Machine, home: Home) -> None:
    ray = ray_of(machine, home, head=False)
    ray.head_instance("a" * 16)
    machine.alive("10.99.0.2")
    assert steps(ray, 2) == RUNNING
    machine.listens = None
    assert steps(ray, 2) == RUNNING


def test_on_a_drained_node_no_ray_may_be_started(machine: Machine, home: Home) -> None:
    ray = ray_of(machine, home, head=False)
    ray.head_instance("a" * 16)
    steps(ray)
    ray.drained(True)
    assert steps(ray) == DRAINED
    assert not home.ray_environment.exists()
    ray.drained(False)
    assert steps(ray) == OFFERED


def test_where_ports_cannot_be_closed_no_ray_may_be_started(machine: Machine, home: Home) -> None:
    machine.refusal = "Ray's ports are open"
    ray = ray_of(machine, home, head=True)
    assert steps(ray) == WAITING
    assert ray.failure == "Ray's ports are open"
    assert not home.ray_environment.exists()
    machine.refusal = ""
    assert steps(ray) == OFFERED
    assert ray.failure == ""


def test_a_ray_that_ends_while_its_ports_cannot_be_closed_is_no_longer_running(machine: Machine, home: Home) -> None:
    ray = ray_of(machine, home, head=True)
    steps(ray)
    machine.alive("10.99.0.1")
    assert steps(ray) == RUNNING
    machine.refusal = "Ray's ports are open"
    assert steps(ray) == RUNNING
    assert not home.ray_environment.exists()  # Another one may not be started.
    machine.listens = False
    assert steps(ray) == WAITING
    assert ray.failure == "Ray's ports are open"
    assert machine.instances == [NODE_ID[:16], ""]
    machine.refusal = ""
    assert steps(ray) == OFFERED


def test_a_ray_with_another_token_is_reported_once_and_the_file_stays(
    machine: Machine, home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    """A user ran `ray start` without the file, which is needed to start Ray again."""
    ray = ray_of(machine, home, head=True)
    steps(ray)
    machine.alive("10.99.0.1")
    machine.refuses = True
    with caplog.at_level("INFO"):
        assert steps(ray, 5) == WAITING
    assert ray.failure == "the dashboard refuses the token"
    assert home.ray_environment.exists()
    assert len(caplog.records) == 1
    machine.refuses = False
    assert steps(ray) == RUNNING
    assert ray.failure == ray.last_error == ""


def test_the_end_of_the_agent_withdraws_the_file_and_leaves_the_token(machine: Machine, home: Home) -> None:
    ray = ray_of(machine, home, head=True)
    steps(ray)
    asyncio.run(ray.stop())
    assert not home.ray_environment.exists()
    assert home.ray_token.read_text() == OLD  # A running Ray reads it for each of its workers.


def test_without_a_ray_beside_meshray_no_node_is_unregistered(machine: Machine, home: Home) -> None:
    assert asyncio.run(ray_of(machine, home, head=True).unregister(["3f5c"], "it left")) is False
