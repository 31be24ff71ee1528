"""Pods as workers of a head outside of the cluster, beside a laptop behind a NAT: four nodes, one Ray cluster.

The tests share the deployment, in this order.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kube.conftest import Ground
from tests.kube.kubernetes import TUN_RESOURCE
from tests.kube.workers import NAME, new_token, rendered, secret
from tests.lab.cluster import Cluster

RAY_ARGS = ("--num-cpus=1", f"--object-store-memory={150 * 2**20}")
NODES = 4
#: Longer than the life of a node that looks joined but cannot be dialled: the head's health checks end it after 30-60
#: s.
SETTLED_S = 75
#: A pod is created, enrols, and starts Ray, on two busy cores.
UP_S = 180
#: A tunnel without answers is noticed, and the doctor measures.
DROP_NOTICED_S = 120
#: The limits of the contract.
NO_DEAD_NODE_S = 60
_JOB = """
import time, ray
ray.init("auto", log_to_driver=False)
@ray.remote(num_cpus=0.5, scheduling_strategy="SPREAD")
def work(number):
    time.sleep(1.0)
    return number
references = [work.remote(number) for number in range(60)]
ray.wait(references, num_returns=4)
print("started", flush=True)
assert ray.get(references) == list(range(60))
print("done", flush=True)
"""


@pytest.fixture(scope="module")
def cluster(ground: Ground) -> Iterator[Cluster]:
    """Start the head, deploy two pods, and let the laptop join."""
    cluster = Cluster.start(ground.head, [], ray_args=RAY_ARGS)
    ground.kubernetes.apply(secret(new_token(cluster, "--uses=0")), rendered(ground.head))
    told = cluster.meshray(ground.laptop, "join", cluster.answers["head"]["token"], "--", *RAY_ARGS)
    cluster.answers["laptop"] = told
    ground.kubernetes.wait_until(lambda: len(alive(cluster)) == NODES, UP_S, "four nodes that are ALIVE")
    cluster.complete_since = time.monotonic()
    yield cluster
    ground.kubernetes.kubectl("delete", "deployment,secret,poddisruptionbudget,networkpolicy", "--all", deadline_s=120)
    for host in (ground.laptop, ground.head):
        host.run(["meshray", "leave", "--yes"], deadline_s=90)


def nodes(cluster: Cluster) -> list[dict[str, Any]]:
    """Return the nodes that `meshray status` lists on the head."""
    found = cluster.head.run(["meshray", "status", "--json"], check=False).json()["nodes"]
    assert isinstance(found, list)
    return found


def alive(cluster: Cluster) -> list[str]:
    """Return the names of the nodes that are online and ALIVE in Ray, by the head's status."""
    return sorted(node["name"] for node in nodes(cluster) if node["online"] and node["ray"]["alive"])


def dead(cluster: Cluster) -> list[str]:
    """Return the names of the other nodes of the map."""
    return sorted({node["name"] for node in nodes(cluster)} - set(alive(cluster)))


def pod_names(ground: Ground) -> list[str]:
    """Return the names of the pods that are to stay."""
    return sorted(pod["metadata"]["name"] for pod in ground.kubernetes.pods())


def test_pods_a_laptop_and_a_head_are_one_ray_cluster(ground: Ground, cluster: Cluster) -> None:
    pods = pod_names(ground)
    assert len(pods) == 2
    assert alive(cluster) == sorted(["head", "laptop", *pods])
    ground.kubernetes.kubectl("rollout", "status", f"deployment/{NAME}", "--timeout=60s", deadline_s=70)
    time.sleep(max(0.0, cluster.complete_since + SETTLED_S - time.monotonic()))
    done = cluster.job("python", "tests/lab/pairs.py", f"--nodes={NODES}", "--mebibytes=16", "--json").last_json()
    assert sorted(done["nodes"]) == alive(cluster)
    assert len(done["objects"]) == NODES * (NODES - 1)
    assert all(one["intact"] for one in done["objects"])


