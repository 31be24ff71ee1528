"""Ray's ports after `--`: checked before any enrolment, stored by the mesh or by the node, and shown."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from meshray.cli import membership_checks
from meshray.cli.commands import join as join_module
from meshray.cli.commands.dashboard import DashboardResult
from meshray.cli.commands.status import StatusResult
from meshray.coordinator.sqlite_store import SqliteStore
from meshray.errors import MeshrayError
from meshray.model.environment import Environment
from meshray.model.ray_ports import RayPorts
from meshray.node.enrolment import Enrolment
from meshray.node.map_cache import load_map
from meshray.protocol.answers import Dashboard
from meshray.protocol.codec import convert
from meshray.protocol.status import Status
from meshray.runtime.rootless.runtime import Rootless
from tests.unit.cli.examples import BY_COMMAND
from tests.unit.cli.fakes import FakeAgent, Outcome, type_in
from tests.unit.cli.test_bring_up import TOKEN, Machine, machine
from tests.unit.raynode.test_command import RAY

__all__ = ["machine"]


@pytest.fixture(autouse=True)
def with_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership_checks, "look_for_ray", lambda *_, **__: RAY)


@pytest.fixture
def taken() -> Iterator[int]:
    """Return a port that this process uses."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def init(machine: Machine, *words: str) -> Outcome:
    return machine.type_in("init", "--name", "lab", "--advertise", "192.0.2.1", *words)


def join(machine: Machine, *words: str) -> Outcome:
    return machine.type_in("join", TOKEN.encode(), "--name", "gpu-1", *words)


def error_of(outcome: Outcome) -> str:
    return str(json.loads(outcome.out)["error"]["code"])


def test_init_keeps_the_meshs_ports_with_the_mesh_and_its_own_with_the_node(machine: Machine) -> None:
    words = ("--port=6380", "--dashboard-port=8266", "--ray-client-server-port=10101", "--metrics-export-port=8500")
    assert init(machine, "--", *words, "--num-cpus=2").code == 0
    store = SqliteStore.open(machine.home.database)
    chosen = {"gcs": 6380, "dashboard": 8266, "ray_client_server": 10101}
    assert store.settings().mesh.ray_ports == chosen
    assert store.load().map.mesh.ray_ports == chosen
    store.close()
    mesh_map = load_map(machine.home)
    assert (str(mesh_map.gcs), str(mesh_map.dashboard)) == ("10.99.0.1:6380", "10.99.0.1:8266")
    assert Enrolment.load(machine.home).ray_ports == {"metrics_export": 8500}


def test_a_hub_sets_the_ports_of_the_future_head_and_no_other_ray_arguments(machine: Machine) -> None:
    for word in ("--num-cpus=2", "--metrics-export-port=8500"):
        refused = machine.type_in("init", "--hub-only", "--json", "--", "--port=6380", word)
        assert (refused.code, error_of(refused)) == (2, "hub_only_without_ray")
    assert init(machine, "--hub-only", "--", "--port=6380").code == 0
    assert load_map(machine.home).mesh.ray_ports == {"gcs": 6380}
    assert Enrolment.load(machine.home).ray_args == ()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--metrics-export-port=http",), "bad_port"),
        (("--metrics-export-port=80",), "bad_port"),
        (("--metrics-export-port=20101",), "ports_clash"),
        (("--metrics-export-port=10500",), "ports_clash"),
        (("--metrics-export-port=51888",), "ports_clash"),
        (("--metrics-export-port=51889",), "ports_clash"),
        (("--worker-port-list=8500,8501",), "owned_option"),
    ],
)
def test_ports_that_cannot_be_are_refused_before_anything_is_begun(
    machine: Machine, words: tuple[str, ...], code: str
) -> None:
    for outcome in (init(machine, "--json", "--", *words), join(machine, "--json", "--", *words)):
        assert (outcome.code, error_of(outcome)) == (2, code)
    assert (machine.done, machine.home.state.exists()) == ([], False)


def test_a_worker_cannot_choose_for_the_mesh(machine: Machine) -> None:
    outcome = join(machine, "--", "--dashboard-port=8266")
    assert outcome.code == 2
    assert "--dashboard-port cannot be chosen here: it is the same in the whole mesh" in outcome.err
    assert machine.done == []


