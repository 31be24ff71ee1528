"""A node without root and without meshray's own engine: Debian's wireguard-go inside pasta.

               switch wan 203.0.113.0/24
      ┌─────────────┬───────────┴────────────┬──────────────┐
    head          login                     nat           desk
  root's node   ada's node            192.168.9.0/24     ada's head of a mesh of its own
               drops all inbound             │           203.0.113.30
                                            box
                                        root's node

The tests build on each other, in this order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from tests.lab.cluster import RAY_ARGS, UP_DEADLINE_S, Cluster
from tests.lab.host import REPOSITORY, USER, Host, Result
from tests.lab.unprivileged import give_tun, traces
from tests.lab.world import World

STOCK = {"MESHRAY_ENGINE": "wireguard-go"}
RUN = f"/home/{USER}/.local/share/meshray/run"
NO_UDP_OUT = "table inet udpless {\nchain out {\ntype filter hook output priority 0;\nmeta l4proto udp drop\n}\n}\n"
#: A possible direct path is found soon, seconds.
DIRECT_S = 60
#: UDP that failed is detected after 25 s at most, and is back when the next trial passes.
OTHER_WAY_S = 60


@dataclass
class Site:
    cluster: Cluster
    login: Host
    desk: Host
    before: str

    def ada(self, *words: str, host: Host | None = None, check: bool = True) -> Result:
        """Run ``meshray WORDS`` as ada."""
        return (host or self.login).run(
            ["meshray", *words], user=USER, env=STOCK, check=check, deadline_s=UP_DEADLINE_S, cwd=f"/home/{USER}"
        )

    def pid(self, name: str) -> int:
        """Return the pid of a process of ada's node."""
        return int(json.loads(self.login.path(f"{RUN}/{name}.pid").read_text())["pid"])

    def nodes(self, *, host: Host | None = None) -> dict[str, Any]:
        """Return ada's node's status of all nodes."""
        return {one["name"]: one for one in self.ada("status", "--json", host=host, check=False).json()["nodes"]}

    def way(self, node: str) -> dict[str, str]:
        """Return the path of ada's node to another one."""
        found: dict[str, str] = self.nodes()[node]["path"]
        return found

    def is_reached(self) -> bool:
        """Return whether the head reaches ada's node."""
        return self.cluster.head.can_reach(self.nodes()["login"]["ip"])


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with World("stock") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head = world.host("head", wan, "203.0.113.10")
        login, desk = world.host("login", wan, "203.0.113.20"), world.host("desk", wan, "203.0.113.30")
        nat = world.router("nat", wan, "203.0.113.40", lan="192.168.9.0/24", kind="easy")
        box = world.host("box", nat.lan, "192.168.9.5")
        login.drop_inbound()
        for host in (login, desk):
            host.shell("ip route add default via 203.0.113.10")  # Without one, pasta has nothing to offer.
            give_tun(host)
            host.run(["mkdir", "-p", f"/home/{USER}/.local/share"], user=USER)
        cluster = Cluster.start(head, [])
        box.run(["meshray", "join", "--no-ray", cluster.answers["head"]["token"]], deadline_s=UP_DEADLINE_S)
        yield Site(cluster, login, desk, before=traces(login))


def test_without_pasta_it_is_refused_and_nothing_stays(site: Site) -> None:
    meshray = site.login.run(["sh", "-c", "command -v meshray"]).stdout.strip()
    bare = ["env", "PATH=/nowhere", "MESHRAY_ENGINE=/usr/bin/wireguard-go", meshray]
    token = site.cluster.answers["head"]["token"]
    refused = site.login.run([*bare, "join", "--json", token], user=USER, check=False)
    error = json.loads(refused.stdout)["error"]
    assert (refused.returncode, error["code"]) == (1, "no_engine"), refused
    assert "apt-get install passt" in error["hint"]
    assert traces(site.login) == site.before


