"""Nodes that replace others, and joins that end half way: names, addresses and keys afterwards."""

from __future__ import annotations

import asyncio
import functools
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from meshray.client.coordinator import Coordinator, RemovedFromMesh, enrol, withdraw
from meshray.errors import MeshrayError, RefusedError
from meshray.model.address import NodeName
from meshray.model.enrol import EnrolRequest
from meshray.model.keys import PrivateKey
from meshray.model.node import Versions
from meshray.model.token import Token
from meshray.node.enrolment import Enrolment, load_private_key

from .mesh import Member, Mesh, running_mesh, until


async def token_for(mesh: Mesh, **changes: object) -> Token:
    made = await mesh.head.agent.state.coordinator.call("POST", "/v1/tokens", changes)
    return Token.parse(str(made["token"]))


def asking(token: Token, key: PrivateKey, name: str = "worker", *, exact: bool = False) -> EnrolRequest:
    return EnrolRequest(
        token.mesh_id, token.token_id, token.secret, NodeName(name), exact, key.public(), Versions("0.1.0"), False
    )


def allowed(member: Member, address: IPv4Address) -> list[str]:
    """Return the keys to which this device sends packets for the address, without the hub."""
    peers = member.device.state.peers if member.device.state is not None else {}
    return [str(key) for key, peer in peers.items() if IPv4Network(address) in peer.config.allowed_ips]


def used(mesh: Mesh, token: Token) -> int:
    return next(record.used for record in mesh.server.service.tokens.all() if record.id == token.token_id)


