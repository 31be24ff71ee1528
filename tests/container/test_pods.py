"""Rendered pods, run by Docker with the capabilities, users, mounts and probes of their specification."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from meshray.render.kubernetes import Cluster, Workers, manifests, ray_cluster
from tests.container.conftest import RAY_ARGS, Dock
from tests.container.pod import Pod

#: As rayproject/ray has it: the user of Ray is not root, and may execute the image's Python.
IMAGE = "pods"
DOCKERFILE = "FROM worker\nRUN chmod 711 /root && chmod -R go+rX /root/.pyenv\nENV SUDO_UID=1000\n"
WORKERS = Workers(image=IMAGE, cpu="1", memory="1Gi", object_store=150_000_000, drain_s=5)
CLUSTER = Cluster(image=IMAGE, cpu="1", memory="1Gi", object_store=150_000_000, drain_s=5)
#: What KubeRay sets in the container of a worker.
START = "ray start --address=not-used:6379 --block " + " ".join(RAY_ARGS)
UP_S = 120


@pytest.fixture
def secret(dock: Dock) -> Path:
    """A Secret with a token for any number of nodes, in the engine's host."""
    folder = Path("/tmp/secret")
    dock.host.run(["sh", "-c", f"umask 077; mkdir -p {folder}; cat > {folder}/token"], stdin=dock.token)
    return folder


@pytest.fixture
def pods(dock: Dock, worker_image: str) -> Iterator[list[Pod]]:
    """The pods of a test, which are removed after it."""
    dock.host.run(
        ["docker", "build", "--quiet", "--network=none", f"--tag={IMAGE}", "-"], stdin=DOCKERFILE, deadline_s=120
    )
    made: list[Pod] = []
    yield made
    for pod in made:
        pod.remove()


def specification(text: str, kind: str) -> dict[str, Any]:
    """Return the pod of the Deployment, or the worker's of the RayCluster."""
    (found,) = [one for one in yaml.safe_load_all(text) if one and one["kind"] == kind]
    group = found["spec"] if kind == "Deployment" else found["spec"]["workerGroupSpecs"][0]
    pod: dict[str, Any] = group["template"]["spec"]
    return pod


def names(dock: Dock) -> list[str]:
    """Return the nodes that the head lists."""
    return [node["name"] for node in dock.cluster.meshray(dock.head, "status", check=False)["nodes"]]


def wait_until_ready(dock: Dock, pod: Pod, container: str) -> None:
    def ready() -> bool:
        return pod.run_hook(container, "readinessProbe", check=False).returncode == 0

    dock.host.wait_until(ready, UP_S, f"{pod.name} to be ready")


def test_a_worker_joins_is_ready_and_leaves(dock: Dock, pods: list[Pod], secret: Path) -> None:
    pod = Pod(dock.engine, "pod-1", specification(manifests(WORKERS), "Deployment"), secrets={"token": secret})
    pods.append(pod)
    pod.start("worker")
    wait_until_ready(dock, pod, "worker")
    assert "pod-1" in names(dock)
    assert "runs as ray" in pod.log("worker")
    pod.run_hook("worker", "preStop")
    assert pod.end("worker") == 0
    assert "pod-1" not in names(dock)


def test_a_missing_secret_is_named_with_the_command_that_creates_it(dock: Dock, pods: list[Pod]) -> None:
    pod = Pod(dock.engine, "pod-2", specification(manifests(WORKERS), "Deployment"), secrets={})
    pods.append(pod)
    pod.start("worker")
    assert pod.wait("worker") == 2
    assert "the Secret meshray-token needs a token" in pod.log("worker")
    assert "kubectl create secret generic meshray-token --from-file=token" in pod.log("worker")


def test_a_kuberay_worker_starts_ray_with_what_its_sidecar_offers(dock: Dock, pods: list[Pod], secret: Path) -> None:
    pod = Pod(
        dock.engine,
        "ray-worker-1",
        specification(ray_cluster(CLUSTER), "RayCluster"),
        secrets={"meshray-token": secret},
        environment={"KUBERAY_GEN_RAY_START_CMD": START},
    )
    pods.append(pod)
    pod.start("meshray")

    def started() -> bool:
        return pod.run_hook("meshray", "startupProbe", check=False).returncode == 0

    dock.host.wait_until(started, UP_S, "the sidecar to be up")
    assert pod.run_hook("meshray", "readinessProbe", check=False).returncode != 0
    pod.start("ray-worker")
    wait_until_ready(dock, pod, "meshray")
    pod.run_hook("meshray", "preStop")
    assert "ray-worker-1" not in names(dock)
