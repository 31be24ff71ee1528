"""A RayCluster whose pods are nodes of a mesh, and a laptop behind a NAT that joins it with one command.

The mesh is made on a machine that all can reach; Ray's head is a pod. The tests share the cluster, in this order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.kube.conftest import Ground
from tests.kube.ray_clusters import HEAD_SECRET, NAME, job, rendered, small
from tests.kube.workers import SECRET, new_token, secret
from tests.lab.cluster import Cluster

#: Pods are created, enrol, and start Ray, on two busy cores.
UP_S = 240
GONE_S = 60
IDLE_S = 20
LAPTOP = ("--num-cpus=1", f"--object-store-memory={150 * 2**20}", '--resources={"laptop":1}')
_WHERE = """
import socket, ray
ray.init()
@ray.remote(num_cpus=0, resources={"laptop": 0.1})
def where():
    return socket.gethostname()
print("ran on", ray.get(where.remote()))
"""
#: More than the cluster's three processors do before the autoscaler looks again.
_WORK = """
import time, ray
ray.init()
@ray.remote(num_cpus=1)
def work():
    time.sleep(5)
ray.get([work.remote() for _ in range(40)])
"""


@pytest.fixture(scope="module")
def cluster(ground: Ground) -> Iterator[Cluster]:
    """Create the mesh and the RayCluster; return when KubeRay calls it ready."""
    kubernetes = ground.kubernetes
    cluster = Cluster(ground.head, ())
    cluster.answers["head"] = cluster.meshray(ground.head, "init", "--hub-only")
    kubernetes.start_operator()
    manifests = small(rendered(ground.head, "--workers=1", "--min-workers=1", "--max-workers=2"), IDLE_S)
    kubernetes.apply(
        secret(new_token(cluster, "--uses=0", "--head"), HEAD_SECRET),
        secret(new_token(cluster, "--uses=0"), SECRET),
        manifests,
    )
    kubernetes.wait_until(lambda: _state(ground) == "ready", UP_S, "a RayCluster that is ready")
    yield cluster
    kubernetes.kubectl("delete", "rayjob,raycluster", "--all", deadline_s=150)
    kubernetes.kubectl("delete", "secret,networkpolicy", "--all")
    for host in (ground.laptop, ground.head):
        host.run(["meshray", "leave", "--yes"], deadline_s=90)


def _state(ground: Ground) -> str:
    return str(ground.kubernetes.get("raycluster", NAME).get("status", {}).get("state", ""))


def _nodes(cluster: Cluster) -> list[Any]:
    return list(cluster.head.run(["meshray", "status", "--json"], check=False).json()["nodes"])


def _alive(cluster: Cluster) -> list[str]:
    """Return the nodes that are online and ALIVE in Ray, by the hub's status."""
    return sorted(node["name"] for node in _nodes(cluster) if node["online"] and node["ray"]["alive"])


def _names(cluster: Cluster) -> list[str]:
    """Return all nodes of the map."""
    return sorted(node["name"] for node in _nodes(cluster))


def _run(ground: Ground, name: str, code: str) -> str:
    """Run a RayJob to its end; return its log."""
    kubernetes = ground.kubernetes
    kubernetes.apply(job(name, code))

    def status() -> Any:
        found = kubernetes.get("rayjob", name).get("status", {})
        # The job has ended before the pod that submitted it has its log.
        return found.get("jobStatus") if found.get("jobDeploymentStatus") in ("Complete", "Failed") else ""

    ended = kubernetes.wait_until(status, UP_S, f"the end of the RayJob {name}")
    log = kubernetes.kubectl("logs", f"--selector=batch.kubernetes.io/job-name={name}", "--tail=-1").stdout
    assert ended == "SUCCEEDED", log
    return log


def test_head_and_worker_are_nodes_and_a_laptop_joins_with_one_command(ground: Ground, cluster: Cluster) -> None:
    pods = [pod["metadata"]["name"] for pod in ground.kubernetes.pods(f"ray.io/cluster={NAME}")]
    assert len(pods) == 2
    assert set(_alive(cluster)) >= set(pods)
    token = cluster.answers["head"]["token"]
    told = cluster.meshray(ground.laptop, "join", token, "--", *LAPTOP)
    assert told["ray"]["alive"]
    ground.kubernetes.wait_until(lambda: _alive(cluster) == sorted([*pods, "laptop"]), 60, "three nodes")
    assert _state(ground) == "ready"


def test_a_task_of_a_rayjob_runs_on_the_laptop(ground: Ground, cluster: Cluster) -> None:
    assert "ran on laptop" in _run(ground, "pinned", _WHERE)


def test_pods_of_the_autoscaler_join_and_leave(ground: Ground, cluster: Cluster) -> None:
    before = set(_alive(cluster))
    ground.kubernetes.apply(job("busy", _WORK))
    ground.kubernetes.wait_until(lambda: len(set(_alive(cluster)) - before) == 1, UP_S, "a pod of the autoscaler")
    both = set(_alive(cluster))
    # The autoscaler may choose the older one of two idle workers, or both.
    gone = ground.kubernetes.wait_until(lambda: both - set(_alive(cluster)), UP_S, "the end of an idle pod")

    def is_forgotten() -> bool:
        pods = {pod["metadata"]["name"] for pod in ground.kubernetes.pods(f"ray.io/cluster={NAME}")}
        names = set(_names(cluster))
        return not gone & (pods | names) and names == {"head", "laptop", *pods}

    ground.kubernetes.wait_until(is_forgotten, GONE_S, "a map without the pod")
    assert ground.kubernetes.get("rayjob", "busy")["status"]["jobStatus"] == "SUCCEEDED"