def test_a_pod_is_ready_only_while_ray_is_alive(ground: Ground, cluster: Cluster) -> None:
    pod = pod_names(ground)[0]
    agent = ground.kubernetes.execute(pod, "meshray", "status", "--json").json()
    assert agent["self"] == pod
    assert ground.kubernetes.is_ready(pod)

    # Each time that Ray is started again, its raylet is killed, so that probes meet the pod without it.
    def is_not_ready() -> bool:
        ground.kubernetes.kill(pod, "raylet")
        return not ground.kubernetes.is_ready(pod)

    ground.kubernetes.wait_until(is_not_ready, UP_S, "a pod that is not ready without its raylet")
    ground.kubernetes.wait_until(lambda: ground.kubernetes.is_ready(pod), UP_S, "a pod that is ready again")
    ground.kubernetes.wait_until(lambda: len(alive(cluster)) == NODES, NO_DEAD_NODE_S, "four nodes that are ALIVE")
    assert ground.kubernetes.get("pod", pod)["status"]["containerStatuses"][0]["restartCount"] == 0


def test_a_rolling_restart_leaves_no_dead_node_and_ends_no_job(ground: Ground, cluster: Cluster) -> None:
    before = set(pod_names(ground))
    job = cluster.head.popen(["meshray", "run", "--", sys.executable, "-c", _JOB], name="job")
    ground.kubernetes.wait_until(lambda: "started" in job.output, 60, "the job under way")
    ground.kubernetes.kubectl("rollout", "restart", f"deployment/{NAME}")
    ground.kubernetes.kubectl("rollout", "status", f"deployment/{NAME}", f"--timeout={UP_S}s", deadline_s=UP_S + 10)
    ground.kubernetes.wait_until(
        lambda: not before & {pod["metadata"]["name"] for pod in ground.kubernetes.get("pods")["items"]},
        UP_S,
        "the old pods to be gone",
    )
    gone = time.monotonic()
    ground.kubernetes.wait_until(
        lambda: not before & {node["name"] for node in nodes(cluster)}, NO_DEAD_NODE_S, "a map without the old pods"
    )
    print(f"rolling restart: no dead node {time.monotonic() - gone:.1f} s after the last old pod")
    ground.kubernetes.wait_until(lambda: len(alive(cluster)) == NODES, UP_S, "four nodes that are ALIVE")
    assert dead(cluster) == []
    assert job.wait(120) == 0, job.output


def checks(ground: Ground, pod: str) -> dict[str, dict[str, Any]]:
    """Return by code what the doctor in a pod finds about the pod itself."""
    words = ("meshray", "doctor", "--json")
    found = ground.kubernetes.execute(pod, *words, check=False, deadline_s=120).json()["checks"]
    return {check["code"]: check for check in found if check.get("node") == pod}


def test_the_doctor_in_a_pod_finds_what_the_cluster_does_to_it(ground: Ground, cluster: Cluster) -> None:
    pod = ground.kubernetes.pods(f"app.kubernetes.io/instance={NAME}")[0]
    name, address = pod["metadata"]["name"], pod["status"]["podIP"]
    healthy = checks(ground, name)
    assert healthy["pod_network"]["status"] == "ok", healthy["pod_network"]
    assert healthy["udp_out"]["status"] == "ok", healthy["udp_out"]
    # The cluster gets a name server in a network of Services that overlaps the overlay.
    mounts = ground.kubernetes.execute(name, "cat", "/proc/self/mountinfo").stdout.splitlines()
    (shown,) = [line.split()[3] for line in mounts if line.split()[4] == "/etc/resolv.conf"]
    resolver = ground.kubernetes.host.path(f"/var/lib/containerd{shown.partition('/containerd')[2]}")
    before = resolver.read_text()
    resolver.write_text(f"{before}nameserver 10.99.200.53\n")
    overlapping = checks(ground, name)["pod_network"]
    resolver.write_text(before)
    assert overlapping["status"] == "fail", overlapping
    assert "10.99.200.53 of the cluster's name server" in overlapping["evidence"]
    assert "meshray init --network" in overlapping["fix"]
    # The network plugin here enforces no NetworkPolicy; these rules are where those of others are.
    ground.kubernetes.host.run(["nft", "-f", "-"], stdin=_POLICY.format(pod=address))
    try:
        dropped = ground.kubernetes.wait_until(
            lambda: [found for found in [checks(ground, name)["udp_out"]] if found["status"] in ("warn", "fail")],
            DROP_NOTICED_S,
            "the doctor's finding about UDP",
        )
        assert "is not answered" in dropped[0]["evidence"]
        assert "kubectl get networkpolicy" in dropped[0]["fix"]
        ground.kubernetes.wait_until(lambda: name in alive(cluster), 60, "the pod over TCP")
    finally:
        ground.kubernetes.host.run(["nft", "delete", "table", "inet", "egress"])


