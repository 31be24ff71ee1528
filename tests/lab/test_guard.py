"""No machine outside of the overlay reaches a port of Ray, whatever Ray listens on; the overlay reaches all of them.

               switch wan 203.0.113.0/24
        ┌─────────────┼──────────────┬───────────┐
      head         walled           nat       outsider 203.0.113.99
  203.0.113.10  203.0.113.20    203.0.113.30
        │                            │ switch nat-lan 192.168.7.0/24
     docker0                    ┌────┴─────────────┐
     container                nested           neighbour 192.168.7.99
                           192.168.7.10
                                │
                             docker0
                             container

Real Ray, with an actor on each node that listens on ports of its own, as Ray Serve does. Every TCP port of the two
nodes that no other firewall protects is tried, by IPv4 and IPv6 (link-local addresses, which each host has).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.lab.cluster import Cluster
from tests.lab.host import Host, HostProcess
from tests.lab.neighbours import DOCKER_HOST, container, link_local, remove_container
from tests.lab.scan import open_ports
from tests.lab.topologies import OneOfEach
from tests.lab.world import World

MESH_PORT = 51888
#: Serve's; here another user's web server on one node, and an actor's on the others.
WEB, SERVE = 9000, 8000
#: The ports of a node and the head that the others need (docs.ray.io, "Configuring Ray": ports).
NODES_PORTS = (20101, 20102, 20103, 20104, 20105, 20106)
HEADS_PORTS = (6379, 8265, 10001, *NODES_PORTS)
#: An actor on each node, which outlives its driver, listens on 8000 and on two ports that the kernel chooses.
LISTENERS = """
import json, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

class Listener:
    def listen(self, serve):
        import socket
        self.ends = []
        for family, every, port in ((2, "0.0.0.0", 0), (10, "::", 0), (2, "0.0.0.0", serve)):
            end = socket.socket(family)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == 10:
                end.setsockopt(41, socket.IPV6_V6ONLY, 0)
            end.bind((every, port))
            end.listen()
            self.ends.append(end)
        return [end.getsockname()[1] for end in self.ends]

ray.init("auto", log_to_driver=False, namespace="guard")
ports = {}
for node in ray.nodes():
    where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    name = "listener-" + node["NodeManagerAddress"]
    actor = ray.remote(Listener).options(
        num_cpus=0, scheduling_strategy=where, lifetime="detached", name=name).remote()
    ports[node["NodeManagerAddress"]] = ray.get(actor.listen.remote(%d))
print(json.dumps(ports))
"""
END = """
import ray
ray.init("auto", log_to_driver=False, namespace="guard")
for name in ray.util.list_named_actors():
    ray.kill(ray.get_actor(name))
print("true")
"""
#: A driver stays and listens for Ray.
DRIVER = "import ray, time; ray.init('auto', log_to_driver=False); print('driving', flush=True); time.sleep(600)"
WEB_SERVER = (sys.executable, "-m", "http.server", "--bind", "::", str(WEB))
TCP = """
import json, socket, sys
refused = []
for port in map(int, sys.argv[2:]):
    try:
        socket.create_connection((sys.argv[1], port), timeout=5).close()
    except OSError as error:
        refused.append([port, str(error)])
print(json.dumps(refused))
"""
DASHBOARD = """
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=10).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


@dataclass
class Scene:
    """The hosts of the picture, and the ports on which each node's actor listens, by the node's name."""

    head: Host
    walled: Host
    nested: Host
    outsider: Host
    neighbour: Host
    containers: tuple[Host, Host]
    actors: dict[str, list[int]]

    def seen(self, ports: tuple[int, ...] = ()) -> dict[str, list[set[int]]]:
        """Return the ports (all, or these) that answer each outside machine at the node next to it: IPv4, IPv6."""
        of_head, of_nested = self.containers
        views = {
            "outsider": (self.outsider, str(self.head.address), link_local(self.head, "eth0", "eth0")),
            "neighbour": (self.neighbour, str(self.nested.address), link_local(self.nested, "eth0", "eth0")),
            "container on head": (of_head, DOCKER_HOST, link_local(self.head, "docker0", "eth0")),
            "container on nested": (of_nested, DOCKER_HOST, link_local(self.nested, "docker0", "eth0")),
        }
        with ThreadPoolExecutor(len(views)) as pool:
            found = {name: pool.submit(open_ports, *view, ports=ports) for name, view in views.items()}
            return {name: view.result() for name, view in found.items()}


