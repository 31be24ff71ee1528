"""The secrets of all nodes change when one is removed: real coordinator, real agents, devices in memory.

head (hub, coordinator) ── a
                        ├─ b
                        └─ gone
"""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import msgspec
import pytest

from meshray.agent.connection.coordinator_connection import CoordinatorConnection
from meshray.errors import MeshrayError
from meshray.model.keys import MeshSecret, PresharedKey
from meshray.node.enrolment import Enrolment
from meshray.protocol.codec import to_json
from meshray.protocol.connection import Hello
from meshray.wireguard.plan import RemovePeer, SetPrivateKey

from .coordinator_harness import enrol_request
from .coordinator_harness import running_mesh as coordinator_alone
from .mesh import Mesh, running_mesh, until
from .test_restore import backup, mesh_with_process, put_back


def keys_in_use(mesh: Mesh, *names: str) -> set[PresharedKey]:
    """Return all preshared keys in the devices of these nodes."""
    devices = [mesh.members[name].device.state for name in names]
    found = [peer.config.preshared_key for state in devices if state is not None for peer in state.peers.values()]
    return {key for key in found if key is not None}


def derived_from(secret: MeshSecret, mesh: Mesh) -> set[PresharedKey]:
    """Return the keys of any pair that can be derived from this secret: every member knows the public keys."""
    keys = [node.public_key for node in mesh.head.agent.state.map.nodes.values()]
    return {secret.preshared_key(one, other) for one in keys for other in keys}


def hold(mesh: Mesh, epoch: int, *names: str) -> bool:
    """Return whether these nodes hold this epoch and no other, and know that of each other."""
    mesh.shake_hands()
    agents = [mesh.members[name].agent for name in names]
    ids = [agent.state.enrolment.node_id for agent in agents]
    return all(
        list(agent.state.enrolment.mesh_secrets) == [epoch]
        and all(agent.state.map.nodes[node_id].secret_epoch == epoch for node_id in ids)
        for agent in agents
    )


def use(mesh: Mesh, epoch: int, *names: str) -> bool:
    """Return whether these nodes hold this epoch, and each pair of hub and node uses its preshared key."""
    agents = [mesh.members[name].agent for name in names]
    if any(agent.state.enrolment.secret_epoch != epoch for agent in agents):
        return False
    return keys_in_use(mesh, *names) <= derived_from(agents[0].state.enrolment.mesh_secret, mesh)


async def remove(mesh: Mesh, name: str) -> dict[str, object]:
    answer = await mesh.head.agent.state.coordinator.call("DELETE", f"/v1/nodes/{name}")
    rotation = answer["secrets"]
    assert isinstance(rotation, dict)
    return rotation


async def rotate(mesh: Mesh) -> dict[str, object]:
    return dict(await mesh.head.agent.state.coordinator.call("POST", "/v1/secrets/rotate"))


