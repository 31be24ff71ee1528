"""A RayCluster whose pods are nodes of the mesh: what its pods contain, as an object and as values of KubeRay's chart.

KubeRay's own definition of RayCluster checks the same file in tests/kube.
"""

from __future__ import annotations

import socket
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from meshray.errors import UsageError
from meshray.home import Home
from meshray.render.kubernetes import Cluster, memory, ray_cluster, ray_cluster_values
from tests.unit.render.test_kubernetes import BASELINE

FULL = Cluster(
    name="lab",
    namespace="ray",
    image="registry.example.org:5000/ray/worker:7",
    gpus=2,
    object_store=memory("4Gi"),
    head_secret="head-secret",
    token_secret="worker-secret",
    pull_secret="registry",
    tun="squat.ai/tun",
    drain_s=300,
    serve=True,
    with_jobs=True,
    log_format="json",
)
SERVICE = Cluster(serve=True, serve_config="applications:\n  - name: hello\n    import_path: hello:app")


def objects(cluster: Cluster) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all(ray_cluster(cluster)) if found]


def specification(cluster: Cluster) -> dict[str, Any]:
    """Return the specification of the RayCluster."""
    (found,) = [one for one in objects(cluster) if one["kind"] == cluster.kind]
    specification: dict[str, Any] = found["spec"]["rayClusterConfig"] if cluster.serve_config else found["spec"]
    return specification


def groups(cluster: Cluster) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the groups of the head and of the workers."""
    found = specification(cluster)
    (workers,) = found["workerGroupSpecs"]
    return found["headGroupSpec"], workers


def pods(cluster: Cluster) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the pods of the head and of the workers."""
    head, workers = groups(cluster)
    return head["template"]["spec"], workers["template"]["spec"]


@pytest.mark.parametrize("cluster", [Cluster(), FULL], ids=["default", "full"])
def test_every_pod_has_the_node_as_a_native_sidecar(cluster: Cluster) -> None:
    for pod, secret in zip(pods(cluster), (cluster.head_secret, cluster.token_secret), strict=True):
        sidecar, *others = pod["initContainers"]
        assert [other["name"] for other in others] in ([], ["dashboard"])
        assert sidecar["restartPolicy"] == "Always"
        assert sidecar["startupProbe"]["exec"]["command"][-1] == "test -s /run/meshray/env"
        assert sidecar["readinessProbe"]["exec"]["command"] == ["python", "-I", "-m", "meshray", "ready"]
        assert {"--ray=external", "--ephemeral"} < set(sidecar["args"])
        assert sidecar["env"][0]["value"] == f"/run/secrets/{secret}/token"
        assert sidecar["securityContext"]["capabilities"]["drop"] == ["ALL"]
        assert set(sidecar["securityContext"]["capabilities"]["add"]) - BASELINE == {"NET_ADMIN"}
        names = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in sidecar["volumeMounts"]} == names
    head, worker = (pod["initContainers"][0] for pod in pods(cluster))
    assert "--head" in head["args"]
    assert "--head" not in worker["args"]
    assert worker["lifecycle"]["preStop"]["exec"]["command"][4:6] == ["leave", "--yes"]


@pytest.mark.parametrize("cluster", [Cluster(), FULL], ids=["default", "full"])
def test_the_pods_fit_kubernetes_schemas(cluster: Cluster) -> None:
    described = [one for one in objects(cluster) if one["kind"] != "RayCluster"]
    described += [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod} for pod in pods(cluster)]
    for found in described:
        kubernetes_validate.validate(found, "1.29", strict=True)


