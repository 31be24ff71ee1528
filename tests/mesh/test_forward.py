"""`meshray forward` against a real coordinator and real TCP programs."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from meshray.client.page_session import PageUrl, kept_sessions, open_session
from meshray.errors import RefusedError, UsageError
from meshray.model.address import Endpoint

from .coordinator_harness import Running, running_mesh
from .page_client import invite
from .test_web_proxy import Overlay, overlay

__all__ = ["overlay"]
PATIENCE_S = 20


async def reverse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with everything that arrived, backwards, once it is complete."""
    writer.write((await reader.read())[::-1])
    await writer.drain()
    writer.close()


@dataclass
class Outside:
    """A machine outside the mesh."""

    mesh: Running
    folder: Path
    url: str

    async def start(self, *words: str, stdin: str | None = None) -> Process:
        environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MESHRAY_")},
            "MESHRAY_HOME": str(self.folder / "none"),
            "MESHRAY_RUN": str(self.folder / "none-run"),
            "XDG_STATE_HOME": str(self.folder / "state-home"),
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "meshray", "forward", *words),
            env=environ,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
        )
        assert process.stdin is not None
        if stdin is not None:
            process.stdin.write(stdin.encode())
        process.stdin.close()
        return process

    async def fails(self, *words: str, stdin: str | None = None) -> tuple[int | None, str]:
        """Return the exit code and the error's code."""
        process = await self.start(*words, "--json", stdin=stdin)
        out, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        return process.returncode, json.loads(out)["error"]["code"]

    @property
    def sessions(self) -> Path:
        return self.folder / "state-home/meshray/sessions"


@asynccontextmanager
async def outside(folder: Path, found: Overlay, level: str = "use") -> AsyncIterator[Outside]:
    server = await asyncio.start_server(reverse, "127.0.0.1", 0)
    async with running_mesh(folder) as mesh:
        head = await mesh.client.agent(mesh.head.credential)
        await head.until_online("head", True)
        found.ports["10.99.0.1", 22] = server.sockets[0].getsockname()[1]
        secret = await invite(mesh, level=level)
        fingerprint = mesh.token.fingerprint.hex()
        yield Outside(mesh, folder, f"https://127.0.0.1:{mesh.client.port}/enter#{secret}.{fingerprint}")
        await head.socket.close()
    server.close()


async def answer_of(process: Process) -> tuple[str, int]:
    assert process.stdout is not None
    line = json.loads(await asyncio.wait_for(process.stdout.readline(), PATIENCE_S))
    assert (line["host"], line["node_port"]) == ("127.0.0.1", 22)
    return line["host"], line["port"]


async def reversed_by(host: str, port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(data)
    writer.write_eof()
    received = await asyncio.wait_for(reader.read(), PATIENCE_S)
    writer.close()
    return received


async def end(process: Process) -> str:
    """End the command as Ctrl-C does; return its standard error."""
    process.send_signal(2)
    _, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode == 130
    return err.decode()


async def test_a_machine_outside_the_mesh_reaches_a_port_with_a_pass(tmp_path: Path, overlay: Overlay) -> None:
    async with outside(tmp_path, overlay) as here:
        process = await here.start("22:0", "head", "--pass", "-", "--json", stdin=here.url + "\n")
        host, port = await answer_of(process)
        data = bytes(range(256)) * 4000
        assert await asyncio.gather(*(reversed_by(host, port, data) for _ in range(3))) == [data[::-1]] * 3
        err = await end(process)
        assert len(err.strip().splitlines()) <= 1
        # The session is kept, and only for this user.
        (file,) = here.sessions.iterdir()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(here.sessions.stat().st_mode) == 0o700
        assert here.url.partition("#")[2].partition(".")[0] not in file.read_text()
        # So a second call works: with the pass, which is used, and without it.
        for words, stdin in ((("--pass", "-"), here.url), ((), None)):
            process = await here.start("22:0", *words, "--json", stdin=stdin)
            assert await reversed_by(*await answer_of(process), b"abc") == b"cba"
            await end(process)
        passes = (await here.mesh.admin("GET", "/v1/web/passes")).body["passes"]
        await here.mesh.admin("DELETE", f"/v1/web/passes/{passes[0]['id']}")  # type: ignore[index]
        assert await here.fails("22:0") == (4, "session_ended")
        assert await here.fails("22:0") == (2, "needs_pass")


async def test_failures_have_their_code_before_anything_listens(tmp_path: Path, overlay: Overlay) -> None:
    async with outside(tmp_path, overlay) as here:
        file = tmp_path / "invitation"
        file.write_text(here.url)
        shown = ("--pass", f"@{file}")
        assert await here.fails("23:0", "head", *shown) == (1, "connection_refused")
        assert await here.fails("22:0", "nobody", *shown) == (2, "node_unknown")
        assert await here.fails("70000", *shown) == (2, "bad_port")
        taken = await asyncio.start_server(reverse, "127.0.0.1", 0)
        port = taken.sockets[0].getsockname()[1]
        assert await here.fails(f"22:{port}", *shown) == (1, "port_in_use")
        taken.close()
        assert await here.fails("22:0", "--pass", "-", stdin="nonsense") == (2, "bad_pass")
        assert await here.fails("22:0", "--pass", f"@{tmp_path}/missing") == (2, "bad_pass")


async def test_a_read_pass_opens_no_tunnel(tmp_path: Path, overlay: Overlay) -> None:
    async with outside(tmp_path, overlay, level="read") as here:
        assert await here.fails("22:0", "--pass", "-", stdin=here.url) == (4, "level_too_low")
        assert not overlay.dialled


async def test_a_used_pass_and_another_certificate_are_refused(tmp_path: Path, overlay: Overlay) -> None:
    async with outside(tmp_path, overlay) as here:
        url = PageUrl.parse(here.url)
        other = PageUrl(url.endpoint, url.secret, b"\0" * 32)
        with pytest.raises(RefusedError, match="another certificate"):
            await open_session(other, tmp_path / "a")
        await open_session(url, tmp_path / "a")
        assert len(kept_sessions(tmp_path / "a")) == 1
        with pytest.raises(RefusedError, match="does not accept this pass"):
            await open_session(url, tmp_path / "b")


def test_a_url_is_read_and_a_wrong_one_never_shown() -> None:
    secret, fingerprint = "s" * 43, "ab" * 32
    url = PageUrl.parse(f" https://head:51888/enter#{secret}.{fingerprint}\n")
    assert (url.endpoint, url.secret, url.fingerprint.hex()) == (Endpoint("head", 51888), secret, fingerprint)
    assert secret not in repr(url)
    for wrong in (f"http://head/enter#{secret}.{fingerprint}", f"https://head/#{secret}.{fingerprint}", secret, ""):
        with pytest.raises(UsageError) as refused:
            PageUrl.parse(wrong)
        assert secret not in f"{refused.value} {refused.value.hint}"