#: The ports that each of them may see: the coordinator, and a web server that does not belong to Ray.
ALLOWED = {
    "outsider": [{MESH_PORT}] * 2,
    "neighbour": [{WEB}] * 2,
    "container on head": [{MESH_PORT}] * 2,
    "container on nested": [{WEB}] * 2,
}


@pytest.fixture(scope="module")
def scene(ground: tuple[World, OneOfEach], cluster: Cluster) -> Iterator[Scene]:
    world, hosts = ground
    outsider = world.host("outsider", hosts.wan, "203.0.113.99")
    neighbour = world.host("neighbour", hosts.lan, "192.168.7.99")
    containers = (container(world, hosts.head), container(world, hosts.nested))
    started: list[HostProcess] = [hosts.nested.popen(WEB_SERVER), drive(hosts.nested, cluster)]
    listening = cluster.python(LISTENERS % SERVE)
    actors = {host.name: listening[cluster.ip(host)] for host in cluster.hosts}
    try:
        yield Scene(hosts.head, hosts.walled, hosts.nested, outsider, neighbour, containers, actors)
    finally:
        cluster.python(END)
        for process in started:
            process.stop()
        for node in (hosts.head, hosts.nested):
            remove_container(world, node)
        for name in ("outsider", "neighbour"):
            world.hosts.pop(name).end()


def drive(host: Host, cluster: Cluster) -> HostProcess:
    driver = host.popen(["meshray", "run", "--", "python", "-c", DRIVER], user=cluster.users[host.name])
    host.wait_until(lambda: "driving" in driver.output, 60, "the driver")
    return driver


def test_no_port_of_ray_answers_outside(scene: Scene, cluster: Cluster) -> None:
    some = (6379, 8265, WEB, SERVE, MESH_PORT, *scene.actors["head"], *scene.actors["nested"])
    scene.head.wait_until(lambda: scene.seen(some) == ALLOWED, 60, "what the actors opened being closed")
    assert scene.seen() == ALLOWED


def test_from_the_overlay_all_that_ray_needs_answers(scene: Scene, cluster: Cluster) -> None:
    for host, ports in ((scene.head, HEADS_PORTS), (scene.nested, NODES_PORTS)):
        wanted = [*ports, *scene.actors[host.name]]
        asked = [sys.executable, "-c", TCP, cluster.ip(host), *map(str, wanted)]
        assert scene.walled.run(asked).json() == []


def test_rays_own_token_is_required(scene: Scene, cluster: Cluster) -> None:
    """A member that has no token gets 401; a driver on it gets the token from meshray."""
    address = f"http://{cluster.ip(scene.head)}:8265/api/v0/nodes"
    assert scene.walled.run([sys.executable, "-c", DASHBOARD, address]).stdout.strip() == "401"
    nodes = "import json, ray; ray.init('auto', log_to_driver=False); print(json.dumps(len(ray.nodes())))"
    assert cluster.python(nodes, host=scene.walled) == 3


def test_ports_are_closed_again_after_a_flush(scene: Scene) -> None:
    some = (6379, SERVE, MESH_PORT, *scene.actors["head"])
    scene.head.run(["nft", "flush", "ruleset"])
    scene.head.wait_until(
        lambda: open_ports(scene.outsider, str(scene.head.address), ports=some) == [{MESH_PORT}], 30, "the guard"
    )
    assert "firewall" not in json.dumps(scene.head.run(["meshray", "status", "--json"], check=False).json()["problems"])