@pytest.mark.parametrize("cluster", [Cluster(), FULL], ids=["default", "full"])
def test_ray_runs_without_rights_with_what_the_sidecar_offers(cluster: Cluster) -> None:
    for group, pod in zip(groups(cluster), pods(cluster), strict=True):
        assert group["template"]["metadata"]["annotations"] == {"ray.io/overwrite-container-cmd": "true"}
        (ray,) = pod["containers"]
        assert ray["command"] == ["/bin/bash", "-c", "--"]
        (script,) = ray["args"]
        assert "\n" not in script.strip()
        assert ". /run/meshray/env && eval" in script
        assert script.index("$KUBERAY_GEN_RAY_START_CMD") < script.index("$MESHRAY_RAY_START")
        assert ray["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert ray["securityContext"]["runAsNonRoot"] is True
        assert ray["volumeMounts"] == [{"name": "meshray-run", "mountPath": "/run/meshray", "readOnly": True}]
        assert {"name": "RAY_AUTH_MODE", "value": "token"} in ray["env"]


def test_the_autoscaler_finds_nodes_by_their_instance_and_not_by_address() -> None:
    found = specification(Cluster(workers=3, min_workers=1, max_workers=9))
    assert found["enableInTreeAutoscaling"] is True
    assert found["autoscalerOptions"]["version"] == "v2"
    (workers,) = found["workerGroupSpecs"]
    assert (workers["replicas"], workers["minReplicas"], workers["maxReplicas"]) == (3, 1, 9)


def test_only_what_kuberay_needs_stays_open_in_the_cluster() -> None:
    def exposed(cluster: Cluster) -> list[list[str]]:
        return [
            [word.removeprefix("--expose=") for word in pod["initContainers"][0]["args"] if word.startswith("--expose")]
            for pod in pods(cluster)
        ]

    operator = {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
    }

    def admitted(cluster: Cluster) -> list[int]:
        everywhere, head = (one["spec"] for one in objects(cluster) if one["kind"] == "NetworkPolicy")
        assert everywhere["ingress"][0] == {"ports": [{"protocol": "UDP"}]}
        # The operator asks the head's port of Serve whether it serves, and adds it to the Service then.
        assert all(operator in rule["from"] for rule in (*everywhere["ingress"][1:], *head["ingress"][1:]))
        assert all(rule["from"] for rule in head["ingress"])
        return [rule["ports"][0]["port"] for rule in (*everywhere["ingress"][1:], *head["ingress"])]

    jobs = Cluster(with_jobs=True)
    assert (exposed(Cluster()), admitted(Cluster())) == ([["6379"], []], [6379])
    assert (exposed(jobs), admitted(jobs)) == ([["6379", "8265"], []], [6379, 8265])
    assert (exposed(FULL), admitted(FULL)) == ([["6379", "8265", "8000"], ["8000"]], [8000, 6379, 8265])


@pytest.mark.parametrize("cluster", [Cluster(), FULL, SERVICE], ids=["default", "full", "service"])
def test_the_policies_select_the_pods_by_a_label_that_they_have(cluster: Cluster) -> None:
    """KubeRay chooses the name of the RayCluster of a RayService, so the label ray.io/cluster is not known."""
    everywhere, head = (one["spec"] for one in objects(cluster) if one["kind"] == "NetworkPolicy")
    label = {"meshray.io/cluster": cluster.name}
    assert everywhere["podSelector"] == {"matchLabels": label}
    assert head["podSelector"] == {"matchLabels": {**label, "ray.io/node-type": "head"}}
    assert head["ingress"][0]["from"] == [{"podSelector": {"matchLabels": label}}]
    assert [group["template"]["metadata"]["labels"] for group in groups(cluster)] == [label, label]


def test_a_ray_service_has_the_same_ray_cluster_and_never_a_second_one() -> None:
    (found,) = [one for one in objects(SERVICE) if one["kind"] not in ("NetworkPolicy",)]
    assert found["kind"] == "RayService"
    assert set(found["spec"]) == {"rayClusterConfig", "serveConfigV2", "upgradeStrategy"}
    assert found["spec"]["rayClusterConfig"] == specification(replace(SERVICE, serve_config=""))
    assert found["spec"]["serveConfigV2"] == SERVICE.serve_config
    # A mesh has one Ray head: that of a second RayCluster could not join.
    assert found["spec"]["upgradeStrategy"] == {"type": "None"}


@pytest.mark.parametrize("text", ["  a:\n  - n: 1", "a: |\n  1\n\n  2", "a:\n\t- 1", "'é': 1  ", "a\r\nb", "# a"])
def test_serve_applications_arrive_unchanged(text: str) -> None:
    (found,) = [one for one in objects(replace(SERVICE, serve_config=text)) if one["kind"] == "RayService"]
    assert found["spec"]["serveConfigV2"] == text


def test_an_operator_that_sends_the_token_needs_no_proxy() -> None:
    cluster = Cluster(operator_token=True)
    assert specification(cluster)["authOptions"] == {"mode": "token"}
    assert "authOptions" not in specification(Cluster(with_jobs=True))
    head, _ = pods(cluster)
    (sidecar,) = head["initContainers"]
    assert "--expose=8265" in sidecar["args"]
    assert "--dashboard-host=0.0.0.0" in head["containers"][0]["args"][0]


def test_for_jobs_a_proxy_has_the_dashboards_port_and_no_rights() -> None:
    def script(cluster: Cluster) -> str:
        return str(pods(cluster)[0]["containers"][0]["args"][0])

    head, worker = pods(Cluster(with_jobs=True))
    _, proxy = head["initContainers"]
    assert len(worker["initContainers"]) == 1
    assert proxy["restartPolicy"] == "Always"
    assert '8265 127.0.0.1 "$POD_IP"' in proxy["args"][0]
    assert proxy["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert proxy["securityContext"]["runAsNonRoot"] is True
    # The dashboard itself listens on the overlay address then.
    assert "--dashboard-host" not in script(Cluster(with_jobs=True))
    assert "--dashboard-host=0.0.0.0" in script(Cluster())


def test_the_options_reach_the_pods() -> None:
    assert {one["metadata"]["namespace"] for one in objects(FULL)} == {"ray"}
    _, workers = groups(FULL)
    assert workers["rayStartParams"]["object-store-memory"] == str(4 * 1024**3)
    head_pod, worker_pod = pods(FULL)
    assert worker_pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert "nvidia.com/gpu" not in head_pod["containers"][0]["resources"]["limits"]
    assert worker_pod["terminationGracePeriodSeconds"] > 300
    for pod in (head_pod, worker_pod):
        assert pod["initContainers"][0]["resources"]["limits"]["squat.ai/tun"] == 1
        assert not [volume for volume in pod["volumes"] if "hostPath" in volume]
        assert pod["imagePullSecrets"] == [{"name": "registry"}]


def test_ray_runs_until_its_node_has_left(tmp_path: Path) -> None:
    """Kubernetes ends Ray's container at once when it ends the pod, while the sidecar drains."""
    assert "lifecycle" not in pods(FULL)[0]["containers"][0]
    command = pods(FULL)[1]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert (
        yaml.safe_load(ray_cluster_values(FULL))["worker"]["lifecycle"]["preStop"]["exec"]["command"][2:] == command[2:]
    )
    assert command[:2] == ["timeout", "310s"]
    home = Home(tmp_path / "state", tmp_path)
    words = [word.replace("/run/meshray", str(home.run)) for word in command]
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(home.control_socket))
        waiting = subprocess.Popen(words)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(1)
        home.control_socket.unlink()
        assert waiting.wait(10) == 0


def test_the_commands_in_the_comments_can_be_typed(tmp_path: Path) -> None:
    """The folders of the two tokens are made first, and other users of that machine cannot read them."""
    lines = [line.removeprefix("#").strip() for line in ray_cluster(Cluster()).splitlines() if line.startswith("#")]
    first = lines.index("sudo meshray init --hub-only") + 1
    script = "\n".join(lines[first : first + 3]).replace("sudo meshray", "echo")
    subprocess.run(["sh", "-euc", script], cwd=tmp_path, check=True, timeout=10)
    assert [(tmp_path / name / "token").stat().st_mode & 0o077 for name in ("head", "worker")] == [0, 0]


def test_the_values_for_kuberays_chart_describe_the_same_pods() -> None:
    values = yaml.safe_load(ray_cluster_values(FULL))
    assert values["image"] == {
        "repository": "registry.example.org:5000/ray/worker",
        "tag": "7",
        "pullPolicy": "IfNotPresent",
    }
    assert yaml.safe_load(ray_cluster_values(Cluster()))["image"]["tag"] == "latest"
    for part, group, pod in zip(("head", "worker"), groups(FULL), pods(FULL), strict=True):
        (ray,) = pod["containers"]
        found = values[part]
        assert found["volumes"] == pod["volumes"]
        assert {name: found[name] for name in ("labels", "annotations")} == group["template"]["metadata"]
        assert found["rayStartParams"] == group["rayStartParams"]
        same = ("command", "args", "volumeMounts", "securityContext", "resources")
        assert {name: found[name] for name in same} == {name: ray[name] for name in same}
        assert found["containerEnv"] == ray["env"]
    head, worker = (values[part]["initContainers"][0] for part in ("head", "worker"))
    assert head == pods(FULL)[0]["initContainers"][0]
    # The chart leaves 30 s for the end of a pod.
    assert worker["lifecycle"]["preStop"]["exec"]["command"][-1] == "--drain=15s"
    assert values["head"]["autoscalerOptions"] == specification(FULL)["autoscalerOptions"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "x" * 36},
        {"name": "Ray"},
        {"namespace": "_"},
        {"image": "a b"},
        {"ray_version": "2"},
        {"ray_version": "2.51.1"},
        {"ray_version": "\u0662.60.0"},
        {"ray_version": '2.60.0"\n'},
        {"head_cpu": "x"},
        {"head_cpu": "\u0662"},
        {"head_memory": "x"},
        {"cpu": "x"},
        {"memory": "1Gi"},
        {"head_secret": "/"},
        {"token_secret": "/"},
        {"pull_secret": "/"},
        {"tun": "x"},
        {"gpu_resource": "x"},
        {"workers": 11},
        {"min_workers": 3},
        {"serve_config": "applications: []", "operator_token": True},
        {"serve_config": "applications: []", "name": "x" * 30},
    ],
)
def test_values_that_kuberay_would_refuse_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ray_cluster(Cluster(**wrong))
    with pytest.raises(UsageError):
        ray_cluster_values(Cluster(**wrong))
