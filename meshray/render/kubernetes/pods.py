"""What all pods that are nodes of a mesh have in common, and its checks."""

from __future__ import annotations

from dataclasses import dataclass

from meshray.render.kubernetes import values


@dataclass(frozen=True)
class Pods:
    """Pods that are nodes of a mesh.

    Attributes:
        name: of the object that creates them; the nodes' names begin with it.
        namespace: empty: that of kubectl's context.
        image: of every container.
        cpu: the limit of CPU time of a worker, as Kubernetes writes it; Ray counts whole CPUs.
        memory: the limit of memory of a worker, which includes the object store.
        gpus: of each worker; 0 requests none.
        gpu_resource: the resource of the GPUs' device plugin.
        object_store: of each worker's Ray, bytes.
        token_secret: the Secret whose key ``token`` is a token for workers.
        pull_secret: the Secret for the registry of the image; empty: none.
        tun: the source of /dev/net/tun: ``host``, a device plugin's resource, or ``none`` (WireGuard in each kernel).
        drain_s: how long running tasks may take to end, seconds.
        log_format: ``json``, or empty for text.
    """

    name: str = ""
    namespace: str = ""
    image: str = "meshray-worker"
    cpu: str = "2"
    memory: str = "8Gi"
    gpus: int = 0
    gpu_resource: str = "nvidia.com/gpu"
    object_store: int = 2 * 1024**3
    token_secret: str = "meshray-token"  # noqa: S105 - a Secret's name
    pull_secret: str = ""
    tun: str = values.TUN_OF_HOST
    drain_s: int = 60
    log_format: str = ""

    @property
    def tun_is_resource(self) -> bool:
        """Whether /dev/net/tun comes from a device plugin."""
        return self.tun not in (values.TUN_OF_HOST, values.NO_TUN)

    def check_names(self, longest: int, *, rootless: bool = False) -> None:
        """Check the names and the source of /dev/net/tun.

        Args:
            longest: the longest possible `name`.

        Raises:
            UsageError: ``kubernetes_value``, if Kubernetes would refuse one.
        """
        values.require_label(self.name, "--name", longest)
        if self.namespace:
            values.require_label(self.namespace, "--namespace", 63)
        values.require_image(self.image)
        values.require_resource(self.gpu_resource, "--gpu-resource")
        values.require_secret(self.token_secret, "--token-secret")
        if self.pull_secret:
            values.require_secret(self.pull_secret, "--pull-secret")
        values.require_tun(self.tun, rootless=rootless)