#: A policy for egress that forgets UDP.
_POLICY = """\
table inet egress {{
    chain forward {{
        type filter hook forward priority filter
        ip saddr {pod} udp dport != 53 counter drop
    }}
}}
"""


def test_the_deployment_scales_to_nothing_and_back(ground: Ground, cluster: Cluster) -> None:
    ground.kubernetes.kubectl("scale", f"deployment/{NAME}", "--replicas=0")
    ground.kubernetes.wait_until(lambda: len(nodes(cluster)) == NODES - 2, NO_DEAD_NODE_S, "a map without pods")
    assert alive(cluster) == ["head", "laptop"]
    ground.kubernetes.kubectl("scale", f"deployment/{NAME}", "--replicas=2")
    ground.kubernetes.wait_until(lambda: len(alive(cluster)) == NODES, UP_S, "four nodes that are ALIVE")


def test_a_killed_agent_comes_back_with_its_pod(ground: Ground, cluster: Cluster) -> None:
    pod = pod_names(ground)[0]
    assert ground.kubernetes.kill(pod, "meshray.agent")
    restarted = lambda: ground.kubernetes.get("pod", pod)["status"]["containerStatuses"][0]["restartCount"]  # noqa: E731
    ground.kubernetes.wait_until(restarted, 60, "the container's restart")
    ground.kubernetes.wait_until(lambda: len(alive(cluster)) == NODES, UP_S, "four nodes that are ALIVE")
    ground.kubernetes.wait_until(lambda: not dead(cluster), NO_DEAD_NODE_S, "a map without dead nodes")


def test_a_pod_without_its_token_stays_out(ground: Ground, cluster: Cluster) -> None:
    pod, other = pod_names(ground)
    tokens = cluster.head.run(["meshray", "token", "list", "--json"]).json()["tokens"]
    (token,) = [found["id"] for found in tokens if found["ephemeral"]]
    cluster.head.run(["meshray", "token", "revoke", token])
    cluster.head.run(["meshray", "node", "rm", "--yes", pod])
    said = lambda: "was revoked" in ground.kubernetes.kubectl("logs", pod, check=False).stdout  # noqa: E731
    ground.kubernetes.wait_until(said, 90, "the refusal in the pod's log")
    assert pod not in {node["name"] for node in nodes(cluster)}
    assert other in alive(cluster)


def test_a_pod_without_root_joins_and_runs_a_task(ground: Ground, cluster: Cluster) -> None:
    ground.kubernetes.start_tun_plugin()
    # There are processors for two pods.
    ground.kubernetes.kubectl("delete", "deployment", NAME, deadline_s=120)
    options = ("--name=rootless", "--replicas=1", "--rootless", f"--tun={TUN_RESOURCE}")
    manifest = rendered(ground.head, *options, '--ray-arg=--resources={"rootless":1}')
    ground.kubernetes.apply(secret(new_token(cluster, "--uses=0")), manifest)
    (pod,) = ground.kubernetes.wait_until(
        lambda: [name for name in alive(cluster) if name.startswith("rootless-")], UP_S, "the pod without root"
    )
    identity = ground.kubernetes.execute(pod, "sh", "-c", "id -u; grep CapBnd /proc/1/status; cat /proc/self/uid_map")
    uid, bounds, mapping = identity.stdout.splitlines()
    assert (uid, bounds.split()[1]) == ("1000", "0" * 16)
    assert int(mapping.split()[1]) > 0, "the pod has no user namespace"
    assert f"ran on {pod}" in cluster.job("python", "-c", _WHERE).stdout


_WHERE = """
import socket, ray
ray.init("auto", log_to_driver=False)
@ray.remote(num_cpus=0, resources={"rootless": 0.1})
def where():
    return socket.gethostname()
print("ran on", ray.get(where.remote(), timeout=60))
"""
