"""What is rendered for Kubernetes, checked by Helm and by KubeRay's own definitions, without a cluster."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from meshray.render.kubernetes import Cluster, Workers, chart, manifests, ray_cluster
from tests.kube.programs import definitions, program

#: Helm knows the name and the namespace of a release; the chart's default values are the options of `render`.
RELEASE = Workers(name="gpu", namespace="ray")
OPTIONS = Workers(
    name="gpu",
    namespace="ray",
    image="registry.example.org:5000/ray/worker:1",
    replicas=3,
    cpu="1500m",
    gpus=2,
    pull_secret="registry",
    tun="squat.ai/tun",
    labels=("zone=eu",),
    ray_args=('--resources={"disk": 1}',),
    log_format="json",
)


def helm(*words: str | Path) -> str:
    """Return what Helm prints; a failure shows it."""
    done = subprocess.run([program("helm"), *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def refusal(*words: str | Path) -> str:
    """Return the error with which Helm ends."""
    done = subprocess.run([program("helm"), *words], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def objects(text: str) -> list[dict[str, Any]]:
    """Return the objects in the order of their kinds."""
    return sorted((one for one in yaml.safe_load_all(text) if one), key=lambda one: str(one["kind"]))


@pytest.mark.parametrize(
    "workers",
    [
        RELEASE,
        OPTIONS,
        Workers(name="gpu", namespace="ray", tun="none", cpu="3"),
        Workers(name="gpu", namespace="ray", rootless=True, tun="squat.ai/tun"),
    ],
    ids=["default", "options", "kernel", "rootless"],
)
def test_helm_makes_the_plain_files_of_the_chart(tmp_path: Path, workers: Workers) -> None:
    file = tmp_path / "chart.tgz"
    file.write_bytes(chart(workers, "0.1.0"))
    assert "0 chart(s) failed" in helm("lint", "--strict", file)
    made = helm("template", workers.name, file, "--namespace", workers.namespace)
    assert objects(made) == objects(manifests(workers))


def test_values_of_helm_reach_the_pods(tmp_path: Path) -> None:
    file = tmp_path / "chart.tgz"
    file.write_bytes(chart(RELEASE, "0.1.0"))
    words = [
        "cpu=500m",
        "cpuRequest=100m",
        "memory=16Gi",
        "objectStoreMemory=4294967296",
        "drainSeconds=120",
        "nodeSelector.gpu=a100",
        "tolerations[0].key=gpu",
        "tolerations[0].operator=Exists",
        "podAnnotations.a=b",
        "extraVolumes[0].name=data",
        "extraVolumeMounts[0].name=data",
    ]
    settings = [word for setting in words for word in ("--set", setting)]
    (deployment,) = [one for one in objects(helm("template", "gpu", file, *settings)) if one["kind"] == "Deployment"]
    template = deployment["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert {"--num-cpus=1", "--object-store-memory=4294967296"} <= set(container["args"])
    assert container["resources"]["requests"] == {"cpu": "100m", "memory": "16Gi"}
    assert container["lifecycle"]["preStop"]["exec"]["command"][-1] == "--drain=120s"
    assert template["spec"]["terminationGracePeriodSeconds"] > 120
    assert template["spec"]["nodeSelector"] == {"gpu": "a100"}
    assert template["spec"]["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert template["metadata"]["annotations"] == {"a": "b"}
    assert template["spec"]["volumes"][-1] == {"name": "data"}
    assert container["volumeMounts"][-1] == {"name": "data"}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("image=", "/image"),
        ("image=registry.example.org:70000/worker", "/image"),
        ("replicas=-1", "/replicas"),
        ("replica=3", "replica"),
        ("tokenSecret=a/b", "/tokenSecret"),
        ("rootless=true", "/tun"),
        ("memory=2Gi", "a larger memory, or a smaller objectStoreMemory"),
    ],
)
def test_helm_refuses_what_the_command_refuses(tmp_path: Path, setting: str, words: str) -> None:
    file = tmp_path / "chart.tgz"
    file.write_bytes(chart(RELEASE, "0.1.0"))
    assert words in refusal("template", "gpu", file, "--set", setting)


@pytest.mark.parametrize("name", ["1gpu", "a.b", "x" * 47])
def test_helm_refuses_a_release_whose_name_no_node_can_have(tmp_path: Path, name: str) -> None:
    file = tmp_path / "chart.tgz"
    file.write_bytes(chart(RELEASE, "0.1.0"))
    assert f'"{name}", is no name of a node' in refusal("template", name, file)


def test_quantities_may_be_numbers(tmp_path: Path) -> None:
    file, values = tmp_path / "chart.tgz", tmp_path / "values.yaml"
    file.write_bytes(chart(RELEASE, "0.1.0"))
    values.write_text("cpu: 1.5\nmemory: 8000000000\n")
    made = helm("template", "gpu", file, "--values", values)
    (deployment,) = [one for one in objects(made) if one["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert "--num-cpus=2" in container["args"]
    assert float(container["resources"]["limits"]["memory"]) == 8_000_000_000


def strict(schema: Any) -> Any:
    """Return a structural schema of Kubernetes that rejects unknown fields, as a server with strict validation does."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    if found.get("type") == "object" and "properties" in found and "additionalProperties" not in found:
        found["additionalProperties"] = bool(found.get("x-kubernetes-preserve-unknown-fields"))
    if found.get("x-kubernetes-int-or-string"):
        found.pop("type", None)
        found["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    return found


@cache
def kuberay_schema(kind: str) -> Any:
    """Return KubeRay's schema of a kind. It is a megabyte, which only the loader in C reads within a second."""
    (file,) = [path for path in definitions() if path.name == f"ray.io_{kind.lower()}s.yaml"]
    definition = yaml.load(file.read_text(), yaml.CSafeLoader)
    versions = {version["name"]: version for version in definition["spec"]["versions"]}
    schema = strict(versions["v1"]["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


@pytest.mark.parametrize(
    "cluster",
    [
        Cluster(),
        Cluster(
            namespace="ray",
            gpus=1,
            tun="squat.ai/tun",
            pull_secret="registry",
            with_jobs=True,
            serve=True,
            log_format="json",
        ),
        Cluster(operator_token=True),
        Cluster(serve=True, serve_config="applications: []"),
    ],
    ids=["default", "options", "token", "service"],
)
def test_kuberays_definition_accepts_it(cluster: Cluster) -> None:
    (found,) = [one for one in objects(ray_cluster(cluster)) if one["kind"] == cluster.kind]
    errors = jsonschema.Draft202012Validator(kuberay_schema(cluster.kind)).iter_errors(found)
    assert [(list(error.path), error.message[:200]) for error in errors] == []
