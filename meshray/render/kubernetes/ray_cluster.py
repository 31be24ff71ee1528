"""A RayCluster of KubeRay in which every pod is a node of the mesh.

    pod ──┬─ sidecar  meshray join --ray external ──► /run/meshray/env ─┐
          └─ ray      ray start, by KubeRay  ◄──────────────────────────┘

>>> [line for line in ray_cluster(Cluster(workers=3)).splitlines() if line.startswith("      replicas:")]
['      replicas: 3']
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from meshray.errors import UsageError
from meshray.render.kubernetes import values
from meshray.render.kubernetes.pods import Pods
from meshray.render.templates import render
from meshray.render.yaml_scalars import FILTERS

#: A pod's name is RAYCLUSTER-GROUP-worker-XXXXX; KubeRay itself refuses longer ones.
_LONGEST_NAME = 35
#: KubeRay calls the RayCluster of a RayService NAME-XXXXX.
_SUFFIX_OF_SERVICE = 6
#: KubeRay's chart has no value for the time that a pod has for its end, and Kubernetes' default is 30 seconds.
_CHART_DRAIN_S = 15
#: The ports of the head that KubeRay's own programs reach at the pod's address.
GCS_PORT, DASHBOARD_PORT = 6379, 8265
#: The port of Ray Serve's HTTP proxy, on every pod.
SERVE_PORT = 8000


@dataclass(frozen=True)
class Cluster(Pods):
    """A RayCluster with one group of workers. Head and workers use the same image, for Ray and for the sidecar.

    Attributes:
        ray_version: the Ray in the image.
        workers: how many worker pods there are at first.
        min_workers, max_workers: the bounds of the autoscaler.
        head_cpu, head_memory: the limits of the head's Ray.
        head_secret: the Secret whose key ``token`` is a token for the head.
        with_jobs: the operator and pods of the namespace reach the dashboard.
        operator_token: they send Ray's token, which KubeRay reads from the Secret with the cluster's name. Otherwise a
            proxy adds it.
        serve: programs of the namespace may reach Ray Serve.
        serve_config: the configuration of the applications, as YAML, of a RayService that creates the RayCluster;
            empty: the RayCluster alone.
    """

    name: str = "ray"
    ray_version: str = "2.60.0"
    workers: int = 2
    min_workers: int = 0
    max_workers: int = 10
    head_cpu: str = "2"
    head_memory: str = "8Gi"
    head_secret: str = "meshray-head-token"  # noqa: S105 - a Secret's name
    with_jobs: bool = False
    operator_token: bool = False
    serve: bool = False
    serve_config: str = ""

    @property
    def kind(self) -> str:
        """The kind of KubeRay's object."""
        return "RayService" if self.serve_config else "RayCluster"

    @property
    def cpus(self) -> int:
        """The CPUs that Ray counts on a worker."""
        return values.cpus(self.cpu)

    @property
    def head_cpus(self) -> int:
        """The CPUs that Ray counts on the head."""
        return values.cpus(self.head_cpu, "--head-cpu")

    @property
    def tun_resource(self) -> str:
        """The device plugin's resource; empty: none is used."""
        return self.tun if self.tun_is_resource else ""

    @property
    def repository(self) -> str:
        """The image without its tag."""
        return self.image.removesuffix(f":{self.tag}")

    @property
    def tag(self) -> str:
        """The image's tag."""
        _, separator, tag = self.image.rpartition(":")
        return tag if separator and "/" not in tag else "latest"

    @property
    def jobs(self) -> bool:
        """Whether the operator reaches the dashboard, which a RayService needs as well as a RayJob."""
        return self.with_jobs or self.operator_token or self.serve

    @property
    def proxy(self) -> bool:
        """Whether a proxy adds Ray's token to the requests to the dashboard."""
        return self.jobs and not self.operator_token

    def secret(self, head: bool) -> str:
        """Return the Secret with the token of the head, or of workers."""
        return self.head_secret if head else self.token_secret

    def exposed(self, head: bool) -> tuple[int, ...]:
        """Return the ports that stay open in the pods' own network."""
        of_head = (GCS_PORT, *((DASHBOARD_PORT,) if self.jobs else ())) if head else ()
        return (*of_head, *((SERVE_PORT,) if self.serve else ()))


def ray_cluster(cluster: Cluster) -> str:
    """Return the objects for `kubectl apply`.

    Raises:
        UsageError: ``kubernetes_value``, if Kubernetes or KubeRay would refuse a value.
        MeshrayError: templates_missing.
    """
    return _rendered("raycluster", cluster)


def ray_cluster_values(cluster: Cluster) -> str:
    """Return values for KubeRay's chart ray-cluster.

    Raises:
        UsageError: ``kubernetes_value``, if Kubernetes or KubeRay would refuse a value.
        MeshrayError: templates_missing.
    """
    return _rendered("ray_cluster_values", replace(cluster, drain_s=min(cluster.drain_s, _CHART_DRAIN_S)))


def _rendered(template: str, cluster: Cluster) -> str:
    _check(cluster)
    text = render(f"kubernetes/{template}.yaml.j2", {"cluster": cluster}, FILTERS)
    # A macro ends with a line break of its own.
    return "".join(line for line in text.splitlines(keepends=True) if line.strip())


def _check(cluster: Cluster) -> None:
    cluster.check_names(_LONGEST_NAME - (_SUFFIX_OF_SERVICE if cluster.serve_config else 0))
    values.require_ray(cluster.ray_version, "--ray-version")
    values.require_secret(cluster.head_secret, "--head-token-secret")
    values.cpus(cluster.cpu)
    values.cpus(cluster.head_cpu, "--head-cpu")
    values.memory(cluster.head_memory, "--head-memory")
    values.require_room(cluster.object_store, cluster.memory)
    if cluster.serve_config and cluster.operator_token:
        raise UsageError(
            "kubernetes_value",
            "KubeRay chooses the name of a RayService's RayCluster, and so that of the Secret for --operator-token",
            hint="--serve-config FILE without --operator-token: a proxy adds Ray's token",
        )
    if not cluster.min_workers <= cluster.workers <= cluster.max_workers:
        raise UsageError(
            "kubernetes_value",
            f"--workers {cluster.workers} is not between --min-workers {cluster.min_workers} and --max-workers "
            f"{cluster.max_workers}",
            hint=f"for example --min-workers 0 --workers {cluster.workers} --max-workers {max(cluster.workers, 10)}",
        )
