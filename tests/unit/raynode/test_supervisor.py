from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace

import pytest

from meshray.errors import MeshrayError, RefusedError
from meshray.home import Home
from meshray.linux.user import User
from meshray.model.address import Endpoint
from meshray.model.ray_ports import RayPorts
from meshray.raynode import agent_port, node_table, preflight, supervisor, temp_folder
from meshray.raynode.dashboard_client import LiveNode
from meshray.raynode.processes import Process
from meshray.raynode.supervisor import RayNode
from meshray.raynode.tokens import RayTokens, epoch_of, new_instance
from tests.unit.raynode.test_command import HEAD, RAY, WORKER

ADA = User("ada", 61234, 61234, (61234,), Path("/nonexistent"))
HEAD_IP, WORKER_IP = IPv4Address("10.99.0.1"), IPv4Address("10.99.0.2")


@dataclass
class FakeMachine:
    """One machine with its Ray, and the head's Ray on another, from the supervisor's point of view."""

    pid: int | None = None
    mark: str = ""
    starts: int = 0
    exit_code: int | None = None
    gcs: bool = True
    alive: list[LiveNode] = field(default_factory=list)
    blocked_by: MeshrayError | None = None
    refuses: bool = False
    #: The raylet ended, `ray start` did not.
    hollow: bool = False
    without_raylet: bool = False
    raylets: list[int] = field(default_factory=lambda: [2000])
    temp_folder: Path | None = None
    written_ports: list[tuple[list[int], int]] = field(default_factory=list)
    age_s: float | None = None
    argv: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    # The process, as `ManagedProcess` shows it.

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        mark: str = "",
        user: User | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.starts += 1
        self.pid, self.mark, self.argv, self.env = 1000 + self.starts, mark, argv, env

    async def stop(self, grace_s: float = 10) -> None:
        self.die()

    def die(self) -> None:
        self.pid, self.mark, self.hollow = None, "", False

    # The machine and the network.

    async def gcs_answers(self, gcs: Endpoint, timeout_s: float = 1.0) -> bool:
        return self.gcs

    async def live_nodes(self, dashboard: Endpoint, token: str | None, timeout_s: float) -> list[LiveNode] | None:
        if self.refuses:
            raise RefusedError("ray_token_refused", "not this token")
        return self.alive

    def write_port(self, raylets: list[int], port: int, user: User) -> bool:
        self.written_ports.append((raylets, port))
        return bool(raylets)

    def require_free(self, ports: RayPorts, *, head: bool, node_ip: IPv4Address) -> None:
        if self.blocked_by:
            raise self.blocked_by

    def listed(self, ip: IPv4Address, started: float | None = None) -> None:
        self.alive.append(LiveNode(ip, time.time() if started is None else started, {"CPU": 1.0}))


class NoFamily:
    """No real processes exist here."""

    def __init__(self, machine: FakeMachine, leader: int) -> None:
        self._machine = machine
        self.leader = leader

    def raylets(self) -> list[int]:
        return self._machine.raylets

    def is_broken(self) -> bool:
        return self._machine.hollow

    def has_no_raylet(self) -> bool:
        return self._machine.without_raylet

    def age_s(self) -> float | None:
        return self._machine.age_s

    def scan(self) -> frozenset[Process]:
        return frozenset()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    machine = FakeMachine()
    monkeypatch.setattr(supervisor, "_REPORT_S", 0.0)
    monkeypatch.setattr(supervisor, "ManagedProcess", lambda pid_file: machine)
    monkeypatch.setattr(agent_port, "write_port", machine.write_port)
    monkeypatch.setattr(supervisor, "gcs_answers", machine.gcs_answers)
    monkeypatch.setattr(node_table, "live_nodes", machine.live_nodes)
    monkeypatch.setattr(supervisor, "Family", partial(NoFamily, machine))
    monkeypatch.setattr(preflight, "require_free", machine.require_free)
    monkeypatch.setattr(temp_folder, "find_temp_folder", lambda environ, user: machine.temp_folder)
    return machine


