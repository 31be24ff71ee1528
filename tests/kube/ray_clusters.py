"""A RayCluster as `meshray render kuberay` prints it, made small, and the Secrets that it needs."""

from __future__ import annotations

import base64
from typing import Any

import yaml

from tests.kube.images import WORKER
from tests.lab.host import Host

NAME = "ray"
HEAD_SECRET = "meshray-head-token"
_SIZE = ("--head-cpu=1", "--head-memory=2Gi", "--cpu=1", "--memory=2Gi", "--object-store=150Mi", "--drain=5s")
#: What a container asks for, so that all pods fit into a node of two processors.
_ASKED = {"cpu": "50m", "memory": "64Mi"}


def rendered(host: Host, *options: str) -> str:
    """Return the manifests, which a user on this host asks for."""
    words = ["meshray", "render", "kuberay", f"--name={NAME}", f"--image={WORKER}", "--jobs"]
    return host.run([*words, *_SIZE, *options]).stdout


def small(manifests: str, idle_s: int) -> str:
    """Return the manifests with smaller requests, and an autoscaler that waits no longer than this for work."""
    objects = list(yaml.safe_load_all(manifests))
    for one in objects:
        if one["kind"] == "RayCluster":
            options = one["spec"]["autoscalerOptions"]
            options["idleTimeoutSeconds"] = idle_s
            options["resources"] = {"requests": _ASKED, "limits": {"cpu": "1", "memory": "1Gi"}}
            for container in _containers(one):
                container["resources"]["requests"] = _ASKED
    return str(yaml.safe_dump_all(objects))


def job(name: str, code: str) -> dict[str, Any]:
    """Return a RayJob that runs this piece of Python in the cluster."""
    # Quotes and line breaks would have to survive KubeRay, a shell, and Ray.
    text = base64.b64encode(code.encode()).decode()
    submitter = {
        "name": "submitter",
        "image": WORKER,
        "resources": {"requests": _ASKED, "limits": {"cpu": "1", "memory": "1Gi"}},
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name},
        "spec": {
            "entrypoint": f"python -c 'import base64; exec(base64.b64decode(\"{text}\"))'",
            "clusterSelector": {"ray.io/cluster": NAME},
            "submitterPodTemplate": {"spec": {"restartPolicy": "Never", "containers": [submitter]}},
        },
    }


def _containers(cluster: Any) -> list[Any]:
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    specs = [group["template"]["spec"] for group in groups]
    return [container for spec in specs for container in (*spec["initContainers"], *spec["containers"])]
