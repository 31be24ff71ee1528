"""Machines that are near a node and not in its mesh: one on its network, a container on its Docker bridge."""

from __future__ import annotations

from dataclasses import replace

from tests.lab.host import Host
from tests.lab.world import World

DOCKER_NETWORK = "172.17.0.0/16"
#: The node's own address on its Docker bridge.
DOCKER_HOST = "172.17.0.1"
_DOCKER_CONTAINER = "172.17.0.2"


def container(world: World, node: Host) -> Host:
    """Create a host whose only link is a bridge ``docker0`` on the node, as Docker does; the node is its gateway."""
    wire = world.switch(f"docker-{node.name}", DOCKER_NETWORK, gateway=DOCKER_HOST)
    inside = world.host(f"container-{node.name}", wire, _DOCKER_CONTAINER)
    node.run(["ip", "link", "add", "docker0", "type", "bridge"])
    # The node is the gateway and has none.
    world.connect(node, replace(wire, gateway=None), DOCKER_HOST, interface="veth0")
    node.shell(
        "set -e; ip address flush dev veth0; ip link set veth0 master docker0\n"
        f"ip address add {DOCKER_HOST}/16 dev docker0; ip link set docker0 up"
    )
    return inside


def remove_container(world: World, node: Host) -> None:
    """Undo `container`."""
    world.hosts.pop(f"container-{node.name}").end()
    node.shell("ip link delete veth0; ip link delete docker0")


def link_local(node: Host, interface: str, seen_from: str) -> str:
    """Return the node's IPv6 address on this interface, as used by a machine whose own interface is ``seen_from``."""

    def usable() -> str:
        shown = node.run(["ip", "-json", "-6", "address", "show", "dev", interface, "scope", "link"]).json()
        found = [entry for link in shown for entry in link.get("addr_info", ()) if not entry.get("tentative")]
        return str(found[0]["local"]) if found else ""

    return f"{node.wait_until(usable, 20, f'an IPv6 address on {interface}')}%{seen_from}"
