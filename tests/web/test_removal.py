"""A removed node's machine: its sessions and streams of the page end at once, even if its agent does nothing.

   switch wan 203.0.113.0/24
    ┌──────────┴──────────┐
  head                  guest      a node without Ray; it reaches the head over the overlay and directly
203.0.113.10         203.0.113.20
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lab.cluster import Cluster
from tests.lab.faults_host import process_id
from tests.lab.host import Host, HostProcess
from tests.lab.world import World
from tests.web.mesh import PORT
from tests.web.sessions import enter, using, web

#: The time from the answer of `meshray node rm` to the end of everything that the node had, seconds.
ENDED_S = 2.0
STREAM = "/events?page=map"


@dataclass
class Site:
    """The mesh of the picture."""

    world: World
    head: Host
    guest: Host
    overlay: str
    outer: str

    def stream(self, address: str, *options: str) -> HostProcess:
        """Open the live events of a page on the guest, and wait for the first one."""
        process = self.guest.popen(["curl", "-skN", *options, f"{address}{STREAM}"], name="stream")
        self.world.wait_until(lambda: "data:" in process.output, 10, f"events from {address}")
        return process

    def status(self, address: str, *options: str) -> int:
        """Return the HTTP status of the page for the guest; 0 if nothing answers within a second."""
        ask = ["curl", "-sk", "--max-time", "1", "-o", "/dev/null", "-w", "%{http_code}", *options, f"{address}/"]
        return int(self.guest.run(ask, check=False).stdout or 0)

    def connections(self) -> str:
        """Return the connections of the guest that the coordinator still has."""
        return self.head.run(["ss", "-Htn", "state", "established", f"sport = :{PORT} and dst 10.99.0.2"]).stdout


@pytest.fixture
def site() -> Iterator[Site]:
    with World("removal") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head, guest = world.host("head", wan, "203.0.113.10"), world.host("guest", wan, "203.0.113.20")
        cluster = Cluster.without_ray(head, [guest])
        assert cluster.ip(guest) == "10.99.0.2"
        yield Site(world, head, guest, f"https://{cluster.ip(head)}:{PORT}", f"https://{head.address}:{PORT}")


@pytest.mark.parametrize("agent", ["agent works", "agent is stopped"])
def test_its_sessions_and_streams_end_at_once(site: Site, agent: str) -> None:
    cookie = using(enter(site.guest, str(web(site.guest, "open")["url"])))
    streams = {
        "member, overlay": site.stream(site.overlay),
        "link, overlay": site.stream(site.overlay, *cookie),
        "link, direct": site.stream(site.outer, *cookie),
    }
    assert site.status(site.overlay) == site.status(site.overlay, *cookie) == site.status(site.outer, *cookie) == 200
    # Without its agent the guest keeps its tunnel: only the head can end what it has.
    if agent == "agent is stopped":
        site.guest.shell(f"kill -STOP {process_id('agent')}")
    site.head.run(["meshray", "node", "rm", "guest", "--yes", "--json"])
    removed = time.monotonic()

    running: list[str] = []
    while time.monotonic() < removed + ENDED_S:
        running = [name for name, process in streams.items() if process.returncode is None]
        if not running and not site.connections():
            break
        time.sleep(0.05)
    print(f"{agent}: everything has ended {time.monotonic() - removed:.2f} s after the removal")
    assert (running, site.connections()) == ([], "")
    # The cookie is worthless on every path; over the overlay nothing answers at all.
    assert site.status(site.outer, *cookie) == 401
    assert site.status(site.overlay, *cookie) == site.status(site.overlay) == 0