def test_a_job_script_with_ports_that_cannot_be_is_refused_before_it_waits_in_a_queue() -> None:
    assert "--metrics-export-port=8500" in type_in("render", "slurm", "--ray-arg=--metrics-export-port=8500").out
    for word in ("--port=6380", "--metrics-export-port=20101", "--head"):
        assert type_in("render", "slurm", f"--ray-arg={word}").code == 2


def test_a_port_in_use_is_named_and_nothing_is_enrolled(machine: Machine, taken: int) -> None:
    for outcome in (
        init(machine, "--", f"--port={taken}"),
        join(machine, "--", f"--metrics-export-port={taken}"),
    ):
        assert outcome.code == 1
        assert f"needs TCP port {taken}, which " in outcome.err
        assert "(pid " in outcome.err
    assert (machine.done, machine.home.state.exists()) == ([], False)
    assert join(machine, "--", "--metrics-export-port=8500").code == 0
    assert machine.done == ["enrol", "start"]


def test_without_root_the_machines_own_ports_do_not_conflict(
    machine: Machine, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rootless, "preflight", lambda self, console: "meshray-engine, without root")
    assert join(machine, "--rootless", "--", f"--metrics-export-port={taken}").code == 0


def test_a_later_head_checks_the_ports_of_the_mesh(
    machine: Machine, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join_module, "request_environment", lambda *_: Environment(ray_ports={"gcs": taken}))
    outcome = join(machine, "--head")
    assert outcome.code == 1
    assert f"Ray's GCS needs TCP port {taken}" in outcome.err
    outcome = join(machine, "--head", "--", f"--metrics-export-port={taken}")
    assert (outcome.code, f"--metrics-export-port and --port would both have port {taken}" in outcome.err) == (2, True)
    assert machine.done == []


def test_init_again_with_other_ports_is_another_mesh(machine: Machine) -> None:
    assert init(machine, "--", "--port=6380").code == 0
    assert json.loads(machine.type_in("init", "--json", "--", "--port=6380").out)["already"]
    assert json.loads(machine.type_in("init", "--json").out)["already"]
    refused = machine.type_in("init", "--json", "--", "--port=6381")
    assert (refused.code, error_of(refused)) == (1, "already_enrolled")


def test_damaged_ports_in_node_json_are_reported(machine: Machine) -> None:
    join(machine, "--", "--metrics-export-port=8500")
    damaged = machine.home.enrolment.read_text().replace("=8500", "=85000")
    machine.home.enrolment.write_text(damaged)
    with pytest.raises(MeshrayError, match="--metrics-export-port '85000' is not a port") as caught:
        Enrolment.load(machine.home)
    assert caught.value.code == "state_damaged"


def test_wide_status_shows_what_is_not_the_default() -> None:
    shown = BY_COMMAND["status"]
    assert isinstance(shown, StatusResult)
    rows = replace(shown, wide=True).text().splitlines()
    assert any(row.endswith("RAY PORTS") for row in rows)
    assert any(row.startswith("head") and row.endswith("default") for row in rows)
    assert any(row.startswith("gpu-1") and row.endswith("metrics export 8500") for row in rows)
    # An agent of an older release reports none, a newer one may report more.
    status = {**shown.to_json(), "nodes": [{"name": "a", "ray": {}}, {"name": "b", "ray": {"ports": {"later": 1}}}]}
    assert replace(shown, answer=convert(status, Status), wide=True).text()


def test_dashboard_shows_the_ports_that_were_chosen() -> None:
    ports = RayPorts.of({"gcs": 6380, "dashboard": 8266}).to_json(head=True)
    env = {"RAY_API_SERVER_ADDRESS": "http://10.99.0.1:8266"}
    agent = FakeAgent({"env": {"env": env, "person_uid": 0, "ray_ports": ports}})
    shown = type_in("dashboard", agent=agent).out
    assert "dashboard  http://10.99.0.1:8266" in shown
    assert "ssh -N -L 8266:10.99.0.1:8266" in shown
    assert shown.splitlines()[-1] == "ports      GCS 6380, dashboard 8266"
    assert json.loads(type_in("dashboard", "--json", agent=agent).out)["ports"] == ports
    answer = Dashboard("http://10.99.0.1:8265", "", "ssh", RayPorts().to_json(head=True))
    assert "ports" not in DashboardResult(answer).text()
