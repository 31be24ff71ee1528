"""A head that is not reachable: a public machine is coordinator and hub, and runs no Ray.

             switch wan 203.0.113.0/24
      ┌─────────────┼──────────────┐
     hub          walled          nat
203.0.113.10  203.0.113.20    203.0.113.30
              drops all            │ switch nat-lan 192.168.7.0/24
              inbound            head
                              192.168.7.10
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab.cluster import RAY_ARGS, UP_DEADLINE_S
from tests.lab.doctoring import Doctor, until_well
from tests.lab.host import Host
from tests.lab.world import World

ALIVE = """
import json, ray
ray.init("auto", log_to_driver=False)
print(json.dumps(sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])))
"""


@dataclass
class Place:
    hub: Host
    head: Host
    walled: Host
    token: str

    @property
    def nodes(self) -> tuple[Host, Host, Host]:
        return self.hub, self.head, self.walled


def meshray(host: Host, *words: str, check: bool = True) -> dict[str, Any]:
    own = words[: words.index("--")] if "--" in words else words
    rest = words[len(own) :]
    done = host.run(["meshray", *own, "--json", *rest], check=check, deadline_s=UP_DEADLINE_S)
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with World("hub-only") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        hub = world.host("hub", wan, "203.0.113.10")
        walled = world.host("walled", wan, "203.0.113.20")
        walled.drop_inbound()
        nat = world.router("nat", wan, "203.0.113.30", lan="192.168.7.0/24", kind="easy")
        head = world.host("head", nat.lan, "192.168.7.10")
        made = meshray(hub, "init", "--hub-only")
        assert made["ray_address"] is None
        yield Place(hub, head, walled, made["token"])


def test_a_head_behind_a_nat_and_a_worker_behind_a_firewall(place: Place) -> None:
    head = meshray(place.head, "join", "--head", place.token, "--", *RAY_ARGS)
    assert head["ray"] == {"alive": True, "nodes": 1}
    assert head["ray_address"] == f"{head['node']['ip']}:6379"
    worker = meshray(place.walled, "join", place.token, "--", *RAY_ARGS)
    assert worker["ray"] == {"alive": True, "nodes": 2}
    shown = place.walled.run(["meshray", "run", "--", "python", "-c", ALIVE], deadline_s=120)
    assert shown.last_json() == [head["node"]["ip"], worker["node"]["ip"]]
    roles = {node["name"]: node["role"] for node in meshray(place.hub, "status")["nodes"]}
    assert roles == {"hub": "hub", "head": "head", "walled": "worker"}
    assert place.hub.run(["pgrep", "-f", "gcs_server"], check=False).stdout == ""


def test_a_second_head_is_refused_and_changes_nothing(place: Place) -> None:
    before = meshray(place.hub, "node", "list")["nodes"]
    meshray(place.walled, "leave", "--yes")
    error = meshray(place.walled, "join", "--head", place.token, "--", *RAY_ARGS, check=False)["error"]
    assert error["code"] == "head_exists"
    assert "meshray node rm head" in error["hint"]
    assert not place.walled.path("/var/lib/meshray").exists()
    after = meshray(place.hub, "node", "list")["nodes"]
    assert [node["name"] for node in after] == [node["name"] for node in before if node["name"] != "walled"]


def test_only_reachable_nodes_are_hubs(place: Place) -> None:
    own = f"{place.walled.address}:51888"
    error = meshray(place.walled, "join", "--no-ray", "--hub", "--endpoint", own, place.token, check=False)["error"]
    assert error["code"] == "role_not_granted"
    token = meshray(place.hub, "token", "create", "--hub")["token"]
    error = meshray(place.walled, "join", "--no-ray", "--hub", "--endpoint", own, token, check=False)["error"]
    assert error["code"] == "hub_unreachable"
    assert own in error["message"]
    assert not place.walled.path("/var/lib/meshray").exists()
    place.walled.shell("nft insert rule inet host_firewall input udp dport 51888 accept")
    meshray(place.walled, "join", "--no-ray", "--hub", "--endpoint", own, token)
    roles = {node["name"]: node["role"] for node in meshray(place.hub, "status")["nodes"]}
    assert roles["walled"] == "hub"
    assert place.walled.run(["wg", "show", "meshray0", "listen-port"]).stdout.strip() == "51888"


def test_the_doctor_finds_nothing_wrong(place: Place, doctor: Doctor) -> None:
    # The node that has just left was not yet a hub of any node: its successor's paths are still found.
    until_well([place.hub])
    doctor.passes("a hub without Ray, a second hub behind a firewall, Ray's head behind a home router", *place.nodes)
