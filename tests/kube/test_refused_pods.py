"""Pods that cannot join: `kubectl logs`, or the events of a namespace, name the cause and the next step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kube.conftest import Ground
from tests.kube.kubernetes import SERVICES, TUN_RESOURCE
from tests.kube.workers import NAME, new_token, rendered, secret
from tests.lab.cluster import Cluster

#: An image starts and gives up, on two busy cores.
SAID_S = 90
#: The overlay of a mesh that the pods' own network contains.
OVERLAPPING = "10.244.128.0/20"
#: One that the network of Services contains.
OF_SERVICES = "10.96.128.0/20"


@pytest.fixture(scope="module")
def cluster(ground: Ground) -> Iterator[Cluster]:
    yield Cluster.without_ray(ground.head, [])
    ground.head.run(["meshray", "leave", "--yes"], deadline_s=90)


@pytest.fixture
def namespace(ground: Ground, request: pytest.FixtureRequest) -> Iterator[str]:
    """Yield an empty namespace; its pods are not given time to leave a mesh that they are not in."""
    name = request.node.name.replace("_", "-")
    ground.kubernetes.kubectl("create", "namespace", name)
    yield name
    ground.kubernetes.kubectl("delete", "deployment", "--all", f"--namespace={name}")
    ground.kubernetes.kubectl("delete", "pods", "--all", "--force", "--grace-period=0", f"--namespace={name}")
    ground.kubernetes.kubectl("delete", "namespace", name, "--wait=false")


def said(ground: Ground, namespace: str, word: str) -> str:
    """Return the log of a pod as soon as it contains this word."""
    where = (f"--namespace={namespace}", f"deployment/{NAME}")

    def log() -> str:
        # The container restarts: its last words are those of the previous one.
        asked = (("logs", *where), ("logs", "--previous", *where))
        texts = [ground.kubernetes.kubectl(*words, check=False).stdout for words in asked]
        return next((text for text in texts if word in text), "")

    return ground.kubernetes.wait_until(log, SAID_S, f"{word!r} in a pod's log")


def test_a_missing_secret(ground: Ground, cluster: Cluster, namespace: str) -> None:
    ground.kubernetes.apply(rendered(ground.head), namespace=namespace)
    log = said(ground, namespace, "hint:")
    assert "kubectl create secret generic meshray-token" in log
    assert "Traceback" not in log


def test_a_token_that_is_used_up(ground: Ground, cluster: Cluster, namespace: str) -> None:
    token = new_token(cluster, "--uses=1")
    ground.laptop.run(["meshray", "join", "--no-ray", "-"], stdin=token)
    try:
        ground.kubernetes.apply(secret(token), rendered(ground.head, "--replicas=1"), namespace=namespace)
        log = said(ground, namespace, "hint:")
    finally:
        ground.laptop.run(["meshray", "leave", "--yes"])
    assert "used up" in log
    assert "meshray token create" in log
    assert "Traceback" not in log


def test_no_tun_device(ground: Ground, cluster: Cluster, namespace: str) -> None:
    token = new_token(cluster, "--uses=0")
    manifest = rendered(ground.head, "--replicas=1", "--tun=none")
    ground.kubernetes.apply(secret(token), manifest, namespace=namespace)
    log = said(ground, namespace, "/dev/net/tun")
    assert "Traceback" not in log


def test_no_root_and_a_profile_that_forbids_namespaces(ground: Ground, cluster: Cluster, namespace: str) -> None:
    manifest = rendered(ground.head, "--replicas=1", "--rootless", f"--tun={TUN_RESOURCE}")
    profile = "seccompProfile:\n              type: "
    assert f"{profile}Unconfined" in manifest
    manifest = manifest.replace(f"{profile}Unconfined", f"{profile}RuntimeDefault")
    ground.kubernetes.start_tun_plugin()
    ground.kubernetes.apply(secret(new_token(cluster, "--uses=0")), manifest, namespace=namespace)
    log = said(ground, namespace, "hint:")
    assert "a node without root is not possible on this machine: user namespaces (" in log
    assert "seccomp" in log
    assert "Traceback" not in log


def test_a_restricted_namespace(ground: Ground, cluster: Cluster, namespace: str) -> None:
    label = "pod-security.kubernetes.io/enforce=restricted"
    ground.kubernetes.kubectl("label", "namespace", namespace, label)
    ground.kubernetes.apply(rendered(ground.head, "--replicas=1"), namespace=namespace)
    events = ("get", "events", f"--namespace={namespace}", "--output=jsonpath={.items[*].message}")
    message = ground.kubernetes.wait_until(
        lambda: [text for text in [ground.kubernetes.kubectl(*events).stdout] if "violates PodSecurity" in text],
        SAID_S,
        "the event of a pod that is not admitted",
    )[0]
    assert "NET_ADMIN" in message
    assert "kubectl label namespace" in rendered(ground.head)


def test_the_doctor_reads_the_rules_of_kube_proxy(ground: Ground) -> None:
    mesh = Cluster.without_ray(ground.other, [], init=["--network", OF_SERVICES])
    try:
        with ground.kubernetes.nftables_proxy(ground.other):
            found = mesh.head.run(["meshray", "doctor", "--json"], check=False, deadline_s=90).json()["checks"]
    finally:
        ground.other.run(["meshray", "leave", "--yes"])
    (check,) = [check for check in found if check["code"] == "kube_proxy"]
    assert check["status"] == "fail", check
    assert SERVICES in check["evidence"]
    assert "meshray init --network" in check["fix"]


def test_a_network_of_pods_that_contains_the_overlay(ground: Ground, namespace: str) -> None:
    mesh = Cluster.without_ray(ground.other, [], init=["--network", OVERLAPPING])
    try:
        token = new_token(mesh, "--uses=0")
        ground.kubernetes.apply(secret(token), rendered(ground.head, "--replicas=1"), namespace=namespace)
        log = said(ground, namespace, "10.244.")
    finally:
        ground.other.run(["meshray", "leave", "--yes"])
    assert "Traceback" not in log
