"""A RayCluster whose pods are nodes of a mesh, and a laptop behind a NAT that joins it with one command.

The mesh is made on a machine that all can reach; Ray's head is a pod. The tests share the cluster, in this order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kube.conftest import Ground
from tests.kube.images import WORKER
from tests.kube.ray_clusters import NAME, NAMESPACE, job, rendered, small, with_code
from tests.kube.workers import new_token
from tests.lab.cluster import Cluster
from tests.printed import printed

#: Pods are created, enrol, and start Ray, on two busy cores.
UP_S = 240
GONE_S = 60
IDLE_S = 20
LAPTOP = ("--num-cpus=1", f"--object-store-memory={150 * 2**20}", '--resources={"laptop":1}')
#: Both sides are behind a NAT: 16 MiB to the laptop and back.
_WHERE = """
import socket, ray
ray.init()
@ray.remote(num_cpus=0, resources={"laptop": 0.1})
def where(data):
    return socket.gethostname(), data[::-1]
data = bytes(range(256)) * 65536
name, back = ray.get(where.remote(data))
assert back == data[::-1]
print("ran on", name)
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
#: The beginning of the commands on the page that create the namespace and both Secrets.
_SECRETS = """\
kubectl create namespace ray
kubectl label namespace ray pod-security.kubernetes.io/enforce=privileged
kubectl --namespace ray create secret generic meshray-head-token"""
#: A program that a worker executes once, and in whose middle its pod is deleted.
_LONG_TASK = """
import socket, sys, time, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
ray.init("auto", log_to_driver=False)
@ray.remote(num_cpus=1, max_retries=0)
def work():
    time.sleep(18)
    return socket.gethostname()
node = next(one["NodeID"] for one in ray.nodes() if one["Alive"] and one["NodeManagerHostname"] == sys.argv[1])
reference = work.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()
ray.wait([reference], timeout=4)
print("started", flush=True)
print("ran on", ray.get(reference), flush=True)
"""
#: Each node of one CPU gets one replica. The laptop has no module `hello`, so the class travels with the replica.
_APPLICATION = """
import socket
from ray import serve
def build(arguments):
    @serve.deployment(num_replicas=3, ray_actor_options={"num_cpus": 0.6})
    class Hello:
        def __call__(self):
            return "hello from " + socket.gethostname()
    return Hello.bind()
"""
_SERVE_CONFIG = "applications:\n  - name: hello\n    import_path: hello:build\n    route_prefix: /\n"
#: The program of a pod in the namespace.
_ASK = ["sh", "-euc", "for i in 1 2 3 4 5 6; do wget -q -T 10 -O- http://ray-serve-svc:8000/; echo; done"]


@pytest.fixture(scope="module")
def cluster(ground: Ground) -> Iterator[Cluster]:
    """Create the mesh and the RayCluster, with the commands of the page; return when KubeRay calls it ready."""
    kubernetes = ground.kubernetes
    cluster = Cluster(ground.head, ())
    cluster.answers["head"] = cluster.meshray(ground.head, "init", "--hub-only")
    kubernetes.start_operator()
    for folder, options in (("head", ("--head",)), ("worker", ())):
        file = kubernetes.host.path(f"/tmp/{folder}/token")
        file.parent.mkdir()
        file.write_text(new_token(cluster, "--uses=0", *options) + "\n")
    kubernetes.as_printed(printed("kubernetes.md", _SECRETS))
    kubernetes.use_namespace(NAMESPACE)
    kubernetes.apply(small(rendered(ground.head, "--workers=1", "--min-workers=1", "--max-workers=2"), IDLE_S))
    kubernetes.wait_until(lambda: _state(ground) == "ready", UP_S, "a RayCluster that is ready")
    yield cluster
    kubernetes.kubectl("delete", "rayjob,rayservice,raycluster", "--all", deadline_s=150)
    kubernetes.kubectl("delete", "secret,networkpolicy", "--all")
    kubernetes.use_namespace("default")
    for host in (ground.laptop, ground.head):
        host.run(["meshray", "leave", "--yes"], deadline_s=90)


def _only_worker(ground: Ground) -> str:
    """Return the pod of the only worker if it is ready. The autoscaler would end one of two."""
    names = [pod["metadata"]["name"] for pod in ground.kubernetes.pods("ray.io/node-type=worker")]
    return str(names[0]) if len(names) == 1 and ground.kubernetes.is_ready(names[0]) else ""


def _head(ground: Ground) -> str:
    (pod,) = ground.kubernetes.pods("ray.io/node-type=head")
    return str(pod["metadata"]["name"])


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
    # A pod of the former job may become ALIVE only now: two new ones may come and go together.
    ground.kubernetes.wait_until(lambda: set(_alive(cluster)) - before, UP_S + 120, "a pod of the autoscaler")
    both = set(_alive(cluster))
    # The autoscaler may choose the older one of two idle workers, or both.
    gone = ground.kubernetes.wait_until(lambda: both - set(_alive(cluster)), UP_S, "the end of an idle pod")

    def is_forgotten() -> bool:
        pods = {pod["metadata"]["name"] for pod in ground.kubernetes.pods(f"ray.io/cluster={NAME}")}
        names = set(_names(cluster))
        return not gone & (pods | names) and names == {"head", "laptop", *pods}

    ground.kubernetes.wait_until(is_forgotten, GONE_S, "a map without the pod")
    assert ground.kubernetes.get("rayjob", "busy")["status"]["jobStatus"] == "SUCCEEDED"


