"""Checks of the pod and the cluster under a node (pure)."""

from __future__ import annotations

from functools import partial

from meshray.doctor.host_specs import host_spec
from meshray.doctor.pod.facts import PodFacts
from meshray.doctor.report import FAIL, OK, SKIP, Finding, Spec


def pod_network(facts: PodFacts) -> Finding:
    """Check that the overlay takes no address of the pod or of the cluster."""
    if not facts.in_pod or not facts.overlay:
        return Finding(SKIP, "this node does not run in a pod" if not facts.in_pod else "the overlay is not known")
    if facts.clashes:
        named = ", ".join(f"{clash.address} of {clash.purpose}" for clash in facts.clashes)
        evidence = f"the overlay {facts.overlay} contains {named}: packets between pods, and DNS, end up in the mesh"
        return Finding(FAIL, evidence, _another_network(facts))
    return Finding(OK, f"the addresses of the pod and of the cluster are outside of {facts.overlay}")


def kube_proxy(facts: PodFacts) -> Finding:
    """Check that kube-proxy in nftables mode does not drop the overlay as a Service that does not exist."""
    if not facts.kube_proxy:
        return Finding(SKIP, "this network namespace has no nftables rules of kube-proxy")
    networks = ", ".join(facts.service_networks) or "none"
    if facts.dropped:
        evidence = f"kube-proxy drops packets to {facts.dropped}, the network of Services, and the overlay is"
        return Finding(FAIL, f"{evidence} {facts.overlay}", _another_network(facts))
    return Finding(OK, f"kube-proxy works with nftables; its network of Services is not the overlay's: {networks}")


def _another_network(facts: PodFacts) -> str:
    return f"on the head, create the mesh again with another network: meshray init --network {facts.free or 'CIDR'}"


_spec = partial(host_spec, lambda host: host.pod)
SPECS: tuple[Spec, ...] = (
    _spec("pod_network", "addresses of the pod and the cluster", pod_network),
    _spec("kube_proxy", "kube-proxy's rules", kube_proxy),
)
