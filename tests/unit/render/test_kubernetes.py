"""Worker pods: what the manifests contain, and that the values of users stay in their places.

Helm and a real API server check the same files in tests/kube.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from meshray.errors import UsageError
from meshray.render.kubernetes import Workers, chart, manifests
from meshray.render.kubernetes.values import cpus, memory

#: What PodSecurity's level "baseline" lets a container add.
BASELINE = {
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
}


def objects(workers: Workers) -> dict[str, dict[str, Any]]:
    """Return the objects by kind."""
    return {found["kind"]: found for found in yaml.safe_load_all(manifests(workers)) if found}


def pod(workers: Workers) -> dict[str, Any]:
    """Return the specification of the pods."""
    found: dict[str, Any] = objects(workers)["Deployment"]["spec"]["template"]["spec"]
    return found


def container(workers: Workers) -> dict[str, Any]:
    """Return the only container."""
    (found,) = pod(workers)["containers"]
    assert isinstance(found, dict)
    return found


def volume(workers: Workers, name: str) -> dict[str, Any]:
    return next(found for found in pod(workers)["volumes"] if found["name"] == name)


def test_the_pods_are_restricted_to_what_a_tunnel_needs() -> None:
    context = container(Workers())["securityContext"]
    assert "privileged" not in context
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert context["capabilities"]["drop"] == ["ALL"]
    assert set(context["capabilities"]["add"]) - BASELINE == {"NET_ADMIN"}
    found = pod(Workers())
    assert found["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(found)
    assert [volume for volume in found["volumes"] if "hostPath" in volume] == [volume_of_tun()]


def volume_of_tun() -> dict[str, Any]:
    return {"name": "tun", "hostPath": {"path": "/dev/net/tun", "type": "CharDevice"}}


def test_without_root_a_pod_has_no_capability_and_needs_a_device_plugin() -> None:
    workers = Workers(rootless=True, tun="squat.ai/tun")
    found, context = pod(workers), container(workers)["securityContext"]
    assert found["hostUsers"] is False
    assert found["securityContext"]["runAsNonRoot"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["procMount"] == "Unmasked"
    assert container(workers)["resources"]["limits"]["squat.ai/tun"] == 1
    assert "--rootless" in container(workers)["args"]
    assert not [volume for volume in found["volumes"] if "hostPath" in volume]
    for tun in ("host", "none"):
        with pytest.raises(UsageError, match="device plugin"):
            manifests(Workers(rootless=True, tun=tun))


@pytest.mark.parametrize("version", ["1.29", "1.34"])
@pytest.mark.parametrize(
    "workers",
    [
        Workers(),
        Workers(namespace="ray", gpus=1, tun="none", pull_secret="registry", log_format="json", labels=("a=b",)),
        Workers(tun="squat.ai/tun"),
    ],
    ids=["default", "options", "device plugin"],
)
def test_the_objects_fit_kubernetes_schemas(workers: Workers, version: str) -> None:
    for found in objects(workers).values():
        kubernetes_validate.validate(found, version, strict=True)


def test_the_objects_without_root_fit_the_schemas_since_they_know_the_fields() -> None:
    for found in objects(Workers(rootless=True, tun="squat.ai/tun")).values():
        kubernetes_validate.validate(found, "1.33", strict=True)


def test_what_the_options_say_reaches_the_pods() -> None:
    workers = Workers(
        name="gpu",
        namespace="ray",
        image="registry.example.org:5000/ray/worker:1",
        replicas=4,
        cpu="1500m",
        memory="64Gi",
        gpus=2,
        gpu_resource="amd.com/gpu",
        object_store=memory("16Gi"),
        token_secret="mesh.token",
        pull_secret="registry",
        tun="none",
        drain_s=600,
        labels=("zone=eu",),
        ray_args=('--resources={"disk": 1}',),
        log_format="json",
    )
    found = objects(workers)
    assert {(one["metadata"]["name"], one["metadata"]["namespace"]) for one in found.values()} == {("gpu", "ray")}
    assert found["Deployment"]["spec"]["replicas"] == 4
    worker = container(workers)
    assert worker["image"] == "registry.example.org:5000/ray/worker:1"
    assert worker["args"] == [
        "join",
        "--ephemeral",
        "--label=zone=eu",
        "--",
        "--num-gpus=2",
        "--num-cpus=2",
        f"--object-store-memory={16 * 1024**3}",
        '--resources={"disk": 1}',
    ]
    assert worker["resources"]["limits"] == {"cpu": "1500m", "memory": "64Gi", "amd.com/gpu": 2}
    assert worker["resources"]["requests"] == {"cpu": "1500m", "memory": "64Gi"}
    assert {one["name"]: one["value"] for one in worker["env"]} == {
        "MESHRAY_TOKEN_FILE": "/run/secrets/mesh.token/token",
        "MESHRAY_LOG_FORMAT": "json",
    }
    assert volume(workers, "token")["secret"] == {"secretName": "mesh.token", "optional": True}
    assert pod(workers)["imagePullSecrets"] == [{"name": "registry"}]
    assert worker["lifecycle"]["preStop"]["exec"]["command"] == [
        "python",
        "-I",
        "-m",
        "meshray",
        "leave",
        "--yes",
        "--drain=600s",
    ]
    assert pod(workers)["terminationGracePeriodSeconds"] > 600


def test_shared_memory_holds_the_object_store_and_counts_as_memory() -> None:
    workers = Workers(object_store=memory("4Gi"))
    size = int(volume(workers, "shm")["emptyDir"]["sizeLimit"])
    assert size * 0.95 >= memory("4Gi")
    assert volume(workers, "shm")["emptyDir"]["medium"] == "Memory"
    with pytest.raises(UsageError, match="--memory is 4Gi"):
        manifests(Workers(object_store=memory("4Gi"), memory="4Gi"))


def test_nothing_in_the_cluster_connects_to_ray_in_the_pods() -> None:
    policy = objects(Workers())["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert policy["ingress"] == [{"ports": [{"protocol": "UDP"}]}]
    labels = objects(Workers())["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for kind, place in (("NetworkPolicy", "podSelector"), ("PodDisruptionBudget", "selector")):
        assert objects(Workers())[kind]["spec"][place] == {"matchLabels": labels}


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "-a"},
        {"name": "1a"},
        {"name": "x" * 47},
        {"namespace": "a b"},
        {"image": 'a"\n  evil: true'},
        {"image": ""},
        {"image": "registry.example.org/Worker"},
        {"image": "worker:1:2"},
        {"image": "ray/"},
        {"image": "x" * 256},
        {"image": "registry.example.org:65536/worker"},
        {"object_store": memory("74Mi")},
        {"cpu": "0"},
        {"cpu": "1Gi"},
        {"memory": "lots"},
        {"memory": "1m"},
        {"gpu_resource": "gpu"},
        {"token_secret": "a/b"},
        {"pull_secret": "A"},
        {"tun": "yes"},
        {"labels": ("a=b\n",)},
        {"ray_args": ("a\x00",)},
    ],
)
def test_values_that_kubernetes_would_refuse_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"--[a-z-]+ "):
        manifests(Workers(**wrong))


@pytest.mark.parametrize(
    "image",
    [
        "worker",
        "ray/worker:1-gpu",
        "registry.example.org:65535/worker",
        "R.example.org:5000/a/b__c--d",
        "localhost:5000/x:T@sha256:" + "0a" * 32,
    ],
)
def test_an_image_may_have_a_registry_a_tag_and_a_digest(image: str) -> None:
    assert container(Workers(image=image))["image"] == image


@pytest.mark.parametrize("word", ['a"b', "{{ .Values.image }}", "it's", "a: b # c", "\\", "- x", "ü"])
def test_no_argument_breaks_out_of_its_place(word: str) -> None:
    workers = Workers(ray_args=(word,), labels=(f"a={word}",))
    args = container(workers)["args"]
    assert (args[-1], args[2]) == (word, f"--label=a={word}")
    values = yaml.safe_load(unpacked(chart(workers, "1"))["meshray-workers/values.yaml"])
    assert (values["rayArgs"], values["labels"]) == ([word], [f"a={word}"])


def test_quantities() -> None:
    assert [memory(text) for text in ("8Gi", "1.5Gi", "100M", "1024")] == [8 * 1024**3, 3 * 1024**3 // 2, 10**8, 1024]
    assert [cpus(text) for text in ("2", "1500m", "500m", "0.1")] == [2, 2, 1, 1]


def unpacked(archive: bytes) -> dict[str, str]:
    """Return the files of a chart."""
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(archive))) as tar:
        files = {member.name: tar.extractfile(member) for member in tar}
    return {name: file.read().decode() for name, file in files.items() if file is not None}


def test_the_chart_has_one_value_for_each_that_its_templates_use() -> None:
    files = unpacked(chart(Workers(), "0.1.0"))
    assert sorted(name.removeprefix("meshray-workers/") for name in files) == [
        "Chart.yaml",
        "templates/NOTES.txt",
        "templates/_helpers.tpl",
        "templates/workers.yaml",
        "values.schema.json",
        "values.yaml",
    ]
    templates = "".join(text for name, text in files.items() if "/templates/" in name)
    used = set(re.findall(r"\.Values\.(\w+)", templates))
    described = set(json.loads(files["meshray-workers/values.schema.json"])["properties"])
    assert described - {"global"} == used
    assert used == set(yaml.safe_load(files["meshray-workers/values.yaml"]))
    assert chart(Workers(), "0.1.0") == chart(Workers(), "0.1.0")
    assert yaml.safe_load(files["meshray-workers/Chart.yaml"])["version"] == "0.1.0"


def faults(**changed: object) -> list[str]:
    """Return the values of the chart that its schema refuses, after these changes."""
    files = unpacked(chart(Workers(tun="squat.ai/tun"), "1"))
    values = {**yaml.safe_load(files["meshray-workers/values.yaml"]), **changed}
    validator = jsonschema.Draft7Validator(json.loads(files["meshray-workers/values.schema.json"]))
    return ["/".join(map(str, error.path)) or error.message for error in validator.iter_errors(values)]


@pytest.mark.parametrize(
    "workers",
    [
        Workers(),
        Workers(
            cpu="1500m", memory="1.5Ti", image="r.example.org:5000/a/b:1", pull_secret="r", labels=("a.b/c=", "d=e")
        ),
        Workers(
            rootless=True, tun="squat.ai/tun", log_format="json", gpus=2, ray_args=('--resources={"disk": 1}', "\u00fc")
        ),
    ],
    ids=["default", "options", "rootless"],
)
def test_the_charts_schema_accepts_what_the_command_accepts(workers: Workers) -> None:
    files = unpacked(chart(workers, "1"))
    values = yaml.safe_load(files["meshray-workers/values.yaml"])
    jsonschema.validate(values, json.loads(files["meshray-workers/values.schema.json"]))


@pytest.mark.parametrize(
    ("field", "name", "wrong"),
    [
        ("image", "image", ""),
        ("image", "image", 'a"\n  evil: true'),
        ("image", "image", "registry.example.org/Worker"),
        ("image", "image", "registry.example.org:65536/worker"),
        ("image", "image", "x" * 256),
        ("cpu", "cpu", "0"),
        ("cpu", "cpu", "0.0m"),
        ("cpu", "cpu", "1Gi"),
        ("memory", "memory", "lots"),
        ("memory", "memory", "1m"),
        ("memory", "memory", "0Gi"),
        ("object_store", "objectStoreMemory", memory("74Mi")),
        ("gpu_resource", "gpuResource", "gpu"),
        ("token_secret", "tokenSecret", "a/b"),
        ("token_secret", "tokenSecret", ""),
        ("pull_secret", "pullSecret", "A"),
        ("tun", "tun", "yes"),
    ],
)
def test_the_charts_schema_refuses_what_the_command_refuses(field: str, name: str, wrong: Any) -> None:
    with pytest.raises(UsageError):
        manifests(Workers(**{field: wrong}))
    assert faults(**{name: wrong}) == [name]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"replicas": -1}, "replicas"),
        ({"replicas": 10_001}, "replicas"),
        ({"replicas": "two"}, "replicas"),
        ({"gpus": 1025}, "gpus"),
        ({"drainSeconds": -1}, "drainSeconds"),
        ({"rootless": True, "tun": "host"}, "tun"),
        ({"rootless": "yes"}, "rootless"),
        ({"labels": ["zone"]}, "labels/0"),
        ({"labels": ["zone=two words"]}, "labels/0"),
        ({"labels": ["ray.io/zone=a"]}, "labels/0"),
        ({"rayArgs": ["a\n"]}, "rayArgs/0"),
        ({"logFormat": "xml"}, "logFormat"),
        ({"pullPolicy": "Sometimes"}, "pullPolicy"),
        ({"cpuRequest": "0"}, "cpuRequest"),
        ({"nodeSelector": {"gpu": 1}}, "nodeSelector/gpu"),
    ],
)
def test_the_charts_schema_refuses_values_outside_of_the_options_bounds(changed: dict[str, Any], expected: str) -> None:
    assert faults(**changed) == [expected]


def test_the_charts_schema_refuses_a_misspelt_value() -> None:
    (message,) = faults(replica=1)
    assert "replica" in message
    assert faults(**{"global": {}}, cpu=4, memory=8 * 1024**3, cpuRequest=0.5) == []
