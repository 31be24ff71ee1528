"""The API server accepts everything that is rendered, with strict validation of fields."""

from __future__ import annotations

import pytest

from tests.kube import ray_clusters, workers
from tests.kube.conftest import Ground
from tests.kube.programs import definitions, program


@pytest.fixture(scope="module")
def kuberay(ground: Ground) -> None:
    """Define KubeRay's kinds of objects."""
    ground.kubernetes.apply(*(file.read_text() for file in definitions()))


def dry_run(ground: Ground, manifests: str) -> list[str]:
    """Let the server validate objects without creating them; return their names."""
    words = ("apply", "--dry-run=server", "--validate=strict", "--output=name", "--filename=-")
    return ground.kubernetes.kubectl(*words, stdin=manifests).stdout.split()


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--gpus=2", "--label=zone=a", "--ray-arg=--resources={}", "--json-logs", "--pull-secret=registry"),
        ("--tun=none",),
        ("--rootless", "--tun=squat.ai/tun"),
    ],
)
def test_workers(ground: Ground, options: tuple[str, ...]) -> None:
    assert f"deployment.apps/{workers.NAME}" in dry_run(ground, workers.rendered(ground.head, *options))


@pytest.mark.parametrize("options", [(), ("--serve", "--gpus=1", "--json-logs"), ("--operator-token", "--tun=none")])
def test_a_ray_cluster(ground: Ground, kuberay: None, options: tuple[str, ...]) -> None:
    assert f"raycluster.ray.io/{ray_clusters.NAME}" in dry_run(ground, ray_clusters.rendered(ground.head, *options))


def test_a_ray_service(ground: Ground, kuberay: None) -> None:
    ground.head.path("/tmp/serve.yaml").write_text("applications: []\n")
    manifests = ray_clusters.rendered(ground.head, "--serve-config=/tmp/serve.yaml")
    assert f"rayservice.ray.io/{ray_clusters.NAME}" in dry_run(ground, manifests)


def test_the_chart(ground: Ground) -> None:
    ground.head.run(["meshray", "render", "kubernetes", "--chart", "--output=/tmp/chart.tgz"])
    ground.kubernetes.host.path("/tmp/chart.tgz").write_bytes(ground.head.path("/tmp/chart.tgz").read_bytes())
    words = ["install", "charted", "/tmp/chart.tgz", "--dry-run=server", "--set=replicas=3"]
    done = ground.kubernetes.host.run([program("helm"), *words])
    assert "replicas: 3" in done.stdout