@pytest.fixture
def instances() -> list[str]:
    return []


def node(tmp_path: Path, instances: list[str], *, head: bool = False, ports: RayPorts | None = None) -> RayNode:
    plan = replace(HEAD if head else WORKER, token_path=None, ports=ports or RayPorts())
    return RayNode(RAY, plan, Home(tmp_path, tmp_path), ADA, tokens=RayTokens({1: ""}), on_instance=instances.append)


async def test_a_worker_starts_when_its_head_is_there(
    machine: FakeMachine, tmp_path: Path, instances: list[str]
) -> None:
    worker = node(tmp_path, instances)
    await worker.step()
    assert (worker.state, machine.pid) == ("waiting", None)
    worker.head_instance("a")
    machine.gcs = False
    await worker.step()
    assert (worker.state, worker.last_error) == ("waiting", "the head's Ray does not answer over the overlay")
    machine.gcs = True
    await worker.step()
    assert (worker.state, machine.mark) == ("starting", "a")
    machine.listed(WORKER_IP)
    await worker.step()
    assert (worker.state, worker.last_error) == ("running", "")


async def test_ray_gets_a_folder_of_its_own_where_the_usual_one_is_anothers(
    machine: FakeMachine, tmp_path: Path, instances: list[str]
) -> None:
    worker = node(tmp_path, instances)
    worker.head_instance("a")
    await worker.step()
    assert not [word for word in machine.argv if word.startswith("--temp-dir")]
    machine.die()
    machine.temp_folder = Path("/tmp/ray-61234")
    other = node(tmp_path, instances)
    other.head_instance("a")
    await other.step()
    assert machine.argv[-1] == "--temp-dir=/tmp/ray-61234"


