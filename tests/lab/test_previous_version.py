"""Nodes of the previous version and of this one form a mesh and one Ray cluster, whichever of them the head runs.

           switch wan 192.88.99.0/24
 ┌────────────┬────────────┐
head         same        other        the versions of the workers, relative to the head's
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from functools import partial
from itertools import permutations
from pathlib import Path

import pytest

from tests.lab.cluster import UP_DEADLINE_S, Cluster
from tests.lab.host import REPOSITORY, Host
from tests.lab.previous import install_previous, use
from tests.lab.world import World

NODES = "import json, ray; ray.init('auto'); print(json.dumps(sum(node['Alive'] for node in ray.nodes())))"


@pytest.fixture(scope="module")
def programs() -> Iterator[dict[str, Path]]:
    folder = REPOSITORY / ".cache/previous"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield {"previous": install_previous(folder), "this": Path(sys.prefix) / "bin"}
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module", params=["previous", "this"])
def mesh(request: pytest.FixtureRequest, programs: dict[str, Path]) -> Iterator[Cluster]:
    """Yield a cluster whose head and first worker run the version of this name, the second worker the other one."""
    same = request.param
    other = next(version for version in programs if version != same)
    with World("previous") as world:
        wan = world.switch("wan", "192.88.99.0/24")
        hosts = [world.host(name, wan, f"192.88.99.{10 + n}") for n, name in enumerate(("head", "same", "other"))]
        for host, version in zip(hosts, (same, same, other), strict=True):
            use(host, programs[version])
        yield Cluster.start(hosts[0], hosts[1:])


def test_the_versions_differ(mesh: Cluster) -> None:
    """Otherwise this module would prove nothing."""
    where = "import meshray; print(meshray.__file__)"
    files = {host.run(["python", "-c", where]).stdout for host in (mesh.head, mesh.workers[1])}
    assert len(files) == 2, files


def test_every_node_reaches_every_other(mesh: Cluster) -> None:
    for one, two in permutations(mesh.hosts, 2):
        one.wait_until(partial(one.can_reach, mesh.ip(two), 2), 30, f"{one} → {two}")


def test_they_are_one_ray_cluster(mesh: Cluster) -> None:
    for host in mesh.hosts:
        assert mesh.python(NODES, host=host) == 3, host


def test_status_and_doctor_of_each_know_the_others(mesh: Cluster) -> None:
    for host in mesh.hosts:
        host.wait_until(partial(_has_no_problem, mesh, host), 30, "no problem")
        status = mesh.meshray(host, "status")
        assert {node["name"] for node in status["nodes"]} == {"head", "same", "other"}
        assert all(node["online"] and node["ray"]["alive"] for node in status["nodes"])
        host.wait_until(partial(_is_healthy, mesh, host), 60, "a healthy mesh")


def test_new_secrets_reach_all(mesh: Cluster) -> None:
    mesh.head.run(["meshray", "secrets", "rotate"], deadline_s=UP_DEADLINE_S)
    for one, two in permutations(mesh.hosts, 2):
        one.wait_until(partial(one.can_reach, mesh.ip(two), 2), 60, f"{one} → {two} with new secrets")


def test_an_upgraded_node_keeps_its_place(mesh: Cluster, programs: dict[str, Path]) -> None:
    """What the previous version left on disk is read by this one: address and key stay, the others reach it again."""
    for host in reversed(mesh.hosts):  # The workers first.
        runs = Path(host.run(["which", "meshray"]).stdout.strip()).parent
        if programs["this"].samefile(runs):
            continue
        key = host.run(["wg", "show", "meshray0", "public-key"]).stdout
        host.run(["meshray", "down"], deadline_s=UP_DEADLINE_S)
        use(host, programs["this"])
        host.run(["meshray", "up"], deadline_s=UP_DEADLINE_S)
        assert host.run(["wg", "show", "meshray0", "public-key"]).stdout == key
        for other in mesh.hosts:
            if other is not host:
                other.wait_until(partial(other.can_reach, mesh.ip(host), 2), 60, f"{other} → {host}")
                host.wait_until(partial(host.can_reach, mesh.ip(other), 2), 60, f"{host} → {other}")
    for host in mesh.hosts:
        host.wait_until(partial(_all_alive, mesh, host), 60, "three nodes of Ray")


@pytest.mark.parametrize("head_version", ["previous", "this"])
def test_the_relay_carries_data_between_the_versions(head_version: str, programs: dict[str, Path]) -> None:
    """Only one of the two ends knows messages with groups of datagrams."""
    other = next(version for version in programs if version != head_version)
    with World("previous-relay") as world:
        wan = world.switch("wan", "192.88.99.0/24")
        head, node = (world.host(name, wan, f"192.88.99.{10 + n}") for n, name in enumerate(("head", "node")))
        use(head, programs[head_version])
        use(node, programs[other])
        cluster = Cluster(head, (node,))
        init = cluster.meshray(head, "init", "--no-ray")
        joined = cluster.meshray(node, "join", init["token"], "--no-ray", "--transport", "wss")
        assert joined["path"]["transport"] == "wss"
        for one, ip in ((head, joined["node"]["ip"]), (node, init["node"]["ip"])):
            one.wait_until(partial(one.can_reach, ip, 2), 30, f"{one} → {ip}")
            sent = one.run(["ping", "-q", "-i", "0.005", "-c", "400", "-s", "1300", ip], deadline_s=60).stdout
            assert int(sent.partition(" received")[0].split()[-1]) >= 390, sent


def _has_no_problem(mesh: Cluster, host: Host) -> bool:
    return not mesh.meshray(host, "status", check=False)["problems"]


def _is_healthy(mesh: Cluster, host: Host) -> bool:
    return mesh.meshray(host, "doctor", check=False)["healthy"] is True


def _all_alive(mesh: Cluster, host: Host) -> bool:
    status = mesh.meshray(host, "status", check=False)
    return all(node["online"] and node["ray"]["alive"] for node in status["nodes"])
