"""Orders with a pass of the page instead of root on the head, over the real coordinator, and from real programs."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import stat
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from meshray.agent import remote_orders
from meshray.agent.agent import RestartRequested
from meshray.client.order import give_order_with_pass
from meshray.client.page_session import PageSession, PageUrl, open_session
from meshray.coordinator.audit_log import read_log
from meshray.errors import MeshrayError, RefusedError
from meshray.model.keys import SigningKey
from meshray.model.permission_level import Level
from meshray.protocol.audit import AuditRecord
from meshray.protocol.connection import Order
from meshray.protocol.orders import BUNDLE, LOGS, RESTART, UPGRADE, OrderForm
from meshray.protocol.page import CSRF_HEADER, ORDERS_PATH, csrf_token
from tests.mesh.mesh import Member, Mesh, running_mesh, until
from tests.mesh.test_orders import DEADLINE_S, audited, with_worker, write_log

#: Programs start on cores that other tests share.
PATIENCE_S = 60


@dataclass
class Invited:
    """A user with a pass, whose machine is outside the mesh."""

    mesh: Mesh
    worker: Member
    folder: Path
    id: str
    secret: str

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.mesh.port}/enter#{self.secret}.{self.mesh.token.fingerprint.hex()}"

    @property
    def sessions(self) -> Path:
        return self.folder / "state-home/meshray/sessions"

    async def session(self) -> PageSession:
        return await open_session(PageUrl.parse(self.url, Level.ADMIN), self.sessions)

    async def give(self, order: str, **arguments: object) -> bytes:
        form = OrderForm("gpu-1", order, arguments)
        return b"".join([part async for part in give_order_with_pass(await self.session(), form)])

    async def revoke(self) -> None:
        await self.mesh.head.agent.state.coordinator.call("DELETE", f"/v1/web/passes/{self.id}")

    async def start(self, *words: str, stdin: str = "", home: Path | None = None) -> Process:
        """Start `meshray node` there, or with this state folder on a machine of the mesh."""
        environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MESHRAY_")},
            "MESHRAY_HOME": str(home or self.folder / "none"),
            "MESHRAY_RUN": str(self.folder / "none-run"),
            "XDG_STATE_HOME": str(self.folder / "state-home"),
        }
        command = (sys.executable, "-m", "meshray", "node", *words)
        process = await asyncio.create_subprocess_exec(*command, env=environ, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        assert process.stdin is not None
        process.stdin.write(stdin.encode())
        process.stdin.close()
        return process

    async def type(self, *words: str, stdin: str = "", home: Path | None = None) -> tuple[int | None, str]:
        """Return the exit code and the standard output of `meshray node`; its outputs never contain the pass."""
        process = await self.start(*words, stdin=stdin, home=home)
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        assert self.secret not in (out + err).decode()
        return process.returncode, out.decode()

    async def fails(self, *words: str, stdin: str = "") -> tuple[int | None, str]:
        """Return the exit code and the error's code."""
        code, out = await self.type(*words, "--json", stdin=stdin)
        return code, json.loads(out)["error"]["code"]


@asynccontextmanager
async def invited(
    folder: Path, level: str = "admin", lock: SigningKey | None = None, **changes: object
) -> AsyncIterator[Invited]:
    """Run a mesh with a worker that has these changes, and make a pass of this level."""
    async with running_mesh(folder, lock) as mesh:
        if lock is None:
            worker = await with_worker(mesh, **changes)
        else:
            worker = mesh.head
            await until(mesh.whole, "the head is connected")
        form = {"name": "ana", "level": level, "ttl_s": 3600}
        made = await mesh.head.agent.state.coordinator.call("POST", "/v1/web/passes", form)
        yield Invited(mesh, worker, folder, str(made["id"]), str(made["secret"]))


def refusals(mesh: Mesh) -> list[str]:
    return [record.details["code"] for record in audited(mesh) if record.event == "order_refused"]


def passes_refused(mesh: Mesh) -> list[AuditRecord]:
    return [record for record in read_log(mesh.server_home.audit_log).records if record.event == "pass_refused"]