async def test_a_removed_node_can_derive_no_key_of_the_others(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        gone = await mesh.join("gone")
        a, b = await mesh.join("a"), await mesh.join("b")
        await until(mesh.whole, "whole")
        known = gone.agent.state.enrolment
        assert keys_in_use(mesh, "head", "a", "b") <= derived_from(known.mesh_secret, mesh)
        steps = len(a.device.applied), len(b.device.applied)

        rotation = await remove(mesh, "gone")
        assert (rotation["epoch"], rotation["started"], rotation["too_old"]) == (2, True, [])
        with pytest.raises(MeshrayError):
            await gone.ended()
        del mesh.members["gone"]
        await until(lambda: use(mesh, 2, "head", "a", "b"), "the new secret is in use")
        assert not keys_in_use(mesh, "head", "a", "b") & derived_from(known.mesh_secret, mesh)
        assert a.agent.state.enrolment.ray_token != known.ray_token
        assert gone.agent.state.enrolment == Enrolment.load(gone.home)
        assert gone.agent.state.enrolment.secret_epoch == 1, "it was sent nothing"
        for member, before in zip((a, b), steps, strict=True):
            later = member.device.applied[before:]
            assert not [step for step in later if isinstance(step, (RemovePeer, SetPrivateKey))], "changed in place"
        await mesh.server.service.collect()
        await until(lambda: hold(mesh, 2, "head", "a", "b"), "the old secret is dropped")
        await until(mesh.whole, "whole again")
        assert Enrolment.load(a.home) == a.agent.state.enrolment
        assert stat.S_IMODE(a.home.enrolment.stat().st_mode) == 0o600
        newcomer = await mesh.join("later")
        await until(lambda: mesh.whole() and use(mesh, 2, "head", "later"), "a newcomer has it as well")
        assert list(newcomer.agent.state.enrolment.mesh_secrets) == [2]


async def test_secrets_are_in_no_map_log_or_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with running_mesh(tmp_path) as mesh:
        a = await mesh.join("a")
        await until(mesh.whole, "whole")
        answer = await rotate(mesh)
        await until(lambda: use(mesh, 2, "head", "a"), "rotated")
        nodes = await mesh.head.agent.state.coordinator.call("GET", "/v1/nodes")
        shown = (
            json.dumps([answer, nodes, to_json(a.agent.state.map.form())]) + caplog.text + a.home.map_cache.read_text()
        )
        for secret in (*a.agent.state.enrolment.mesh_secrets.values(),):
            assert secret.reveal() not in shown and secret.hex not in shown
        for token in a.agent.state.enrolment.ray_tokens.values():
            assert token not in shown


async def test_a_node_that_was_away_is_reached_and_gets_the_new_secret_when_it_connects(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        a, _ = await mesh.join("a"), await mesh.join("b")
        await until(mesh.whole, "whole")
        # Its device continues, as the kernel's does when an agent is killed.
        await a.kill()
        await until(lambda: not mesh.head.agent.state.map.nodes[a.agent.state.enrolment.node_id].online, "away")
        rotation = await rotate(mesh)
        assert rotation["away"] == ["a"]
        await until(
            lambda: use(mesh, 2, "b") and mesh.head.agent.state.enrolment.secret_epoch == 2, "the others have it"
        )
        pair = mesh.head.device.state, a.device.state
        assert pair[0] is not None and pair[1] is not None
        mine, theirs = a.agent.state.me.public_key, mesh.head.agent.state.me.public_key
        assert pair[0].peers[mine].config.preshared_key == pair[1].peers[theirs].config.preshared_key
        again = mesh.reborn("a")
        again.start()
        await until(lambda: mesh.whole() and use(mesh, 2, "head", "a", "b"), "it has the new one")
        await mesh.server.service.collect()
        await until(lambda: hold(mesh, 2, "head", "a", "b"), "the old secret is dropped")


async def test_an_agent_that_knows_no_epochs_is_named_and_keeps_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_mesh(tmp_path) as mesh:
        _, old = await mesh.join("gone"), await mesh.join("old")
        await until(mesh.whole, "whole")
        hello = CoordinatorConnection.send_hello

        async def without_epochs(keeper: CoordinatorConnection) -> None:
            if keeper is old.agent.connection:
                output = keeper._hello

                def less() -> Hello:
                    return msgspec.structs.replace(output(), secret_epoch=msgspec.UNSET)

                monkeypatch.setattr(keeper, "_hello", less)
                await hello(keeper)
                monkeypatch.setattr(keeper, "_hello", output)
                return
            await hello(keeper)

        monkeypatch.setattr(CoordinatorConnection, "send_hello", without_epochs)
        await old.agent.connection.send_hello()
        service = mesh.server.service
        await until(lambda: not all(member.follows_epochs for member in service.members()), "it is known as old")
        with pytest.raises(MeshrayError, match="old") as caught:
            await rotate(mesh)
        assert caught.value.code == "agents_too_old" and caught.value.hint
        rotation = await remove(mesh, "gone")
        assert (rotation["started"], rotation["too_old"]) == (False, ["old"])
        del mesh.members["gone"]
        await until(mesh.whole, "the old one works")
        monkeypatch.setattr(CoordinatorConnection, "send_hello", hello)
        await old.agent.connection.send_hello()
        await until(lambda: all(member.follows_epochs for member in service.members()), "it was upgraded")
        assert (await rotate(mesh))["epoch"] == 2
        await until(lambda: mesh.whole() and use(mesh, 2, "head", "old"), "rotated")


async def test_a_static_peer_keeps_the_secret_of_its_file(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        await mesh.join("a")
        await until(mesh.whole, "whole")
        made = await mesh.head.agent.state.coordinator.call("POST", "/v1/peers", {"name": "phone"})
        answer = made["hub"]
        assert isinstance(answer, dict)
        assert (await rotate(mesh))["static"] == ["phone"]

        def of_phone() -> list[str]:
            state = mesh.head.device.state
            phone = mesh.head.agent.state.map.find("phone")
            if state is None or phone is None or phone.public_key not in state.peers:
                return []
            key = state.peers[phone.public_key].config.preshared_key
            return [key.reveal()] if key is not None else []

        await until(lambda: use(mesh, 2, "a") and mesh.head.agent.state.enrolment.secret_epoch == 2, "rotated")
        await mesh.server.service.collect()
        await until(
            lambda: list(mesh.members["a"].agent.state.enrolment.mesh_secrets) == [2], "dropped where no hub is"
        )
        assert of_phone() == [answer["preshared_key"]]
        assert set(mesh.head.agent.state.enrolment.mesh_secrets) == {1, 2}
        later = await mesh.head.agent.state.coordinator.call("POST", "/v1/peers", {"name": "tablet"})
        fresh, tablet = later["hub"], None
        assert isinstance(fresh, dict)
        await until(lambda: mesh.head.agent.state.map.find("tablet") is not None, "the tablet is in the map")
        tablet = mesh.head.agent.state.map.find("tablet")
        assert tablet is not None
        secret = mesh.head.agent.state.enrolment.mesh_secret
        assert (
            secret.preshared_key(tablet.public_key, mesh.head.agent.state.me.public_key).reveal()
            == fresh["preshared_key"]
        )
        rotation = await remove(mesh, "phone")
        assert not rotation["started"]
        await remove(mesh, "tablet")
        await mesh.server.service.collect()
        await until(lambda: set(mesh.head.agent.state.enrolment.mesh_secrets) == {2}, "the first secret is gone")


async def test_a_coordinator_put_back_from_before_a_rotation_starts_another_one(tmp_path: Path) -> None:
    async with mesh_with_process(tmp_path) as (mesh, coordinator):
        for name in ("a", "b"):
            await mesh.join(name)
        await until(mesh.whole, "whole")
        backup(mesh.server_home, tmp_path / "copy.db")
        await rotate(mesh)
        await until(lambda: mesh.whole() and use(mesh, 2, "head", "a", "b"), "rotated")
        await coordinator.kill()
        put_back(mesh.server_home, tmp_path / "copy.db")
        await coordinator.start()
        await until(lambda: mesh.whole() and use(mesh, 3, "head", "a", "b"), "an epoch above the lost one")


async def test_a_head_restored_from_before_a_rotation_is_reachable_again(tmp_path: Path) -> None:
    async with mesh_with_process(tmp_path) as (mesh, coordinator):
        await mesh.join("a")
        await until(mesh.whole, "whole")
        backup(mesh.server_home, tmp_path / "copy.db")
        for file in (mesh.server_home.map_cache, mesh.server_home.enrolment):
            shutil.copy(file, tmp_path)
        await rotate(mesh)
        await until(lambda: mesh.whole() and use(mesh, 2, "head", "a"), "rotated")
        await mesh.head.kill()
        await coordinator.kill()
        put_back(mesh.server_home, tmp_path / "copy.db")
        for file in (mesh.server_home.map_cache, mesh.server_home.enrolment):
            shutil.copy(tmp_path / file.name, file)
        head = mesh.reborn("head")
        await coordinator.start()
        head.start()
        await until(lambda: mesh.whole() and use(mesh, 3, "head", "a"), "an epoch above the lost one")


async def test_only_the_coordinators_node_changes_secrets_and_old_machines_stay_out_afterwards(tmp_path: Path) -> None:
    async with coordinator_alone(tmp_path) as mesh:
        worker = await mesh.client.enrol(mesh.token, "worker")
        refused = await mesh.client.call("POST", "/v1/secrets/rotate", None, worker.credential)
        assert refused.status == 403
        assert (await mesh.client.call("POST", "/v1/secrets/rotate")).status in (401, 403)
        reply = await mesh.admin("POST", "/v1/secrets/rotate")
        assert (reply.status, reply.body["epoch"]) == (200, 2)
        old = await mesh.client.call("POST", "/v1/enroll", enrol_request(mesh.token, "old", follows_epochs=False))
        assert (old.status, old.code) == (409, "meshray_too_old")
        newer = await mesh.client.enrol(mesh.token, "newer")
        assert newer.secret_epoch == 2 and newer.mesh_secret != worker.mesh_secret


async def test_leaving_changes_nothing(tmp_path: Path) -> None:
    async with coordinator_alone(tmp_path) as mesh:
        worker = await mesh.client.enrol(mesh.token, "worker")
        assert (await mesh.client.call("POST", "/v1/leave", {}, worker.credential)).status == 200
        assert (await mesh.client.enrol(mesh.token, "next")).secret_epoch == 1
