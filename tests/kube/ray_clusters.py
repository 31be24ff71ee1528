"""A RayCluster as `meshray render kuberay` prints it, made small, and the Secrets that it needs."""

from __future__ import annotations

import base64
from typing import Any

import yaml

from tests.kube.images import WORKER
from tests.lab.host import Host

NAME = "ray"
HEAD_SECRET = "meshray-head-token"
NAMESPACE = "ray"
_SIZE = ("--head-cpu=1", "--head-memory=2Gi", "--cpu=1", "--memory=2Gi", "--object-store=150Mi", "--drain=30s")
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
        if one["kind"] != "NetworkPolicy":
            specification = _specification(one)
            options = specification["autoscalerOptions"]
            options["idleTimeoutSeconds"] = idle_s
            options["resources"] = {"requests": _ASKED, "limits": {"cpu": "1", "memory": "1Gi"}}
            for container in _containers(specification):
                container["resources"]["requests"] = _ASKED
    return str(yaml.safe_dump_all(objects))


def with_code(manifests: str, module: str, code: str) -> str:
    """Return the manifests with a module of Python that Ray finds in every pod, as if the image contained it."""
    objects = list(yaml.safe_load_all(manifests))
    (specification,) = [_specification(one) for one in objects if one["kind"] != "NetworkPolicy"]
    for pod in _pods(specification):
        pod["volumes"].append({"name": "code", "configMap": {"name": "code"}})
        (ray,) = pod["containers"]
        ray["volumeMounts"].append({"name": "code", "mountPath": "/code"})
        ray["env"].append({"name": "PYTHONPATH", "value": "/code"})
    metadata, data = {"name": "code"}, {f"{module}.py": code}
    objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
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


def _specification(one: Any) -> Any:
    """Return the specification of the RayCluster, also of that of a RayService."""
    return one["spec"].get("rayClusterConfig", one["spec"])


def _pods(specification: Any) -> list[Any]:
    groups = [specification["headGroupSpec"], *specification["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def _containers(specification: Any) -> list[Any]:
    return [container for pod in _pods(specification) for container in (*pod["initContainers"], *pod["containers"])]
