"""The real coordinator on loopback, its HTTP API."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import cast

import aiohttp
import pytest

from meshray.client.coordinator import proven
from meshray.coordinator.sqlite_store import SqliteStore
from meshray.errors import error_from_json
from meshray.model.enrol import EnrolAnswer
from meshray.model.keys import PrivateKey, PublicKey
from meshray.model.token import Token

from .coordinator_harness import KEYS, Json, enrol_request, make_mesh, running_mesh, running_server


async def test_hello_names_the_mesh_to_any_client(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        reply = await mesh.client.call("GET", "/v1/hello")
        assert reply.status == 200
        assert (reply.body["schema"], reply.body["mesh"], reply.body["name"]) == (1, mesh.token.mesh_id, "lab")


async def test_another_certificate_is_not_trusted(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        mesh.client.pin = aiohttp.Fingerprint(bytes(32))
        with pytest.raises(aiohttp.ServerFingerprintMismatch):
            await mesh.client.call("GET", "/v1/hello")


async def test_enrol_and_enrol_again_after_a_restart(tmp_path: Path) -> None:
    home, head, token = make_mesh(tmp_path)
    request = enrol_request(token)
    async with running_server(home, head, token) as mesh:
        first = await mesh.client.call("POST", "/v1/enroll", request)
        assert first.status == 200
    async with running_server(home, head, token) as mesh:
        second = await mesh.client.call("POST", "/v1/enroll", request)
        assert second.body["node_id"] == first.body["node_id"]
        assert second.body["credential"] != first.body["credential"]
        nodes = cast("list[Json]", (await mesh.admin("GET", "/v1/nodes")).body["nodes"])
        assert [(node["name"], node["ip"]) for node in nodes] == [("head", "10.99.0.1"), ("worker", "10.99.0.2")]
        old = str(first.body["credential"])
        assert (await mesh.client.call("POST", "/v1/leave", credential=old)).status == 401


async def test_the_answer_to_an_enrolment_does_not_grow_with_the_mesh(tmp_path: Path) -> None:
    home, head, token = make_mesh(tmp_path)
    async with running_server(home, head, token) as mesh:
        hub_token = await mesh.admin("POST", "/v1/tokens", {"roles": ["hub"]})
        hub = await mesh.client.enrol(
            Token.parse(str(hub_token.body["token"])), "hub", roles=["hub"], endpoints=["203.0.113.9:51888"]
        )
        sizes = []
        for number in range(20):
            request = enrol_request(token, f"w{number}", short_map=True)
            reply = await mesh.client.call("POST", "/v1/enroll", request)
            answer = EnrolAnswer.from_json(reply.body)
            assert set(answer.map.nodes) == {answer.node_id, hub.node_id, head.node_id}
            # A node that shows the mark of a map is asked for the whole of it, which it does not have.
            assert answer.map.mark == ""
            sizes.append(len(json.dumps(reply.body)))
        assert max(sizes) - min(sizes) < 20
        # A machine with an older meshray gets the whole map.
        older = await mesh.client.enrol(token, "older")
        assert len(older.map.nodes) == 23 and older.map.mark
        # The agent's connection brings the rest.
        agent = await mesh.client.agent(answer.credential)
        assert await agent.receive() == "map"
        assert agent.map is not None and len(agent.map.nodes) == 23


async def test_refusals_reach_the_joining_machine_as_they_are(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        made = await mesh.admin("POST", "/v1/tokens", {"uses": 1, "ttl_s": 60})
        once = Token.parse(str(made.body["token"]))
        assert once.coordinators == mesh.token.coordinators
        assert once.fingerprint == mesh.token.fingerprint
        await mesh.client.enrol(once)
        revoked = Token.parse(str((await mesh.admin("POST", "/v1/tokens", {})).body["token"]))
        assert (await mesh.admin("DELETE", f"/v1/tokens/{revoked.token_id}")).body["revoked"] is True
        for request, code, status, exit_code in (
            (enrol_request(once), "token_used_up", 403, 4),
            (enrol_request(revoked), "token_revoked", 403, 4),
            (enrol_request(mesh.token, secret="x"), "token_unknown", 403, 4),
            (enrol_request(mesh.token, mesh_id="x"), "token_other_mesh", 403, 4),
            (enrol_request(mesh.token, "head", name_is_exact=True), "name_taken", 409, 4),
            (enrol_request(mesh.token, versions={"ray": "2.44.0", "python": "3.9.1"}), "version_mismatch", 409, 1),
        ):
            reply = await mesh.client.call("POST", "/v1/enroll", request)
            assert (reply.code, reply.status, reply.exit_code) == (code, status, exit_code)
        mesh.clock.ahead = 86401
        reply = await mesh.client.call("POST", "/v1/enroll", enrol_request(mesh.token))
        error = error_from_json(cast("Json", reply.body["error"]), cast("int", reply.exit_code))
        assert error.code == "token_expired"
        assert error.hint == "on the head: meshray token create"


async def test_only_the_coordinators_node_may_administrate(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        worker = await mesh.client.enrol(mesh.token)
        for method, path in (
            ("GET", "/v1/tokens"),
            ("POST", "/v1/tokens"),
            ("DELETE", "/v1/tokens/x"),
            ("GET", "/v1/nodes"),
            ("DELETE", "/v1/nodes/worker"),
            ("PATCH", "/v1/nodes/worker"),
            ("POST", "/v1/peers"),
        ):
            reply = await mesh.client.call(method, path, {}, worker.credential)
            assert (reply.status, reply.code) == (403, "not_admin")
            assert "head" in str(reply.body["error"])
            assert (await mesh.client.call(method, path, {})).status == 401
            assert (await mesh.client.call(method, path, {}, "wrong")).status == 401


async def test_tokens_are_listed_without_secrets(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        made = (await mesh.admin("POST", "/v1/tokens", {"uses": 3, "ttl_s": 0, "ephemeral": True})).body
        assert made["expires"] is None
        listed = (await mesh.admin("GET", "/v1/tokens")).body["tokens"]
        entry = cast("list[Json]", listed)[-1]
        assert set(entry) == {
            "id",
            "uses",
            "used",
            "expires",
            "ephemeral",
            "created",
            "revoked",
            "roles",
            "name",
            "replace",
        }
        assert (entry["id"], entry["uses"], entry["ephemeral"]) == (made["id"], 3, True)
        assert (await mesh.admin("DELETE", "/v1/tokens/nothing")).status == 404


async def test_a_hub_needs_a_token_that_makes_one(tmp_path: Path) -> None:
    """The attack: the holder of any token joins as a hub, and reads what others send through it."""
    hub = {"roles": ["hub"], "endpoints": ["192.0.2.66:51888"]}
    async with running_mesh(tmp_path) as mesh:
        refused = await mesh.client.call("POST", "/v1/enroll", enrol_request(mesh.token, "eve", **hub))
        assert (refused.status, refused.code) == (409, "role_not_granted")
        member = enrol_request(mesh.token, "eve")
        assert (await mesh.client.call("POST", "/v1/enroll", member)).status == 200
        again = await mesh.client.call("POST", "/v1/enroll", {**member, **hub})
        assert (again.status, again.code) == (409, "role_not_granted")
        made = (await mesh.admin("POST", "/v1/tokens", {"roles": ["hub"]})).body
        assert made["roles"] == ["hub"]
        again = await mesh.client.call("POST", "/v1/enroll", {**member, **hub, **_shown(made)})
        assert (again.status, again.code) == (409, "role_not_granted")
        joined = await mesh.client.enrol(Token.parse(str(made["token"])), "relay", **hub)
        assert joined.map.nodes[joined.node_id].roles == {"hub", "worker"}
        assert (await mesh.admin("POST", "/v1/tokens", {"roles": ["coordinator"]})).status == 400


def _shown(made: Json) -> Json:
    token = Token.parse(str(made["token"]))
    return {"token_id": token.token_id, "secret": token.secret}


async def test_rename_remove_and_what_is_not_possible(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        await mesh.client.enrol(mesh.token)
        assert (await mesh.admin("PATCH", "/v1/nodes/worker", {"name": "gpu"})).status == 200
        assert (await mesh.admin("PATCH", "/v1/nodes/gpu", {"name": "head"})).status == 409
        assert (await mesh.admin("PATCH", "/v1/nodes/gpu", {"name": "no good!"})).status == 400
        assert (await mesh.admin("PATCH", "/v1/nodes/gpu", {})).status == 400
        assert (await mesh.admin("PATCH", "/v1/nodes/gpu", {"drained": "yes"})).status == 400
        assert (await mesh.admin("PATCH", "/v1/nodes/head", {"drained": True})).status == 409
        assert (await mesh.admin("PATCH", "/v1/nodes/gpu", {"drained": True})).body["drained"] is True
        assert (await mesh.admin("DELETE", "/v1/nodes/head")).code == "node_is_coordinator"
        assert (await mesh.admin("POST", "/v1/leave")).status == 409
        assert (await mesh.admin("DELETE", "/v1/nodes/gpu")).status == 200
        assert (await mesh.admin("DELETE", "/v1/nodes/gpu")).status == 404


async def test_a_node_leaves_and_its_address_rests(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        worker = await mesh.client.enrol(mesh.token)
        agent = await mesh.client.agent(worker.credential)
        await agent.until({"head", "worker"})
        await agent.until_online("worker", True)
        assert (await mesh.client.call("POST", "/v1/leave", credential=worker.credential)).status == 200
        assert (await mesh.client.call("POST", "/v1/leave", credential=worker.credential)).status == 401
        again = await mesh.client.enrol(mesh.token)
        assert str(again.map.nodes[again.node_id].ip) == "10.99.0.3"


async def test_a_static_peer_gets_what_its_file_needs_and_its_key_is_not_kept(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        peer = (await mesh.admin("POST", "/v1/peers", {"name": "phone"})).body
        private = PrivateKey.parse(str(peer["private_key"]))
        assert str(private.public()) == peer["public_key"]
        hub = cast("Json", peer["hub"])
        hub_key = PublicKey.parse(str(hub["public_key"]))
        assert hub["preshared_key"] == mesh.head.mesh_secret.preshared_key(hub_key, private.public()).reveal()
        assert (peer["ip"], peer["network"]) == ("10.99.0.2", "10.99.0.0/16")
    files = [file.read_bytes() for file in mesh.home.state.iterdir() if file.is_file()]
    assert not any(str(peer["private_key"]).encode() in content for content in files)


async def test_secrets_at_rest_are_hashed_and_files_private(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        worker = await mesh.client.enrol(mesh.token)
        for file in mesh.home.state.iterdir():
            assert file.stat().st_mode & 0o077 == 0, file
    content = mesh.home.database.read_bytes()
    assert worker.credential.encode() not in content
    assert mesh.token.secret.encode() not in content


async def test_a_hundred_machines_enrol_at_once(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:

        async def join(number: int) -> tuple[str, float]:
            started = time.monotonic()
            answer = await mesh.client.enrol(mesh.token, f"n{number}")
            return str(answer.map.nodes[answer.node_id].ip), time.monotonic() - started

        results = await asyncio.gather(*(join(number) for number in range(100)))
        assert len({ip for ip, _ in results}) == 100
        assert max(seconds for _, seconds in results) < 30


async def test_the_last_uses_are_not_spent_twice_by_simultaneous_joins(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        made = await mesh.admin("POST", "/v1/tokens", {"uses": 5})
        token = Token.parse(str(made.body["token"]))
        requests = [enrol_request(token, f"n{number}") for number in range(30)]
        replies = await asyncio.gather(*(mesh.client.call("POST", "/v1/enroll", request) for request in requests))
        assert sorted(reply.status for reply in replies) == [200] * 5 + [403] * 25


async def test_an_enrolment_that_cannot_be_written_is_refused_and_forgotten(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        store = mesh.server.service._store
        assert isinstance(store, SqliteStore)
        store._connection.execute("PRAGMA max_page_count = 1")
        padding = {f"label-{number}": "x" * 500 for number in range(7)}
        reply = await mesh.client.call("POST", "/v1/enroll", enrol_request(mesh.token, labels=padding))
        assert (reply.status, reply.code) == (500, "store_failed")
        store._connection.execute("PRAGMA max_page_count = 100000")
        answer = await mesh.client.enrol(mesh.token)
        assert str(answer.map.nodes[answer.node_id].ip) == "10.99.0.2"


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - pathlib's own descriptor would be counted


async def test_start_and_end_leave_nothing_open(tmp_path: Path) -> None:
    home, head, token = make_mesh(tmp_path)

    async def once() -> None:
        async with running_server(home, head, token) as mesh:
            agent = await mesh.client.agent(head.credential)
            await agent.until({"head"})

    await once()
    before = open_files()
    for _ in range(3):
        await once()
    assert open_files() <= before
    assert sorted(file.name for file in home.state.iterdir()) == [
        "audit.log",
        "coordinator.crt",
        "coordinator.db",
        "coordinator.key",
    ]


async def test_a_token_and_anothers_public_key_are_not_enough(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        victim = await mesh.client.enrol(mesh.token, "victim")
        key = str(victim.map.nodes[victim.node_id].public_key)
        own = PrivateKey.generate()
        body = {**enrol_request(mesh.token, "victim"), "public_key": key}
        hello = await mesh.client.hello()
        attempts: list[tuple[dict[str, object], str]] = [
            ({**body, "proof": ""}, "proof_wrong"),
            (dict(proven(hello, "/v1/enroll", body, own)), "proof_wrong"),
            (dict(proven(hello, "/v1/leave", body, KEYS[key])), "proof_wrong"),
            (body, "proof_missing"),
        ]
        for attempt, code in attempts:
            reply = await mesh.client.call("POST", "/v1/enroll", json.dumps(attempt).encode())
            assert (reply.status, reply.code, reply.exit_code) == (403, code, 4)
        # Nor may it withdraw the enrolment of another machine that is just starting.
        shown = {name: body[name] for name in ("mesh_id", "token_id", "secret", "public_key")}
        for attempt, code in (
            (shown, "proof_missing"),
            (dict(proven(hello, "/v1/withdraw", shown, own)), "proof_wrong"),
            (dict(proven(hello, "/v1/enroll", shown, KEYS[key])), "proof_wrong"),
            (dict(proven(hello, "/v1/withdraw", {**shown, "secret": "x"}, KEYS[key])), "token_unknown"),
        ):
            reply = await mesh.client.call("POST", "/v1/withdraw", attempt)
            assert (reply.status, reply.code, reply.exit_code) == (403, code, 4)
        assert (await mesh.client.call("POST", "/v1/leave", {}, victim.credential)).status == 200
