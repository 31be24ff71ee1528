"""Rays that meshray did not start, on nodes that joined with --no-ray: outsiders do not reach them, members do.

         switch wan 203.0.113.0/24
  ┌──────────────┬──────────────────┬────────────────┐
hub 203.0.113.10  node 203.0.113.20  laptop 203.0.113.30  outsider 203.0.113.99

The laptop is in no mesh. It may log in to the node, as `ray up` needs it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.lab.cluster import Cluster
from tests.lab.host import USER, Host
from tests.lab.neighbours import link_local
from tests.lab.scan import open_ports
from tests.lab.test_guard import TCP
from tests.lab.test_ssh import authorise
from tests.lab.world import World

UP_S = 240
KNOWN = (6379, 8265, 10001)
#: The server of Ray Client listens at Ray's own address and the loopback, where members do not dial it.
EVERYWHERE = (6379, 8265)
#: Login sessions have a PATH of their own.
RAY = f"{sys.prefix}/bin/ray"
#: Ray would look for its address with the help of the internet.
SMALL = f"--num-cpus=1 --object-store-memory={100 * 2**20} --dashboard-host=0.0.0.0 --node-ip-address=203.0.113.20"
HOME = {"HOME": f"/home/{USER}"}
CLUSTER = f"""
cluster_name: lab
provider:
  type: local
  head_ip: 203.0.113.20
  worker_ips: []
auth:
  ssh_user: root
  ssh_private_key: /root/.ssh/id_ed25519
head_start_ray_commands:
  - {RAY} start --head --port=6379 --autoscaling-config=~/ray_bootstrap_config.yaml {SMALL}
"""
#: The guard looks once a second, and a look takes a while on a busy machine.
LONGEST_OPEN_S = 8.0


@dataclass
class Watch:
    """Dials the known ports from the outsider all the time.

    Attributes:
        seen: when each port that ever answered was first and last seen open, monotonic.
    """

    lab: Lab
    seen: dict[int, tuple[float, float]] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self.ended.is_set():
            for port in open_ports(self.lab.outsider, str(self.lab.node.address), ports=KNOWN)[0]:
                now = time.monotonic()
                self.seen[port] = (self.seen.get(port, (now, now))[0], now)


@dataclass
class Lab:
    """The hosts of the picture above."""

    cluster: Cluster
    hub: Host
    node: Host
    laptop: Host
    outsider: Host

    def from_outside(self, *ports: int) -> list[set[int]]:
        """Return the node's ports (all, or these) that answer the outsider, by IPv4 and IPv6."""
        return open_ports(self.outsider, str(self.node.address), link_local(self.node, "eth0", "eth0"), ports=ports)

    def refused_to_members(self, *ports: int) -> object:
        """Return the node's ports that do not answer another member, with the reason."""
        return self.hub.run([sys.executable, "-c", TCP, self.cluster.ip(self.node), *map(str, ports)]).json()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with World("otherrays") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        hosts = {"hub": 10, "node": 20, "laptop": 30, "outsider": 99}
        hub, node, laptop, outsider = (world.host(name, wan, f"203.0.113.{last}") for name, last in hosts.items())
        authorise(node, laptop)
        yield Lab(Cluster.without_ray(hub, [node]), hub, node, laptop, outsider)


def require_closed(lab: Lab, watch: Watch) -> None:
    """Check that only members reach the Ray that was just started."""
    lab.node.wait_until(lambda: lab.refused_to_members(*EVERYWHERE) == [], UP_S, "members reaching the other Ray")
    lab.node.wait_until(lambda: lab.from_outside(*KNOWN) == [set(), set()], 20, "the other Ray being closed")
    assert lab.from_outside() == [{22}, {22}], "only sshd answers"
    open_s = {port: last - first for port, (first, last) in watch.seen.items()}
    print(f"open to the outsider, seconds: {open_s}")
    assert all(seconds < LONGEST_OPEN_S for seconds in open_s.values()), open_s


def test_a_ray_started_by_hand(lab: Lab) -> None:
    try:
        with Watch(lab) as watch:
            started = f"RAY_AUTH_MODE=disabled {RAY} start --head --port=6379 {SMALL}"
            lab.node.run(["sh", "-c", started], user=USER, env=HOME, deadline_s=UP_S)
            require_closed(lab, watch)
    finally:
        lab.node.run([RAY, "stop", "--force"], user=USER, env=HOME, check=False, deadline_s=UP_S)
    lab.node.wait_until(lambda: lab.refused_to_members(6379) != [], 20, "the end of that Ray")


def test_a_ray_of_ray_up(lab: Lab) -> None:
    lab.laptop.path("/root/cluster.yaml").write_text(CLUSTER)
    try:
        with Watch(lab) as watch:
            lab.laptop.run([RAY, "up", "-y", "--no-config-cache", "/root/cluster.yaml"], deadline_s=UP_S)
            require_closed(lab, watch)
    finally:
        lab.node.run([RAY, "stop", "--force"], check=False, deadline_s=UP_S)
