"""The facts about a node that runs in a pod, or on a machine of a Kubernetes cluster."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Clash:
    """An address of the cluster that lies in the overlay's network.

    Attributes:
        purpose: what has the address, such as ``this pod (eth0)``.
    """

    address: str = ""
    purpose: str = ""


@dataclass(frozen=True)
class PodFacts:
    """The pod facts of one node.

    Attributes:
        in_pod: the agent runs in a pod.
        overlay: the mesh's network; empty: not known.
        clashes: addresses of the pod and of the cluster in the overlay's network.
        kube_proxy: this network namespace has kube-proxy's table of nftables: it is that of the cluster's machine.
        service_networks: the networks of Services, to which kube-proxy drops what belongs to no Service.
        dropped: the one that overlaps the overlay; empty: none.
        free: a network for a mesh that overlaps none of these.
        hides_processes: the programs of the pod's other containers cannot be seen.
    """

    in_pod: bool = False
    overlay: str = ""
    clashes: tuple[Clash, ...] = ()
    kube_proxy: bool = False
    service_networks: tuple[str, ...] = ()
    dropped: str = ""
    free: str = ""
    hides_processes: bool = False