async def test_an_admin_pass_gives_orders_from_a_machine_outside_and_they_are_audited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with invited(tmp_path) as ana:
        write_log(ana.worker, "one\n\x1b[2Jtwo\n")
        code, out = await ana.type("logs", "gpu-1", "-n", "5", "--pass", "-", stdin=ana.url + "\n")
        assert (code, out) == (0, "one\n\\x1b[2Jtwo\n")
        (file,) = ana.sessions.iterdir()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        # The session is kept, so later calls need no pass.
        code, out = await ana.type("logs", "gpu-1", "--json")
        assert (code, json.loads(out)["text"]) == (0, "one\n\x1b[2Jtwo\n")
        assert await ana.fails("logs", "gpu-1", "ray") == (1, "no_log")
        assert await ana.fails("logs", "nobody") == (2, "node_unknown")

        async def create(home: object, path: Path) -> None:
            await asyncio.to_thread(path.write_bytes, b"an archive")

        monkeypatch.setattr(remote_orders, "create_bundle", create)
        ana.worker.home.run.mkdir(exist_ok=True)
        archive = tmp_path / "gpu-1.tar.gz"
        assert (await ana.type("bundle", "gpu-1", str(archive)))[0] == 0
        assert (archive.read_bytes(), stat.S_IMODE(archive.stat().st_mode)) == (b"an archive", 0o600)
        # On the head, an ordinary user cannot reach the agent's socket; a pass that was used there works again.
        invitation = tmp_path / "invitation"
        invitation.write_text(ana.url)
        code, out = await ana.type(
            "restart", "gpu-1", "--pass", f"@{invitation}", "--json", home=ana.mesh.head.home.state
        )
        assert (code, json.loads(out)["done"]) == (0, "restarting")
        with pytest.raises(RestartRequested):
            await ana.worker.ended()
        await until(lambda: len(audited(ana.mesh)) == 10, "all are recorded")
        records = audited(ana.mesh)
        assert {(record.by, record.source, record.node) for record in records} == {
            (f"pass {ana.id} of ana", "127.0.0.1", "gpu-1")
        }
        assert [(record.details["order"], record.details.get("code")) for record in records] == [
            *[(LOGS, None), (LOGS, "done")] * 2,
            *[(LOGS, None), (LOGS, "no_log")],
            *[(BUNDLE, None), (BUNDLE, "done")],
            *[(RESTART, None), (RESTART, "done")],
        ]
        kept = json.loads(file.read_text())["cookie"].partition("=")[2]
        log = ana.mesh.server_home.audit_log.read_text() + caplog.text
        assert ana.secret not in log
        assert kept not in log


async def test_a_lower_level_is_refused_and_its_refusals_do_not_fill_the_disk(tmp_path: Path) -> None:
    async with invited(tmp_path, level="use") as ana:
        write_log(ana.worker, "private\n")
        assert await ana.fails("logs", "gpu-1", "--pass", "-", stdin=ana.url) == (4, "level_too_low")
        (record,) = audited(ana.mesh)
        assert (record.event, record.by, record.source, record.node) == (
            "order_refused",
            f"pass {ana.id} of ana",
            "127.0.0.1",
            "gpu-1",
        )
        assert (record.details["order"], record.details["code"]) == (LOGS, "level_too_low")
        for attempt in range(30):
            with pytest.raises(RefusedError, match="this needs a session of level admin; yours has level use"):
                await ana.give(RESTART)
            if attempt == 15:
                await ana.mesh.server.service.collect()
        assert refusals(ana.mesh) == ["level_too_low"] * 20
        assert ana.worker.agent.connection.is_open


async def test_no_pass_gives_an_order_that_makes_programs_run_as_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with invited(tmp_path) as ana:
        received: list[Order] = []

        async def carry_out(order: Order) -> None:
            received.append(order)

        monkeypatch.setattr(ana.worker.agent.orders, "carry_out", carry_out)
        for order in (UPGRADE, "format_disk"):
            with pytest.raises(RefusedError, match="it needs root on the head") as refused:
                await ana.give(order, sha256="0" * 64)
            assert refused.value.code == "order_needs_root"
        assert await ana.fails("upgrade", "gpu-1", "--pass", "-", stdin=ana.url) == (4, "order_needs_root")
        assert received == []
        assert refusals(ana.mesh) == ["order_needs_root"] * 2


async def test_a_revoked_pass_ends_a_followed_log_and_gives_no_more_orders(tmp_path: Path) -> None:
    async with invited(tmp_path) as ana:
        write_log(ana.worker, "first\n")
        process = await ana.start("logs", "gpu-1", "-f", "--pass", "-", stdin=ana.url)
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), PATIENCE_S) == b"first\n"
        session = await ana.session()
        await ana.revoke()
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        assert (process.returncode, out) == (4, b"")
        assert b"the session of this pass has ended" in err
        assert b"meshray web invite NAME --admin" in err
        assert list(ana.sessions.iterdir()) == []
        await until(lambda: not ana.worker.agent.orders._running, "the order is cancelled")
        assert [(record.event, record.details.get("code")) for record in audited(ana.mesh)] == [
            ("order", None),
            ("order_ended", "cancelled"),
        ]
        for _ in range(30):
            with pytest.raises(RefusedError) as refused:
                await anext(give_order_with_pass(session, OrderForm("gpu-1", LOGS)))
            assert refused.value.code == "session_ended"
        assert refusals(ana.mesh) == ["session_ended"] * 20
        assert audited(ana.mesh)[-1].by == f"pass {ana.id} of ana"


