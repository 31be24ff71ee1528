"""The head's machine is gone, and another one continues its mesh from a backup, with real Ray.

                     switch wan 203.0.113.0/24
     ┌───────────┬──────────┴┬────────────┬───────────┐
   head        near        walled       spare       guest
203.0.113.10   .21          .22          .60         .70
               open         drops all    the new     leaves after the backup,
                            inbound      head        then a machine with tokens
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from meshray.model.address import Endpoint
from meshray.model.token import Token
from tests.lab.cluster import UP_DEADLINE_S, Cluster, enrolment
from tests.lab.host import Host
from tests.lab.world import World

SPARE = "203.0.113.60"
SECRET = {"MESHRAY_PASSPHRASE": "five random words make one"}
BACKUP = "/root/lab.backup"
#: The time until a running worker that the new head reaches is connected, and until Ray is ALIVE there again, seconds.
FOLLOWED_S, ALIVE_S = 120, 120


@dataclass
class Restored:
    """The mesh after the restore.

    Attributes:
        revoked: a token that was revoked before the backup.
        revoked_later: one that was revoked after it.
        answer: that of `meshray restore`.
        took_s: how long it took.
    """

    world: World
    cluster: Cluster
    revoked: str
    revoked_later: str
    answer: dict[str, Any]
    took_s: float

    @property
    def head(self) -> Host:
        return self.world.hosts["spare"]

    def is_connected(self, name: str) -> bool:
        status = self.cluster.meshray(self.world.hosts[name], "status", check=False)
        return bool(status["coordinator"]["reachable"]) and self.world.hosts[name].can_reach(self.answer["node"]["ip"])


@pytest.fixture(scope="module")
def restored() -> Iterator[Restored]:
    with World("backup") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        for name, address in (("head", ".10"), ("near", ".21"), ("walled", ".22"), ("spare", ".60"), ("guest", ".70")):
            world.host(name, wan, f"203.0.113{address}")
        hosts = world.hosts
        hosts["walled"].drop_inbound()
        head, spare, guest = hosts["head"], hosts["spare"], hosts["guest"]
        cluster = Cluster.start(head, [hosts["near"], hosts["walled"]])
        first = cluster.answers["head"]["token"]
        cluster.meshray(guest, "join", first, "--no-ray", "--name", "early")
        head.run(["meshray", "node", "rm", "early", "--yes"], deadline_s=UP_DEADLINE_S)
        guest.run(["meshray", "leave", "--yes"], check=False, deadline_s=UP_DEADLINE_S)
        cluster.meshray(guest, "join", first, "--no-ray")
        tokens = [token_of(cluster) for _ in range(2)]
        head.run(["meshray", "token", "revoke", tokens[0]["id"]])

        made = head.run(["meshray", "backup", BACKUP, "--json"], env=SECRET, deadline_s=UP_DEADLINE_S).json()
        assert (made["mesh"], made["node"]) == ("head", "head")
        data = head.path(BACKUP).read_bytes()
        assert (head.path(BACKUP).stat().st_mode & 0o777, len(data)) == (0o600, made["size"])
        for secret in (enrolment(head)["credential"], enrolment(head)["ray_token"], SECRET["MESHRAY_PASSPHRASE"]):
            assert secret.encode() not in data
        assert [path.name for path in head.path("/var/lib/meshray").glob(".*")] == []

        # Nothing is changed by what cannot be restored.
        spare.path("/root/short").write_bytes(data[:-100])
        spare.path("/root/changed").write_bytes(data[:2000] + b"x" + data[2001:])
        spare.path(BACKUP).write_bytes(data)
        for file, env, code in (
            ("/root/short", SECRET, "backup_truncated"),
            ("/root/changed", SECRET, "backup_damaged"),
            ("/root/none", SECRET, "file_closed"),
            (BACKUP, {"MESHRAY_PASSPHRASE": "another"}, "passphrase_wrong"),
            (BACKUP, {}, "passphrase_missing"),
            (BACKUP, SECRET, "head_runs"),
        ):
            refused = cluster.meshray(spare, "restore", file, env=env, check=False)
            assert refused["error"]["code"] == code, refused
            assert not spare.path("/var/lib/meshray").exists() or not list(spare.path("/var/lib/meshray").iterdir())

        head.run(["meshray", "token", "revoke", tokens[1]["id"]])
        guest.run(["meshray", "leave", "--yes"], deadline_s=UP_DEADLINE_S)
        head.end()
        began = time.monotonic()
        answer = cluster.meshray(spare, "restore", BACKUP, env=SECRET)
        took_s = time.monotonic() - began
        print(f"restored after {took_s:.1f} s")
        yield Restored(world, cluster, tokens[0]["token"], tokens[1]["token"], answer, took_s)


def token_of(cluster: Cluster) -> dict[str, Any]:
    answer = cluster.head.run(["meshray", "token", "create", "--json"]).json()
    assert isinstance(answer, dict)
    return answer


def test_workers_follow_the_head_to_another_machine(restored: Restored) -> None:
    cluster, world, answer = restored.cluster, restored.world, restored.answer
    began = time.monotonic()
    assert answer["node"] == {"name": "head", "ip": cluster.ip(cluster.head)}
    assert answer["endpoints"] == [f"{SPARE}:51888"]
    assert {"near", "walled"} <= set(answer["nodes"])
    # This machine reaches the one; the other is told the new address.
    world.wait_until(lambda: restored.is_connected("near"), FOLLOWED_S, "the worker that can be reached")
    print(f"followed after {time.monotonic() - began:.1f} s")
    cluster.meshray(world.hosts["walled"], "up", "--coordinator", f"{SPARE}:51888")

    def alive() -> bool:
        nodes = cluster.meshray(restored.head, "status", check=False)["nodes"]
        found = {node["name"]: node["ip"] for node in nodes if node["online"] and node["ray"]["alive"]}
        return found == {"head": answer["node"]["ip"]} | {
            name: cluster.ip(world.hosts[name]) for name in ("near", "walled")
        }

    world.wait_until(alive, ALIVE_S, "all of them ALIVE, with their addresses")
    print(f"ALIVE after {time.monotonic() - began:.1f} s")
    code = "import ray; ray.init('auto'); print(len([n for n in ray.nodes() if n['Alive']]))"
    assert cluster.job("python", "-c", code, host=restored.head).last_json() == 3
    assert world.hosts["walled"].can_reach(cluster.ip(world.hosts["near"]), deadline_s=5)


def test_only_what_happened_after_the_backup_is_undone(restored: Restored) -> None:
    guest, cluster = restored.world.hosts["guest"], restored.cluster
    listed = nodes(restored)
    assert "early" not in listed["nodes"]
    # The copy is older than what the other nodes know: status and node list say so.
    assert "guest" in listed["nodes"]
    assert listed["restored"] is not None
    problems = cluster.meshray(restored.head, "status", check=False)["problems"]
    assert [text for text in problems if "the coordinator's database is an older copy" in text], problems
    restored.head.run(["meshray", "node", "rm", "guest", "--yes"])
    assert "guest" not in nodes(restored)["nodes"]

    refused = cluster.meshray(guest, "join", moved(restored.revoked), "--no-ray", check=False)
    assert refused["error"]["code"] == "token_revoked", refused
    answer = cluster.meshray(guest, "join", moved(restored.revoked_later), "--no-ray", "--name", "again")
    assert answer["node"]["name"] == "again"


def nodes(restored: Restored) -> dict[str, Any]:
    answer = restored.head.run(["meshray", "node", "list", "--json"]).json()
    return {"nodes": [node["name"] for node in answer["nodes"]], "restored": answer["restored"]}


def moved(token: str) -> str:
    """Return the token with the address of the new head."""
    return replace(Token.parse(token), coordinators=(Endpoint(SPARE, 51888),)).encode()


def test_the_audit_log_continues_and_is_intact(restored: Restored) -> None:
    audit = restored.head.run(["meshray", "audit", "--json"]).json()
    assert audit["intact"] is True
    events = [record["event"] for record in audit["records"]]
    assert events.index("backup_created") < events.index("mesh_restored")
    assert json.dumps(audit).count("five random words") == 0
