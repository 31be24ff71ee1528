"""The plan of this node's Ray: the mesh's ports come from the map, the node's own from its enrolment."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from meshray.agent.ray.local_ray import LocalRay, find_local_ray, ray_plan
from meshray.doctor.ray.dial import ray_targets
from meshray.errors import MeshrayError, RefusedError
from meshray.firewall import decide
from meshray.firewall.closing import contains
from meshray.home import Home
from meshray.linux.user import User
from meshray.model.node import HEAD, Node, Versions
from meshray.model.ray_state import RayState
from meshray.raynode.command import RayPlan, start_command
from meshray.raynode.dashboard_client import LiveNode
from meshray.raynode.supervisor import RayNode
from meshray.raynode.tokens import RayTokens, new_instance
from meshray.raynode.versions import RayInstallation
from tests.unit.agent.sample import HEAD_NODE, MAP, WORKER_A, WORKER_B, enrolment
from tests.unit.raynode.test_command import RAY

MESH_MAP = replace(
    MAP,
    mesh=replace(MAP.mesh, ray_ports={"gcs": 6380, "dashboard": 8266}),
    nodes={**MAP.nodes, WORKER_A.id: replace(WORKER_A, ray_ports={"metrics_export": 8500})},
)


def plan_of(me: Node, *args: str) -> RayPlan:
    mine = replace(enrolment(me), ray_args=args)
    return ray_plan(mine, me, HEAD_NODE, MESH_MAP, Home(Path("/var/lib/meshray"), Path("/run/meshray")))


def test_a_node_starts_ray_with_the_ports_of_the_mesh_and_its_own() -> None:
    plan = plan_of(WORKER_A, "--num-cpus=2", "--metrics-export-port", "8500")
    assert plan.extra_args == ("--num-cpus=2",)
    assert (plan.ports.gcs, plan.ports.metrics_export, plan.ports.node_manager) == (6380, 8500, 20101)
    assert start_command(RAY, plan).count("--metrics-export-port=8500") == 1
    # The ports that the head chose at init remain in its enrolment; the map decides.
    assert plan_of(HEAD_NODE, "--port=7000", "--num-cpus=2").ports.gcs == 6380


@pytest.mark.parametrize(
    ("me", "closed", "left"),
    [(HEAD_NODE, (6380, 8266, 8500), (6379, 8265, 20106)), (WORKER_A, (8500,), (20106, 6380))],
)
def test_the_guard_closes_the_ports_that_were_chosen(me: Node, closed: tuple[int, ...], left: tuple[int, ...]) -> None:
    wanted = decide(plan_of(me, "--metrics-export-port=8500").used_ports, [], never=[51888]).always
    assert [port for port in closed if not contains(wanted, port)] == []
    assert [port for port in left if contains(wanted, port)] == []


def test_other_nodes_dial_the_ports_that_a_node_has_chosen() -> None:
    def dialled(node: Node) -> dict[str, int]:
        targets = ray_targets(MESH_MAP.ports_of(node), head=HEAD in node.roles, workers=False)
        return {target.what: target.port for target in targets}

    nodes = MESH_MAP.nodes
    assert dialled(nodes[WORKER_A.id])["metrics"] == 8500
    assert dialled(nodes[WORKER_B.id])["metrics"] == 20106
    head = dialled(nodes[HEAD_NODE.id])
    assert (head["GCS"], head["dashboard"]) == (6380, 8266)


async def test_a_head_is_not_queried_before_its_token_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that joins holds the newest token. Right after `node rm` the head's Ray runs with the one before."""
    requests: list[str | None] = []

    async def table(
        dashboard: object, token: str | None, timeout_s: float, *, with_use: bool = False
    ) -> dict[IPv4Address, RayState]:
        requests.append(token)
        if token != "old":
            raise RefusedError("ray_token_refused", "the Ray dashboard does not accept this mesh's Ray token")
        return {}

    async def nodes(dashboard: object, token: str | None, timeout_s: float) -> list[LiveNode]:
        await table(dashboard, token, timeout_s)
        return []

    monkeypatch.setattr("meshray.raynode.node_table.node_table", table)
    monkeypatch.setattr("meshray.raynode.node_table.live_nodes", nodes)
    home, nobody = Home(tmp_path, tmp_path), User("nobody", 65534, 65534, (65534,), tmp_path)
    ray = RayNode(RAY, plan_of(WORKER_A), home, nobody, tokens=RayTokens({2: "new"}), on_instance=print)
    ray.head_instance(new_instance(1))
    assert (await ray.node_table(), await ray.live_nodes(), ray.failure, requests) == (None, None, "", [])
    ray.hold_tokens({1: "old", 2: "new"})
    assert (await ray.node_table(), await ray.live_nodes(), requests) == ({}, [], ["old", "old"])


def local_ray(me: Node, head: Versions, monkeypatch: pytest.MonkeyPatch) -> LocalRay | str:
    """Return the Ray of a node whose Ray another program starts; no Ray is beside meshray."""

    def find(explicit: object, environ: object, user: object) -> RayInstallation:
        raise MeshrayError("ray_missing", "there is none")

    monkeypatch.setattr("meshray.agent.ray.local_ray.find_ray", find)
    mesh_map = replace(MAP, nodes={**MAP.nodes, HEAD_NODE.id: replace(HEAD_NODE, versions=head)})
    home = Home(Path("/var/lib/meshray"), Path("/run/meshray"))
    return find_local_ray(home, replace(enrolment(me), external=True), mesh_map, {})


def test_another_programs_ray_needs_no_ray_beside_meshray(monkeypatch: pytest.MonkeyPatch) -> None:
    found = local_ray(WORKER_A, HEAD_NODE.versions, monkeypatch)
    assert isinstance(found, LocalRay)
    assert (found.external, found.installation, found.plan.head) == (True, None, False)


def test_only_a_worker_waits_for_the_heads_first_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    none_yet = Versions("0.1.0")
    assert local_ray(WORKER_A, none_yet, monkeypatch) == "the head of this mesh runs no Ray"
    found = local_ray(HEAD_NODE, none_yet, monkeypatch)
    assert isinstance(found, LocalRay)
    assert found.plan.head