async def test_a_pass_that_was_never_used_is_refused_after_its_end_and_that_is_audited(tmp_path: Path) -> None:
    async with invited(tmp_path) as ana:
        await ana.revoke()
        assert await ana.fails("logs", "gpu-1", "--pass", "-", stdin=ana.url) == (4, "pass_refused")
        await until(lambda: len(passes_refused(ana.mesh)) == 1, "the refusal is recorded")
        (record,) = passes_refused(ana.mesh)
        assert (record.by, record.source, record.details) == (
            f"pass {ana.id} of ana",
            "127.0.0.1",
            {"code": "revoked"},
        )
        with pytest.raises(RefusedError, match="does not accept this pass"):
            await open_session(PageUrl.parse(ana.url.replace(ana.secret, "x" * 43)), tmp_path / "other")
        made = await ana.mesh.head.agent.state.coordinator.call("POST", "/v1/web/passes", {"name": "ben"})
        ben = Invited(ana.mesh, ana.worker, tmp_path / "ben", str(made["id"]), str(made["secret"]))
        await ben.session()
        for number in range(3):
            with pytest.raises(RefusedError, match="does not accept this pass"):
                await open_session(PageUrl.parse(ben.url), tmp_path / f"ben-{number}")
        await until(lambda: len(passes_refused(ana.mesh)) == 4, "those of a used pass are recorded")
        assert {(record.by, record.details["code"]) for record in passes_refused(ana.mesh)[1:]} == {
            (f"pass {ben.id} of ben", "used")
        }


async def test_an_expired_pass_gives_no_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with invited(tmp_path) as ana:
        write_log(ana.worker, "private\n")
        assert await ana.give(LOGS) == b"private\n"
        monkeypatch.setattr(ana.mesh.server.service.passes, "_wall", lambda: time.time() + 3601)
        with pytest.raises(RefusedError) as refused:
            await ana.give(LOGS)
        assert refused.value.code == "session_ended"
        assert refusals(ana.mesh) == ["session_ended"]


async def test_a_node_that_refuses_orders_refuses_those_of_a_pass(tmp_path: Path) -> None:
    async with invited(tmp_path, no_remote=True) as ana:
        with pytest.raises(RefusedError, match="it joined with --no-remote"):
            await ana.give(LOGS)
        assert refusals(ana.mesh) == ["remote_refused"]


async def test_a_page_of_another_program_cannot_give_orders_with_the_cookie_of_a_browser(tmp_path: Path) -> None:
    async with invited(tmp_path) as ana, aiohttp.ClientSession() as client:
        session = await ana.session()
        secret = session.cookie.partition("=")[2]
        own = {"Cookie": session.cookie, "Origin": session.origin}
        for headers in (
            own,
            {**own, CSRF_HEADER: csrf_token("x" + secret)},
            {**own, CSRF_HEADER: csrf_token(secret), "Origin": "https://elsewhere.example"},
        ):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await client.ws_connect(
                    f"{session.origin}{ORDERS_PATH}", headers=headers, ssl=aiohttp.Fingerprint(session.fingerprint)
                )
            assert refused.value.status == 403
        assert audited(ana.mesh) == []


async def test_a_mesh_with_a_lock_takes_the_orders_of_a_pass(tmp_path: Path) -> None:
    async with invited(tmp_path, lock=SigningKey.generate()) as ana:
        write_log(ana.mesh.head, "of the head\n")
        form = OrderForm("head", LOGS)
        output = give_order_with_pass(await ana.session(), form)
        assert await asyncio.wait_for(anext(output), DEADLINE_S) == b"of the head\n"
        await output.aclose()


async def test_an_order_that_cannot_be_audited_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with invited(tmp_path) as ana:
        received: list[Order] = []

        async def carry_out(order: Order) -> None:
            received.append(order)

        def fail(*args: object, **details: object) -> None:
            raise MeshrayError("audit_failed", "the audit log cannot be written: the disk is full")

        monkeypatch.setattr(ana.worker.agent.orders, "carry_out", carry_out)
        monkeypatch.setattr(ana.mesh.server.service.audit, "record", fail)
        with pytest.raises(MeshrayError) as refused:
            await ana.give(LOGS)
        assert (refused.value.code, received) == ("audit_failed", [])