def test_a_pod_without_its_raylet_is_not_ready_and_is_replaced(ground: Ground, cluster: Cluster) -> None:
    kubernetes = ground.kubernetes
    worker = kubernetes.wait_until(lambda: _only_worker(ground), UP_S, "a worker")
    assert kubernetes.kill(worker, "raylet", container="ray-worker")
    kubernetes.wait_until(lambda: not kubernetes.is_ready(worker), 60, "a pod that is not ready without its raylet")
    # With its autoscaler, KubeRay restarts no container, but replaces the pod.
    other = kubernetes.wait_until(lambda: {_only_worker(ground)} - {worker, ""}, UP_S, "another worker")
    kubernetes.wait_until(lambda: other <= set(_alive(cluster)), GONE_S, "another worker that is ALIVE")
    kubernetes.wait_until(lambda: worker not in _names(cluster), GONE_S, "a map without the pod")


def test_a_task_outlives_the_deletion_of_its_pod(ground: Ground, cluster: Cluster) -> None:
    kubernetes = ground.kubernetes
    worker = kubernetes.wait_until(lambda: _only_worker(ground), UP_S, "a worker")
    driver = kubernetes.start_in_pod(_head(ground), "python", "-u", "-c", _LONG_TASK, worker, container="ray-head")
    kubernetes.wait_until(lambda: "started" in driver.output or driver.returncode is not None, 60, "the task")
    kubernetes.kubectl("delete", "pod", worker, "--wait=false")
    assert driver.wait(60) == 0, driver.output
    assert f"ran on {worker}" in driver.output
    kubernetes.wait_until(lambda: worker not in _names(cluster), GONE_S, "a map without the pod")


def test_an_operator_that_sends_the_token_runs_a_rayjob(ground: Ground, cluster: Cluster) -> None:
    kubernetes = ground.kubernetes
    kubernetes.as_printed(printed("kubernetes.md", "HEAD=$(kubectl"), deadline_s=150)
    options = ("--operator-token", "--workers=0", "--max-workers=1")
    kubernetes.apply(small(rendered(ground.head, *options), IDLE_S))
    kubernetes.wait_until(lambda: _state(ground) == "ready", UP_S, "a RayCluster that is ready")
    # There is no proxy: a program without the token is refused.
    address = kubernetes.get("pod", _head(ground))["status"]["podIP"]
    asked = kubernetes.host.run(["wget", "-S", "-q", "-O-", f"http://{address}:8265/api/jobs/"], check=False)
    assert re.search(r"HTTP/1.1 40[13]", asked.stderr), asked
    assert "ran on laptop" in _run(ground, "token", _WHERE)


def test_a_rayservice_answers_through_its_service(ground: Ground, cluster: Cluster) -> None:
    kubernetes = ground.kubernetes
    kubernetes.kubectl("delete", "rayjob,raycluster", "--all", "--cascade=foreground", deadline_s=150)
    ground.head.path("/tmp/serve.yaml").write_text(_SERVE_CONFIG)
    options = ("--serve-config=/tmp/serve.yaml", "--workers=1", "--min-workers=1", "--max-workers=1")
    kubernetes.apply(with_code(small(rendered(ground.head, *options), IDLE_S), "hello", _APPLICATION))
    shown = ("get", "rayservice", NAME)
    kubernetes.wait_until(lambda: "Running" in kubernetes.kubectl(*shown).stdout, UP_S, "a RayService that runs")
    # The NetworkPolicies select its pods, although KubeRay chose the name of the RayCluster.
    selected = {one["metadata"]["name"]: _selected(ground, one) for one in kubernetes.get("networkpolicy")["items"]}
    pods = {pod["metadata"]["name"] for pod in kubernetes.pods("ray.io/cluster")}
    assert selected == {f"{NAME}-nodes": pods, f"{NAME}-head": {_head(ground)}}
    kubernetes.kubectl("run", "client", "--restart=Never", f"--image={WORKER}", "--command", "--", *_ASK)
    done = "--for=jsonpath={.status.phase}=Succeeded"
    kubernetes.kubectl("wait", "pod/client", done, f"--timeout={GONE_S}s", deadline_s=GONE_S + 10)
    answers = kubernetes.kubectl("logs", "client").stdout.split("\n")
    kubernetes.kubectl("delete", "pod", "client", "--now")
    assert len(answers) >= 6
    assert set(answers) - {""} <= {f"hello from {node}" for node in (*pods, "laptop")}


def _selected(ground: Ground, policy: Any) -> set[str]:
    """Return the pods that a NetworkPolicy selects."""
    labels = policy["spec"]["podSelector"]["matchLabels"]
    found = ground.kubernetes.pods(",".join(f"{key}={value}" for key, value in labels.items()))
    return {pod["metadata"]["name"] for pod in found}