async def test_a_new_machine_takes_the_place_of_an_old_one(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        old, other = await mesh.join("gpu-1"), await mesh.join("gpu-2")
        await until(mesh.whole, "whole")
        place, old_key = old.agent.state.me.ip, str(old.agent.state.me.public_key)
        assert allowed(mesh.head, place) == [old_key]
        with pytest.raises(RefusedError, match="gpu-1 exists already"):
            await token_for(mesh, name="gpu-1")
        token = await token_for(mesh, name="gpu-1", replace=True)
        await asyncio.sleep(0.1)
        assert mesh.whole(), "the old node stays until the new one enrols"

        del mesh.members["gpu-1"]
        new = await mesh.join("gpu-1", token=token, machine="new-machine")
        with pytest.raises(RemovedFromMesh):
            await old.ended()
        assert Enrolment.load(old.home).taken_out
        assert old.device.state is None
        await until(mesh.whole, "whole with the new machine")
        assert new.agent.state.me.ip == place
        assert new.agent.state.me.id != old.agent.state.me.id
        for member in (mesh.head, other):
            node = member.agent.state.map.find("gpu-1")
            assert node is not None
            assert (node.ip, node.public_key) == (place, new.agent.state.me.public_key)
        assert allowed(mesh.head, place) == [str(new.agent.state.me.public_key)]
        assert old_key not in {str(key) for member in (mesh.head, other) for key in member.device.state.peers}  # type: ignore[union-attr]
        # The old machine's knowledge is useless: the others have other secrets.
        for member in (mesh.head, other, new):
            home = member.home
            await until(lambda home=home: Enrolment.load(home).secret_epoch == 2, "the next epoch")  # type: ignore[misc]
        assert Enrolment.load(old.home).secret_epoch == 1

        await mesh.restart_coordinator()
        await until(mesh.whole, "whole after a restart")
        enrolment = Enrolment.load(old.home)
        shown = Coordinator(enrolment.coordinators, bytes.fromhex(enrolment.fingerprint), enrolment.credential)
        with pytest.raises(RefusedError) as caught:
            await shown.call("POST", "/v1/leave")
        assert caught.value.code == "credential_unknown"
        key = PrivateKey.generate()
        with pytest.raises(RefusedError) as caught:
            await enrol(token, asking(token, key), key)
        assert caught.value.code == "token_used_up"


async def test_a_machine_that_is_away_is_replaced_and_stays_out(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        old = await mesh.join("gpu-1")
        await until(mesh.whole, "whole")
        place = old.agent.state.me.ip
        await old.kill()
        token = await token_for(mesh, name="gpu-1", replace=True)
        del mesh.members["gpu-1"]
        new = await mesh.join("gpu-1", token=token, machine="new-machine")
        await until(mesh.whole, "whole with the new machine")
        assert new.agent.state.me.ip == place
        mesh.members["old"] = old
        back = mesh.reborn("old")
        back.start()
        with pytest.raises(RemovedFromMesh):
            await back.ended()
        del mesh.members["old"]
        assert mesh.whole()
        assert new.agent.state.map.nodes[new.agent.state.me.id].ip == place


async def test_nodes_that_cannot_be_replaced_or_named(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        worker = await mesh.join("gpu-1")
        await until(mesh.whole, "whole")
        for body, code in (
            ({"name": "head", "replace": True}, "node_not_replaceable"),
            ({"name": "nobody", "replace": True}, "node_unknown"),
            ({"replace": True}, "replace_without_name"),
            ({"name": "gpu-2", "uses": 2}, "name_with_uses"),
            ({"name": "gpu-1"}, "name_taken"),
        ):
            with pytest.raises(MeshrayError) as caught:
                await token_for(mesh, **body)
            assert caught.value.code == code
        with pytest.raises(RefusedError) as refused:
            await worker.agent.state.coordinator.call("POST", "/v1/tokens", {"name": "gpu-1", "replace": True})
        assert refused.value.code == "not_admin"
        token, key = await token_for(mesh, name="gpu-2"), PrivateKey.generate()
        with pytest.raises(RefusedError) as refused:
            await enrol(token, asking(token, key, "other", exact=True), key)
        assert (refused.value.code, refused.value.exit_code) == ("token_other_name", 4)
        assert "gpu-2" in refused.value.message
        answer, _ = await enrol(token, asking(token, key, "whatever"), key)
        assert answer.map.nodes[answer.node_id].name == "gpu-2"


async def test_joins_that_fail_or_are_interrupted_burn_no_address(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        token, addresses = await token_for(mesh, uses=1), set()
        for turn in range(4):
            key = PrivateKey.generate()
            answer, endpoint = await enrol(token, asking(token, key), key)
            addresses.add(answer.map.nodes[answer.node_id].ip)
            if turn % 2:
                await withdraw(token, key)
                await withdraw(token, key)
            else:
                shown = Coordinator((endpoint,), token.fingerprint, answer.credential)
                await shown.call("POST", "/v1/leave", {"take_back": True})
            assert used(mesh, token) == 0
        for _ in range(3):
            # Its agent was up; Ray, for example, did not start.
            member = await mesh.join("worker", token=token)
            await until(mesh.whole, "whole")
            addresses.add(member.agent.state.me.ip)
            await member.agent.state.coordinator.call("POST", "/v1/leave", {"take_back": True})
            with pytest.raises(RemovedFromMesh):
                await member.ended()
            del mesh.members["worker"]
        assert addresses == {IPv4Address("10.99.0.2")}
        # … which still rests for all other nodes.
        assert (await mesh.join("another")).agent.state.me.ip == IPv4Address("10.99.0.3")


async def test_an_ephemeral_node_that_never_came_up_gives_use_and_address_back(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        token, service = await token_for(mesh, uses=1), mesh.server.service
        for _ in range(3):
            # Connected, but without a handshake: its join is interrupted before the node is up.
            member = await mesh.join("step", token=token, ephemeral=True)
            await until(lambda: any(each.had_map for each in service.members() if each.node.name == "step"), "online")
            assert member.agent.state.me.ip == IPv4Address("10.99.0.2")
            await member.down()
            del mesh.members["step"]
            assert used(mesh, token) == 0
        member = await mesh.join("step", token=token, ephemeral=True)
        await until(mesh.whole, "whole")
        assert member.agent.state.me.ip == IPv4Address("10.99.0.2")
        await member.down()
        del mesh.members["step"]
        assert used(mesh, token) == 1


async def test_an_enrolment_that_is_cancelled_is_withdrawn(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        token, key = await token_for(mesh, uses=1), PrivateKey.generate()
        sent = asyncio.Event()
        task = asyncio.get_running_loop().create_task(enrol(token, asking(token, key), key, on_sent=sent.set))
        await sent.wait()
        service = mesh.server.service
        await until(lambda: len(service.members()) == 2, "it is enrolled")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await withdraw(token, key)
        assert [str(member.node.name) for member in service.members()] == ["head"]
        assert used(mesh, token) == 0
        member = await mesh.join("worker", token=token)
        assert member.agent.state.me.ip == IPv4Address("10.99.0.2")
        await until(mesh.whole, "whole")
        # An online node is not withdrawn, and no machine withdraws another's.
        await withdraw(token, load_private_key(member.home))
        assert mesh.whole()


async def test_two_concurrent_joins_with_one_token_for_one_node(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        await mesh.join("gpu-1")
        await until(mesh.whole, "whole")
        token = await token_for(mesh, name="gpu-1", replace=True)
        keys = [PrivateKey.generate() for _ in range(5)]
        join = functools.partial(enrol, token)
        answers = await asyncio.gather(*(join(asking(token, key), key) for key in keys), return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, RefusedError)]
        assert [error.code for error in refused] == ["token_used_up"] * 4
        names = [str(member.node.name) for member in mesh.server.service.members()]
        assert names == ["head", "gpu-1"]
