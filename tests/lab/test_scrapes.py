"""Prometheus' view of a mesh: every agent and every Ray answers over the overlay, and nothing from outside.

                 switch wan 203.0.113.0/24
      ┌────────────┬────────────┬─────────────┐
    head        worker        login        outsider
203.0.113.10 203.0.113.20 203.0.113.30   203.0.113.99
                          without root   a route into the overlay through the head
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from prometheus_client.parser import text_string_to_metric_families

from meshray.defaults import METRICS_PORT
from tests.lab.cluster import RAY_ARGS, UP_DEADLINE_S, Cluster
from tests.lab.host import USER, Host
from tests.lab.scan import open_ports
from tests.lab.unprivileged import give_tun
from tests.lab.world import World

MESH_PORT = 51888
#: An agent's limit of resident memory, bytes.
MOST_RESIDENT = 60_000_000
SCRAPE = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())"


@dataclass
class Place:
    cluster: Cluster
    login: Host
    outsider: Host
    addresses: dict[str, str]

    def scrape(self, address: str, path: str = "/metrics", port: int = METRICS_PORT) -> str:
        """Return a page of a node, as a program on the head reads it."""
        return self.cluster.head.run([sys.executable, "-c", SCRAPE, f"http://{address}:{port}{path}"]).stdout

    def series(self, name: str) -> dict[str, list[tuple[dict[str, str], float]]]:
        """Return the labels and values of a node's series by name."""
        found: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(self.scrape(self.addresses[name])):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
        return found


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with World("scrapes") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head, worker = world.host("head", wan, "203.0.113.10"), world.host("worker", wan, "203.0.113.20")
        login, outsider = world.host("login", wan, "203.0.113.30"), world.host("outsider", wan, "203.0.113.99")
        login.run(["mkdir", "-p", f"/home/{USER}/.local/share"], user=USER)
        give_tun(login)
        cluster = Cluster.start(head, [worker])
        token = str(cluster.answers["head"]["token"])
        words = ["meshray", "join", "--json", "--name", "login", token, "--", *RAY_ARGS]
        joined = login.run(words, user=USER, deadline_s=UP_DEADLINE_S, cwd=f"/home/{USER}").json()
        outsider.run(["ip", "route", "add", "10.99.0.0/16", "via", "203.0.113.10"])
        addresses = {host.name: cluster.ip(host) for host in (head, worker)}
        yield Place(cluster, login, outsider, {**addresses, "login": joined["node"]["ip"]})


def test_every_agent_answers_with_both_names_in_each_pair(place: Place) -> None:
    for name in place.addresses:
        others = place.addresses.keys() - {name}
        place.cluster.head.wait_until(
            lambda me=name, them=others: (  # type: ignore[misc]
                {labels["peer"] for labels, _ in place.series(me).get("meshray_peer_rtt_seconds", ())} == them
            ),
            30,
            f"round trips of {name}",
        )
        found = place.series(name)
        assert {labels["node"] for entries in found.values() for labels, _ in entries if "node" in labels} == {name}
        assert found["meshray_node_info"][0][0]["ip"] == place.addresses[name]
        assert [value for _, value in found["meshray_ray_alive"]] == [1.0]
        assert found["meshray_peer_receive_bytes_total"][0][1] > 0
        assert found["meshray_engine_interface_receive_bytes_total"][0][1] > 0
        assert found["meshray_engine_udp_receive_queue_bytes"][0][1] >= 0
        assert found["meshray_engine_resident_memory_bytes"][0][1] > 1_000_000
        assert ("meshray_coordinator_enrolments_total" in found) is (name == "head")


def test_promtool_accepts_what_they_answer(place: Place) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    for address in place.addresses.values():
        text = place.scrape(address)
        check = subprocess.run([promtool, "check", "metrics"], input=text, text=True, capture_output=True, check=False)
        assert (check.returncode, check.stdout + check.stderr) == (0, "")


def test_the_discovery_leads_to_every_agent_and_every_ray(place: Place) -> None:
    groups = json.loads(place.scrape(place.addresses["head"], "/sd"))
    assert {group["labels"]["node"]: group["labels"]["role"] for group in groups} == {
        "head": "head", "worker": "worker", "login": "worker",
    }  # fmt: skip
    assert {group["labels"]["mesh"] for group in groups} == {place.cluster.answers["head"]["mesh"]}
    assert all(group["labels"]["site"] for group in groups)
    targets = [target for group in groups for target in group["targets"]]
    assert len(targets) == 3 * 2 + 2
    for target in targets:
        address, _, port = target.rpartition(":")
        mark = "meshray_node_info" if int(port) == METRICS_PORT else "# HELP"
        place.cluster.head.wait_until(
            lambda at=(address, int(port)), text=mark: text in place.scrape(at[0], port=at[1]),  # type: ignore[misc]
            30,
            f"series at {target}",
        )


def test_no_one_outside_reaches_it(place: Place) -> None:
    for address in place.addresses.values():
        assert not place.outsider.can_reach(address)
    wan = [str(host.address) for host in (*place.cluster.hosts, place.login)]
    assert open_ports(place.outsider, *wan) == [{MESH_PORT}, set(), set()]
    assert open_ports(place.outsider, place.addresses["head"]) == [set()]


def test_an_agent_stays_small_however_often_it_is_scraped(place: Place) -> None:
    for name in place.addresses:
        for _ in range(50):
            place.scrape(place.addresses[name])
        ((_, resident),) = place.series(name)["meshray_agent_resident_memory_bytes"]
        print(f"{name}: {resident / 1e6:.1f} MB resident after 50 scrapes")
        assert resident < MOST_RESIDENT
