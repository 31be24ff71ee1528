"""Defaults and paths that several parts share."""

from __future__ import annotations

from pathlib import Path

#: UDP for WireGuard, TCP for coordinator and relay. Above WireGuard's usual 51820.
DEFAULT_PORT = 51888
INTERFACE = "meshray0"
#: WireGuard's default: 1500 minus 80 bytes for an IPv6 underlay.
DEFAULT_MTU = 1420
#: The smallest size that is tried on a path, bytes of an inner packet: what IPv6's least MTU of 1280 leaves.
LEAST_MTU = 1200
#: Keeps a NAT mapping alive (conntrack drops it after 30 s).
KEEPALIVE_S = 20
#: UDP on the overlay address, for the agents' round-trip probes.
PROBE_PORT = 51889
#: TCP on the overlay address, for the agents' metrics.
METRICS_PORT = 20190

#: The most pods that one file creates, and the most GPUs of each.
MOST_PODS, MOST_GPUS = 10_000, 1024
#: The longest duration of a command line, seconds: ten years; longer than that means never.
LONGEST_DURATION_S = 10 * 365 * 86400


def own_ports(mesh_port: int) -> tuple[int, ...]:
    """Return the ports that meshray uses on every node: the mesh's, the probes' and the metrics'."""
    return mesh_port, PROBE_PORT, METRICS_PORT


#: Root's copies of meshray, and the link through which users run the current one.
INSTALL_FOLDER = Path("/usr/local/lib/meshray")
PROGRAM_LINK = Path("/usr/local/bin/meshray")