def test_it_joins_and_pasta_carries_its_packets(site: Site) -> None:
    done = site.ada("join", "--json", site.cluster.answers["head"]["token"], "--", *RAY_ARGS)
    assert done.json()["ray"] == {"alive": True, "nodes": 2}
    assert "wireguard-go runs inside pasta" in done.stderr
    assert "meshray0" not in site.login.run(["ip", "-o", "link"]).stdout
    sockets = site.login.run(["ss", "-Hlunp"]).stdout
    assert '"passt' in sockets, sockets  # pasta's own name while it runs.
    assert "wireguard-go" not in sockets
    # Its permissions: create an interface in there, and nothing else.
    status = site.login.path(f"/proc/{site.pid('engine')}/status").read_text()
    assert f"CapEff:\t{1 << 12:016x}\n" in status


def test_objects_move_and_the_doctor_reports_what_is_lost(site: Site) -> None:
    head = site.cluster.head
    checks = head.run(["meshray", "doctor", "--deep", "--json"], check=False, deadline_s=200).json()["checks"]
    assert [check for check in checks if check["status"] == "fail"] == []
    assert [check["status"] for check in checks if check["code"] == "ray_deep"] == ["ok"] * 4
    (lost,) = [check for check in checks if check["code"] == "wireguard_available" and check["node"] == "login"]
    assert lost["status"] == "warn"
    assert lost["evidence"].startswith("wireguard-go runs inside pasta. Lost by that: ")
    assert lost["fix"] == f"on login: make -C {REPOSITORY} engine"


def test_a_direct_path_is_found_through_pasta(site: Site) -> None:
    site.login.wait_until(lambda: site.way("box")["kind"] == "direct", DIRECT_S, "a direct path to box")


def test_the_relay_takes_over_when_udp_fails(site: Site) -> None:
    """The relay's end is in the node's namespace, where the engine can reach it."""
    login = site.login
    login.run(["nft", "-f", "-"], stdin=NO_UDP_OUT)
    login.wait_until(lambda: site.way("head")["transport"] == "wss", OTHER_WAY_S, "the relay")
    login.wait_until(site.is_reached, OTHER_WAY_S, "the node through the relay")
    login.shell("nft delete table inet udpless")
    login.wait_until(lambda: site.way("head")["transport"] == "udp", OTHER_WAY_S, "UDP again")


@pytest.mark.parametrize("name", ["agent", "engine", "pasta"])
def test_killed_processes_are_restarted(site: Site, name: str) -> None:
    login, parts = site.login, ("namespace", "ray")
    before = {part: site.pid(part) for part in parts}
    if name == "pasta":
        login.run(["pkill", "-9", "-f", "--", "--config-net"])
    else:
        login.run(["kill", "-9", str(site.pid(name))])
    if name == "agent":
        site.ada("up")
    login.wait_until(site.is_reached, OTHER_WAY_S, "the node")
    assert {part: site.pid(part) for part in parts} == before


def test_leaving_leaves_nothing(site: Site) -> None:
    site.ada("leave")
    assert traces(site.login) == site.before
    assert site.login.run(["lsns", "-n", "-o", "command"]).stdout.count("rootless.holder") == 0


def test_a_head_is_reached_through_pasta_as_well(site: Site) -> None:
    """Its port is let in; a worker behind its relay reaches it too."""
    before = traces(site.desk)
    made = site.ada("init", "--json", "--no-ray", host=site.desk).json()
    token, head = made["token"], made["node"]["ip"]
    for transport in ("udp", "wss"):
        site.login.run(["meshray", "join", "--no-ray", f"--transport={transport}", token], deadline_s=UP_DEADLINE_S)
        site.login.wait_until(partial(site.login.can_reach, head), 20, f"the head over {transport}")
        status = site.login.run(["meshray", "status", "--json"], check=False).json()
        ways = {node["name"]: node["path"] for node in status["nodes"]}
        assert ways["desk"]["transport"] == transport
        site.login.run(["meshray", "leave", "--yes"])
    site.ada("leave", "--yes", host=site.desk)
    assert traces(site.desk) == before