async def test_a_raylets_agent_port_is_set_once_and_only_then_the_head_is_queried(
    machine: FakeMachine, tmp_path: Path, instances: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_RAYLET_POLL_S", 0.0)
    machine.raylets = []
    worker = node(tmp_path, instances, ports=RayPorts.of({"dashboard_agent_listen": 8600}))
    worker.head_instance("a")
    await worker.step()
    machine.listed(WORKER_IP)
    await worker.step()
    assert (worker.state, machine.written_ports) == ("starting", [([], 8600)])
    machine.raylets = [2000]
    await worker.step()
    await worker.step()
    assert (worker.state, machine.written_ports[1:]) == ("running", [([2000], 8600)])


async def test_a_head_looks_for_its_raylet_less_often_than_for_its_gcs(
    machine: FakeMachine, tmp_path: Path, instances: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(supervisor, "time", SimpleNamespace(monotonic=lambda: now, time=time.time))
    machine.gcs, machine.raylets = False, []
    head = node(tmp_path, instances, head=True)
    await head.step()
    for _ in range(20):
        assert await head.step() == pytest.approx(0.1)
        now += 0.1
    assert len(machine.written_ports) in (10, 11)
    machine.gcs, machine.raylets = True, [2000]
    now += 0.1
    await head.step()
    assert (machine.written_ports[-1][0], instances) == ([2000], [machine.mark])


async def test_a_process_before_this_one_does_not_count(
    machine: FakeMachine, tmp_path: Path, instances: list[str]
) -> None:
    worker = node(tmp_path, instances)
    worker.head_instance("a")
    machine.listed(WORKER_IP, started=time.time() - 60)
    await worker.step()
    await worker.step()
    assert worker.state == "starting"


async def test_ray_that_runs_is_adopted(machine: FakeMachine, tmp_path: Path, instances: list[str]) -> None:
    machine.pid, machine.mark = 77, "a"
    machine.listed(WORKER_IP, started=1.0)
    worker = node(tmp_path, instances)
    await worker.step()
    worker.head_instance("a")
    await worker.step()
    assert (worker.state, machine.pid, machine.starts) == ("running", 77, 0)


async def test_a_raylet_that_ended_while_there_was_no_agent_is_missed(
    machine: FakeMachine, tmp_path: Path, instances: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.pid, machine.mark, machine.without_raylet, machine.age_s = 77, "a", True, 20.0
    worker = node(tmp_path, instances)
    worker.head_instance("a")
    await worker.step()
    assert (machine.pid, machine.starts) == (77, 0), "it may still be starting"
    machine.age_s = 61.0
    monkeypatch.setattr(supervisor, "_REPORT_S", 60.0)
    await worker.step()
    assert machine.pid == 77, "it may still say why"
    monkeypatch.setattr(supervisor, "_REPORT_S", 0.0)
    await worker.step()
    assert machine.pid is None and "ray start still ran" in worker.last_error


async def test_a_worker_of_the_heads_previous_instance_restarts(
    machine: FakeMachine, tmp_path: Path, instances: list[str]
) -> None:
    machine.pid, machine.mark = 77, "a"
    worker = node(tmp_path, instances)
    worker.head_instance("b")
    await worker.step()
    assert machine.pid is None
    await worker.step()
    assert (machine.mark, machine.starts) == ("b", 1)


async def test_a_worker_follows_the_mesh_to_another_head(
    machine: FakeMachine, tmp_path: Path, instances: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mesh may get a head with another address: KubeRay replaces the head's pod."""
    dialled: list[str] = []

    async def answers(gcs: Endpoint) -> bool:
        dialled.append(gcs.host)
        return True

    async def live_nodes(dashboard: Endpoint, token: str | None, timeout_s: float) -> list[LiveNode]:
        dialled.append(dashboard.host)
        return []

    monkeypatch.setattr(supervisor, "gcs_answers", answers)
    monkeypatch.setattr("meshray.raynode.node_table.live_nodes", live_nodes)
    machine.pid, machine.mark = 77, "a"
    worker = node(tmp_path, instances)
    worker.head_instance("a")
    worker.head_at(IPv4Address("10.99.0.9"))
    await worker.step()
    assert machine.pid == 77, "until the other head's Ray runs"
    worker.head_instance("b")
    await worker.step()
    await worker.step()
    assert (machine.mark, machine.starts) == ("b", 1)
    assert set(dialled) == {"10.99.0.9"}
    assert worker.now.plan.head_ip == IPv4Address("10.99.0.9")


async def test_rays_token_changes_with_the_heads_next_start(
    machine: FakeMachine, tmp_path: Path, instances: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RayNode, "_write_token", lambda node, path, token: path.write_text(token))
    path = tmp_path / "ray_token"
    plan = replace(HEAD, token_path=path)
    head = RayNode(
        RAY, plan, Home(tmp_path, tmp_path), ADA, tokens=RayTokens({1: "first"}), on_instance=instances.append
    )
    await head.step()
    assert (path.read_text(), head.token, epoch_of(machine.mark)) == ("first", "first", 1)
    head.hold_tokens({1: "first", 2: "second"})
    await head.step()
    assert (path.read_text(), head.token) == ("first", "first"), "as long as this Ray runs"
    assert machine.starts == 1
    await head.stop()
    await head.step()
    assert (path.read_text(), head.token, epoch_of(machine.mark)) == ("second", "second", 2)
    await head.step()
    assert epoch_of(instances[-1]) == 2


async def test_a_worker_uses_the_token_of_its_heads_ray(
    machine: FakeMachine, tmp_path: Path, instances: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RayNode, "_write_token", lambda node, path, token: path.write_text(token))
    path = tmp_path / "ray_token"
    plan = replace(WORKER, token_path=path)
    tokens = RayTokens({1: "first", 2: "second"})
    worker = RayNode(RAY, plan, Home(tmp_path, tmp_path), ADA, tokens=tokens, on_instance=instances.append)
    worker.head_instance("0123456789abcdef")
    await worker.step()
    assert path.read_text() == "first"
    third = new_instance(3)
    worker.head_instance(third)
    await worker.step()
    await worker.step()
    assert (machine.pid, worker.state) == (None, "waiting")
    assert "has not sent the token" in worker.last_error
    worker.hold_tokens({2: "second", 3: "third"})
    await worker.step()
    assert (path.read_text(), worker.token, machine.mark) == ("third", "third", third)


async def test_a_dead_ray_waits_for_its_backoff_and_reports_the_reason(
    machine: FakeMachine, tmp_path: Path, instances: list[str]
) -> None:
    head = node(tmp_path, instances, head=True)
    await head.step()
    (tmp_path / "log").mkdir()
    (tmp_path / "log/ray.log").write_text("Error: No such option: --num-cpu\n")
    machine.die()
    delay = await head.step()
    assert head.state == "backoff: No such option: --num-cpu"
    assert head.now.ended_because == "No such option: --num-cpu"
    assert head.now.ended_at is not None
    assert 0 <= time.monotonic() - head.now.ended_at < 60
    assert (machine.starts, 0 < delay <= 1) == (1, True)


async def test_a_drained_ray_that_ended_stays_away_until_it_may_come_back(
    machine: FakeMachine, tmp_path: Path, instances: list[str]
) -> None:
    worker = node(tmp_path, instances)
    worker.head_instance("a")
    await worker.step()
    machine.listed(WORKER_IP)
    await worker.step()
    worker.drained(True)
    await worker.step()
    assert (worker.state, machine.pid) == ("running", 1001)
    machine.die()
    for _ in range(3):
        await worker.step()
        assert (worker.state, worker.last_error, machine.starts) == ("drained", "", 1)
    worker.drained(False)
    await worker.step()
    assert (worker.state, machine.starts) == ("starting", 2)


@pytest.mark.parametrize("drained", [False, True])
async def test_a_ray_start_whose_raylet_ended_is_ended_too(
    machine: FakeMachine, tmp_path: Path, instances: list[str], drained: bool
) -> None:
    worker = node(tmp_path, instances)
    worker.head_instance("a")
    await worker.step()
    machine.listed(WORKER_IP)
    await worker.step()
    worker.drained(drained)
    machine.hollow = True
    assert await worker.step() == 0
    assert machine.pid is None
    await worker.step()
    assert worker.state.partition(":")[0] == ("drained" if drained else "backoff")


async def test_a_head_reports_each_ray_instance(machine: FakeMachine, tmp_path: Path, instances: list[str]) -> None:
    head = node(tmp_path, instances, head=True)
    machine.gcs = False
    await head.step()
    await head.step()
    assert instances == []
    machine.gcs = True
    await head.step()
    assert instances == [machine.mark]
    first = machine.mark
    machine.die()
    await head.step()
    assert instances == [first, ""]


async def test_nothing_starts_if_a_port_is_in_use(machine: FakeMachine, tmp_path: Path, instances: list[str]) -> None:
    machine.blocked_by = MeshrayError("port_in_use", "Ray's GCS needs TCP port 6379, which redis (pid 8) has")
    head = node(tmp_path, instances, head=True)
    await head.step()
    assert head.state == "backoff: Ray's GCS needs TCP port 6379, which redis (pid 8) has"
    assert machine.starts == 0


async def test_a_refused_token_is_reported_and_ends_nothing(
    machine: FakeMachine, tmp_path: Path, instances: list[str]
) -> None:
    head = node(tmp_path, instances, head=True)
    await head.step()
    machine.refuses = True
    await head.step()
    assert (head.state, head.last_error, machine.pid) == ("starting", "not this token", 1001)


async def test_stop_ends_ray_and_withdraws_the_instance(
    machine: FakeMachine, tmp_path: Path, instances: list[str]
) -> None:
    head = node(tmp_path, instances, head=True)
    await head.step()
    await head.step()
    await head.stop()
    assert (machine.pid, instances[-1]) == (None, "")


async def test_another_users_ray_gets_their_home(machine: FakeMachine, tmp_path: Path, instances: list[str]) -> None:
    await node(tmp_path, instances, head=True).step()
    assert machine.env["HOME"] == "/nonexistent"
    assert "--head" in machine.argv
