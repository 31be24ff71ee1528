"""Examine the pod and the cluster: their addresses, and kube-proxy's rules where they are visible."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network

from meshray.doctor.context import Context
from meshray.doctor.pod.facts import Clash, PodFacts
from meshray.firewall.host_programs import Run, run_program
from meshray.linux import pod
from meshray.linux.hidden_processes import hides_processes
from meshray.runtime.preflight import Route, choose_network, pod_addresses, routes_here

#: kube-proxy's table in nftables mode, and the rule for what belongs to no Service (its proxier.go).
_TABLE = ("nft", "list", "table", "ip", "kube-proxy")
_DROPS = re.compile(r'ip daddr (\{[^}]*\}|[0-9./]+) [^\n]*?drop comment "Drop traffic to unallocated ClusterIPs"')
_NETWORK = re.compile(r"[0-9]+(?:\.[0-9]+){3}(?:/[0-9]+)?")


def measure(context: Context, run: Run = run_program) -> PodFacts:
    """Return the facts of this node. Blocking."""
    in_pod = pod.in_pod(context.environ)
    table = run(_TABLE, "")
    services = service_networks(table.out) if table.ok else ()
    overlay = context.mesh_map.mesh.network.cidr if context.mesh_map is not None else None
    addresses = pod_addresses(context.environ)
    return PodFacts(
        in_pod=in_pod,
        overlay=str(overlay or ""),
        clashes=clashes(addresses, overlay),
        kube_proxy=table.ok,
        service_networks=tuple(map(str, services)),
        dropped=next((str(network) for network in services if overlay is not None and network.overlaps(overlay)), ""),
        free=_free(services) if in_pod or services else "",
        hides_processes=hides_processes(),
    )


def service_networks(table: str) -> tuple[IPv4Network, ...]:
    """Return the networks to which this table of kube-proxy drops what belongs to no Service (pure)."""
    found = _DROPS.search(table)
    return tuple(IPv4Network(text, strict=False) for text in _NETWORK.findall(found[1])) if found else ()


def clashes(addresses: Mapping[IPv4Address, str], overlay: IPv4Network | None) -> tuple[Clash, ...]:
    """Return the addresses that lie in the overlay's network (pure)."""
    if overlay is None:
        return ()
    return tuple(Clash(str(address), purpose) for address, purpose in addresses.items() if address in overlay)


def _free(services: Iterable[IPv4Network]) -> str:
    return str(choose_network([*routes_here(), *(Route(network, "Services") for network in services)])[0])
