"""The few numbers and places that several parts share."""

from __future__ import annotations

from pathlib import Path

#: UDP for WireGuard, TCP for coordinator and relay. One above WireGuard's customary 51820 range.
DEFAULT_PORT = 51888
INTERFACE = "meshray0"
#: WireGuard's usual: 1500 less 80 for an IPv6 underlay.
DEFAULT_MTU = 1420
#: Holds an easy NAT's mapping open (conntrack forgets after 30 s).
KEEPALIVE_S = 20
#: UDP on the overlay address: the agents' round-trip probes.
PROBE_PORT = 51889


def own_ports(mesh_port: int) -> tuple[int, ...]:
    """Ports that are meshray's own on every node: the mesh's, the probes' and that of throughput measurements."""
    return mesh_port, PROBE_PORT, PROBE_PORT + 1


#: Root's own copies of meshray, and by which name every user finds the one in use.
INSTALL_FOLDER = Path("/usr/local/lib/meshray")
PROGRAM_LINK = Path("/usr/local/bin/meshray")
