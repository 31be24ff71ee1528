"""An upgrade of a node over the real coordinator: the real wheel, the real installer. The lab has the real switch."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from pathlib import Path
from typing import Any

import pytest

from meshray import __version__
from meshray.agent import upgrade as upgrades
from meshray.agent.agent import RestartRequested
from meshray.errors import MeshrayError
from meshray.installation.build import own_build
from meshray.installation.wheels import own_wheel
from meshray.linux.capture import run_captured
from meshray.model.attestation import sign_release
from meshray.model.keys import SigningKey
from meshray.protocol.codec import convert
from meshray.protocol.connection import UPGRADE as QUESTION
from meshray.protocol.orders import ALREADY, SWITCHING, UPGRADE, UpgradeReport
from meshray.runtime.upgrade import pointer as pointers
from meshray.runtime.upgrade import watchdog
from tests.mesh.mesh import Mesh, running_mesh, until
from tests.mesh.test_orders import audited, give, with_worker


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Return what would have been done with watchdogs, which need an agent with its own process."""
    done: list[str] = []
    monkeypatch.setattr(watchdog, "start", lambda home, python, environ: done.append(f"start {python}"))
    monkeypatch.setattr(watchdog, "ensure", lambda home, python, environ: done.append(f"ensure {python}"))

    monkeypatch.setattr(upgrades, "versions_folder", lambda home: tmp_path / "versions")
    # All agents run in this process, which runs the offered build already.
    monkeypatch.setattr(upgrades, "current_build", lambda: "old")
    return done


def offer(mesh: Mesh, content: bytes = b"") -> dict[str, Any]:
    """Offer this installation's wheel, or other bytes, at the coordinator; return the arguments of the order."""
    content = content or own_wheel().content
    folder = mesh.server_home.wheels
    folder.mkdir(exist_ok=True)
    sha256 = hashlib.sha256(content).hexdigest()
    (folder / f"{sha256}.whl").write_bytes(content)
    return {"sha256": sha256, "size": len(content), "version": __version__, "build": own_build()}


async def report(mesh: Mesh, node: str) -> UpgradeReport:
    body = {"op": QUESTION, "nodes": [node], "timeout_s": 10}
    answer = await mesh.head.agent.state.coordinator.call("POST", "/v1/ask", body)
    return convert(answer["answers"][node], UpgradeReport)  # type: ignore[index]


async def test_a_node_installs_the_wheel_switches_and_keeps_it(
    tmp_path: Path, watched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_mesh(tmp_path) as mesh:
        worker = await with_worker(mesh)
        await until(lambda: worker.agent.progress.up, "the node is up")
        arguments = offer(mesh)
        assert await give(mesh.head.agent, "gpu-1", UPGRADE, **arguments) == SWITCHING.encode()
        with pytest.raises(RestartRequested):
            await worker.ended()
        assert watched == [f"start {sys.executable}", f"ensure {sys.executable}"]
        pointer = pointers.read(worker.home)
        assert pointer is not None
        assert (pointer.state, pointer.previous, pointer.build) == (pointers.TRIAL, sys.executable, own_build())
        code = "from meshray.runtime.upgrade.current import current_build; print(current_build())"
        done = await asyncio.to_thread(run_captured, [pointer.python, "-I", "-c", code], env={}, timeout_s=60)
        assert done.stdout.strip() == own_build()
        assert not list(worker.home.wheels.iterdir())
        monkeypatch.setattr("sys.executable", pointer.python)
        mesh.reborn("gpu-1").start()
        await until(mesh.whole, "all see all again")
        await until(lambda: getattr(pointers.read(worker.home), "state", "") == pointers.KEPT, "it is kept")
        assert watched[2:] == [f"ensure {pointer.previous}"]
        found = await report(mesh, "gpu-1")
        assert (found.state, found.tried) == (pointers.KEPT, own_build())
        assert [(one.event, one.details.get("code")) for one in audited(mesh)] == [
            ("order", None),
            ("order_ended", "done"),
        ]


async def test_what_cannot_be_installed_changes_nothing(
    tmp_path: Path, watched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_mesh(tmp_path) as mesh:
        worker = await with_worker(mesh)
        await until(lambda: worker.agent.progress.up, "the node is up")

        async def refusal(arguments: dict[str, Any]) -> str:
            with pytest.raises(MeshrayError) as refused:
                await give(mesh.head.agent, "gpu-1", UPGRADE, **arguments)
            return refused.value.code

        good = offer(mesh)
        assert await refusal({**good, "sha256": "0" * 64}) == "no_wheel"
        assert await refusal({**good, "size": 100}) == "coordinator_unreachable"
        assert await refusal({**good, "size": 2**40}) == "bad_message"
        assert await refusal(offer(mesh, b"no archive")) == "upgrade_damaged"
        path = mesh.server_home.wheels / f"{good['sha256']}.whl"
        path.write_bytes(b"x" * good["size"])
        assert await refusal(good) == "upgrade_damaged"
        assert watched == [f"start {sys.executable}"] * 4
        # The digest is part of a file's name.
        assert await refusal({**good, "sha256": "../" * 21 + "x"}) == "bad_message"
        assert pointers.read(worker.home) is None
        assert not (tmp_path / "versions").exists()
        assert not list(worker.home.wheels.iterdir())
        monkeypatch.setattr(upgrades, "current_build", own_build)
        assert await give(mesh.head.agent, "gpu-1", UPGRADE, **good) == ALREADY.encode()


async def test_an_ephemeral_node_refuses(tmp_path: Path, watched: list[str]) -> None:
    async with running_mesh(tmp_path) as mesh:
        await with_worker(mesh, ephemeral=True)
        with pytest.raises(MeshrayError) as refused:
            await give(mesh.head.agent, "gpu-1", UPGRADE, **offer(mesh))
        assert refused.value.code == "upgrade_ephemeral"
        assert watched == []


async def test_in_a_mesh_with_a_lock_a_node_takes_only_what_the_lock_signed(tmp_path: Path, watched: list[str]) -> None:
    lock = SigningKey.generate()
    async with running_mesh(tmp_path, lock) as mesh:
        worker = await with_worker(mesh)
        await until(lambda: worker.agent.progress.up, "the node is up")
        good, mesh_id = offer(mesh), worker.agent.state.map.mesh.id
        signature = sign_release(lock, mesh_id, good["sha256"])
        wrong: tuple[dict[str, str], ...] = (
            {},
            {"signature": sign_release(SigningKey.generate(), mesh_id, good["sha256"])},
            {"signature": sign_release(lock, "another mesh", good["sha256"])},
            {"signature": sign_release(lock, mesh_id, "0" * 64)},
            {"signature": "no signature"},
        )
        for more in wrong:
            with pytest.raises(MeshrayError) as refused:
                await give(mesh.head.agent, "gpu-1", UPGRADE, **good, **more)
            assert refused.value.code in ("upgrade_unsigned", "bad_message")
        assert watched == []
        # The signature is that of the content.
        assert await give(mesh.head.agent, "gpu-1", UPGRADE, **good, signature=signature) == SWITCHING.encode()
        with pytest.raises(RestartRequested):
            await worker.ended()
