"""`meshray render kubernetes`: its options, its files and its errors."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml

from tests.unit.cli.fakes import type_in


def test_the_manifests_go_to_stdout_to_a_file_and_into_json(tmp_path: Path) -> None:
    words = ("render", "kubernetes", "--replicas=3", "--object-store=1Gi", "--json-logs", "--drain=2m")
    shown = type_in(*words)
    deployment = next(one for one in yaml.safe_load_all(shown.out) if one and one["kind"] == "Deployment")
    assert deployment["spec"]["replicas"] == 3
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert f"--object-store-memory={1024**3}" in container["args"]
    assert {"name": "MESHRAY_LOG_FORMAT", "value": "json"} in container["env"]
    assert "--drain=120s" in container["lifecycle"]["preStop"]["exec"]["command"]
    file = tmp_path / "workers.yaml"
    written = type_in(*words, "-o", str(file))
    assert (written.code, written.out, file.read_text()) == (0, "", shown.out)
    assert f"kubectl apply -f {file}" in written.err
    odd = tmp_path / "it's ours.yaml"
    assert f"kubectl apply -f {shlex.quote(str(odd))}\n" in type_in(*words, "-o", str(odd)).err
    assert json.loads(type_in(*words, "--json").out)["text"] == shown.out


def test_a_chart_is_a_file_and_needs_a_name(tmp_path: Path) -> None:
    refused = type_in("render", "kubernetes", "--chart")
    assert (refused.code, "-o FILE.tgz" in refused.err) == (2, True)
    file = tmp_path / "chart.tgz"
    written = type_in("render", "kubernetes", "--chart", "-o", str(file), "--json")
    assert json.loads(written.out)["text"] == ""
    assert f"helm install meshray-worker {file}\n" in written.err
    elsewhere = type_in("render", "kubernetes", "--chart", "--name=gpu", "--namespace=ray", "-o", str(file))
    assert f"helm install gpu {file} --namespace ray\n" in elsewhere.err
    assert file.read_bytes().startswith(b"\x1f\x8b")
    assert type_in("render", "kubernetes", "--chart", "-o", str(tmp_path)).code == 1


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--memory", "2Gi"), "a larger --memory"),
        (("--cpu", "many"), "--cpu 2"),
        (("--object-store", "-1"), "--object-store 8Gi"),
        (("--object-store", "10Mi"), "--object-store 2Gi"),
        (("--label", "zone"), "--label zone=lab-2"),
        (("--label", "zone=two words"), "--label zone=lab-2"),
        (("--ray-arg=--worker-port-list=10010",), "--min-worker-port"),
        (("--drain", "soon"), "30m"),
        (("--rootless",), "--tun squat.ai/tun"),
    ],
)
def test_a_wrong_value_is_refused_with_an_example(words: tuple[str, ...], hint: str) -> None:
    outcome = type_in("render", "kubernetes", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert hint in outcome.err


def test_a_ray_cluster_and_the_values_of_kuberays_chart(tmp_path: Path) -> None:
    words = ("render", "kuberay", "--workers=3", "--max-workers=5", "--jobs")
    shown = type_in(*words)
    cluster = next(one for one in yaml.safe_load_all(shown.out) if one and one["kind"] == "RayCluster")
    (group,) = cluster["spec"]["workerGroupSpecs"]
    assert (group["replicas"], group["maxReplicas"]) == (3, 5)
    sidecars = cluster["spec"]["headGroupSpec"]["template"]["spec"]["initContainers"]
    assert [sidecar["name"] for sidecar in sidecars] == ["meshray", "dashboard"]
    values = yaml.safe_load(type_in(*words, "--values").out)
    assert values["worker"]["replicas"] == 3
    file = tmp_path / "values.yaml"
    written = type_in(*words, "--values", "-o", str(file))
    assert f"helm install ray kuberay/ray-cluster --values {file}" in written.err
    # KubeRay's chart has no NetworkPolicy, and the proxy adds Ray's token for everyone who reaches it.
    assert "every pod that reaches port 8265 of the head controls Ray" in written.err
    assert "controls Ray" not in type_in("render", "kuberay", "--values").err
    refused = type_in("render", "kuberay", "--values", "--operator-token")
    assert (refused.code, "--jobs --values" in refused.err) == (2, True)
    written = type_in(*words, "--values", "--namespace=lab", "-o", str(file))
    assert f"--values {file} --namespace lab\n" in written.err
    refused = type_in("render", "kuberay", "--workers=11")
    assert (refused.code, "hint: for example --min-workers 0 --workers 11 --max-workers 11" in refused.err) == (2, True)
    refused = type_in("render", "kuberay", "--ray-version=2.40.0")
    assert (refused.code, "Ray 2.52 or later" in refused.err) == (2, True)


def test_a_ray_service_with_the_applications_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    words = ("render", "kuberay", f"--serve-config={file}")
    refused = type_in(*words)
    assert (refused.code, f"{file} cannot be read: No such file" in refused.err) == (2, True)
    file.write_bytes(b"\xff")
    assert "cannot be read: it is not text" in type_in(*words).err
    file.write_text("\n")
    refused = type_in(*words)
    assert (refused.code, f"{file} is empty" in refused.err, "serve build" in refused.err) == (2, True, True)
    file.write_text("applications:\n- name: hello\n")
    service = next(one for one in yaml.safe_load_all(type_in(*words).out) if one and one["kind"] == "RayService")
    assert service["spec"]["serveConfigV2"] == "applications:\n- name: hello"
    sidecars = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["initContainers"]
    assert [sidecar["name"] for sidecar in sidecars] == ["meshray", "dashboard"]
    assert "--expose=8000" in sidecars[0]["args"]
    for other, hint in (("--values", "without --values"), ("--operator-token", "without --operator-token")):
        refused = type_in(*words, other)
        assert (refused.code, refused.out, hint in refused.err) == (2, "", True)


@pytest.mark.parametrize(
    ("command", "secrets"),
    [("kubernetes", ["meshray-token"]), ("kuberay", ["meshray-head-token", "meshray-token"])],
)
def test_the_comments_have_commands_for_the_chosen_namespace(command: str, secrets: list[str]) -> None:
    def steps(*words: str) -> list[str]:
        shown = type_in("render", command, *words).out.partition("\n---\n")[0].splitlines()
        return [line.removeprefix("#      ") for line in shown if line.startswith("#      ")]

    chosen, default = steps("--namespace=lab"), steps()
    assert [line.split()[6] for line in chosen if "create secret" in line] == secrets
    for line in chosen:
        assert not line.startswith("kubectl") or "--namespace lab " in line or "namespace lab " in line
    assert [line.replace(" --namespace lab", "").replace(" lab ", " NAMESPACE ") for line in chosen] == default
    for line in default:
        folder, slash, _ = line.partition(" > ")[2].partition("/")
        assert not slash or any(made.endswith("mkdir head worker") and folder in made for made in default)
