"""`meshray web open`: a node's own link, and through a fake ssh; the lab tier tests sshd itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

import pytest

from meshray.cli.browser import open_with_secret
from meshray.errors import RefusedError
from tests.unit.cli.fakes import FakeAgent, FakeApp, type_in

from .coordinator_harness import PATIENCE_S, Running, running_mesh
from .page_client import Browser

#: Supports -L, and the command of the other machine, which gets its own PATH.
SSH = """\
    import os, socket, subprocess, sys, threading
    arguments = sys.argv[1:]
    if "nobody" in arguments:
        print("ssh: Could not resolve hostname nobody: Name or service not known", file=sys.stderr)
        sys.exit(255)
    if "-L" not in arguments:
        sys.exit(subprocess.run(["sh", "-c", arguments[-1]]).returncode)

    def pump(read, write):
        while data := read(65536):
            write(data)

    assert "-N" in arguments and "ExitOnForwardFailure=yes" in arguments
    address, port, there, to = arguments[arguments.index("-L") + 1].split(":")
    assert address == there == "127.0.0.1"
    listener = socket.create_server((address, int(port)))
    while True:
        here, remote = listener.accept()[0], socket.create_connection((there, int(to)))
        for one, other in ((here, remote), (remote, here)):
            threading.Thread(target=pump, args=(one.recv, other.sendall), daemon=True).start()
    """
#: A meshray on the other machine, whose pass the test has made; without sudo it may not ask its agent.
MESHRAY = """\
    import json, os, sys
    with open(os.environ["TEST_FOLDER"] + "/said", "a") as file:
        print(json.dumps(sys.argv[1:]), file=file)
    if os.environ.get("TEST_SUDO") and not os.environ.get("AS_ROOT"):
        print(json.dumps({"schema": 1, "error": {"code": "not_owner", "message": "not yours", "hint": "as ana"}}))
        sys.exit(1)
    print(open(os.environ["TEST_FOLDER"] + "/answer").read())
    """
SUDO = """\
    import os, sys
    if os.environ["TEST_SUDO"] == "refused":
        print("sudo: a password is required", file=sys.stderr)
        sys.exit(1)
    assert sys.argv[1:3] == ["-n", "--"]
    os.environ["AS_ROOT"] = "1"
    os.execv(sys.argv[3], sys.argv[3:])
    """


#: These tests also run as root, who needs no sudo.
ID = """\
    print(1000)
    """


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("ssh", SSH), ("meshray", MESHRAY), ("sudo", SUDO), ("id", ID)):
        (folder / name).write_text(f"#!{sys.executable}\n" + dedent(text))
        (folder / name).chmod(0o755)
    path = f"{folder}:/usr/bin:/bin"
    return {**os.environ, "PATH": path, "HOME": str(tmp_path), "TEST_FOLDER": str(tmp_path)}


async def made_there(mesh: Running, folder: Path) -> None:
    """Make a pass and let the other machine's meshray answer with it."""
    reply = await mesh.admin("POST", "/v1/web/passes", {"name": "ssh", "level": "use", "ttl_s": 3600})
    url = f"https://head:1/enter#{reply.body['secret']}.{reply.body['fingerprint']}"
    answer = {key: reply.body[key] for key in ("id", "name", "level", "expires", "fingerprint")}
    (folder / "answer").write_text(json.dumps({"schema": 1, **answer, "url": url, "port": mesh.client.port}))


async def opened(environ: Mapping[str, str], *options: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "meshray", "web", "open", "--via", "ssh://ana@head", *options),
        env=dict(environ),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


def said(folder: Path) -> list[list[str]]:
    return [json.loads(line) for line in (folder / "said").read_text().splitlines()]


@pytest.mark.parametrize("with_sudo", [False, True])
async def test_the_page_through_ssh(tmp_path: Path, environ: dict[str, str], with_sudo: bool) -> None:
    async with running_mesh(tmp_path) as mesh:
        await made_there(mesh, tmp_path)
        environ |= {"TEST_SUDO": "allowed"} if with_sudo else {}
        process = await opened(environ, "--use", "--ttl", "2h")
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            line = await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)
            url = line.decode().strip()
            address, _, fragment = url.partition("/enter#")
            assert address.startswith("https://127.0.0.1:")
            browser = Browser(mesh.client)
            browser.origin = address
            assert (await browser.enter(fragment.partition(".")[0])).status == 303
            assert (await browser.call("GET", "/nothing")).status == 404
        finally:
            process.send_signal(signal.SIGINT)
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        assert (process.returncode, out) == (130, b""), err
        assert b"Traceback" not in err
        calls = said(tmp_path)
        invite = calls[1 if with_sudo else 0]
        assert invite[:2] == ["web", "invite"]
        assert invite[3:] == ["--ttl", "7200s", "--use", "--json"]
        made = json.loads((tmp_path / "answer").read_text())
        assert ["web", "revoke", made["id"], "--json"] in calls
        # Neither the pass nor its URL is an argument of a program.
        assert fragment.partition(".")[0] not in json.dumps(calls)


async def test_the_page_of_another_machine_is_not_trusted(tmp_path: Path, environ: dict[str, str]) -> None:
    async with running_mesh(tmp_path) as mesh:
        await made_there(mesh, tmp_path)
        answer = json.loads((tmp_path / "answer").read_text())
        answer["url"] = answer["url"].rpartition(".")[0] + "." + "0" * 64
        (tmp_path / "answer").write_text(json.dumps(answer))
        process = await opened(environ)
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        assert (process.returncode, out) == (4, b"")
        assert b"certificate" in err
        assert said(tmp_path)[-1][:2] == ["web", "revoke"]


@pytest.mark.parametrize(
    ("host", "sudo", "code", "words"), [("nobody", "", 5, "resolve"), ("head", "refused", 1, "not yours")]
)
async def test_failures_on_the_other_machine_are_reported(
    tmp_path: Path, environ: dict[str, str], host: str, sudo: str, code: int, words: str
) -> None:
    (tmp_path / "answer").write_text("{}")
    environ["TEST_SUDO"] = sudo
    outcome = await asyncio.to_thread(type_in, "web", "open", "--via", f"ssh://{host}", environ=environ)
    assert (outcome.code, outcome.out) == (code, "")
    assert words in outcome.err
    assert "hint:" in outcome.err


@pytest.mark.parametrize("is_head", [True, False])
async def test_a_node_opens_the_page_with_its_link(tmp_path: Path, is_head: bool) -> None:
    async with running_mesh(tmp_path) as mesh:
        credential = mesh.head.credential if is_head else (await mesh.client.enrol(mesh.token)).credential
        made = (await mesh.client.call("POST", "/v1/web/session", credential=credential)).body
        # The mesh's recorded address is not the test's port; a closed port is tried first.
        addresses = ["127.0.0.1:1"] if is_head else ["127.0.0.1:1", f"127.0.0.1:{mesh.client.port}"]
        agent = FakeAgent({"api": {**made, "endpoints": addresses, "port": mesh.client.port}})
        outcome = await asyncio.to_thread(type_in, "web", "open", "--no-open", agent=agent)
        assert outcome.code == 0, outcome.err
        address, _, fragment = outcome.out.strip().partition("/enter#")
        assert address == f"https://127.0.0.1:{mesh.client.port}"
        browser = Browser(mesh.client)
        assert (await browser.enter(fragment.partition(".")[0])).status == 303
        assert (await browser.call("GET", "/tokens")).status == (200 if is_head else 403)
        assert [request for _, request in outcome.agent.asked] == [
            {"method": "POST", "path": "/v1/web/session", "body": None}
        ]


async def test_a_node_whose_coordinator_is_away(tmp_path: Path) -> None:
    refused = RefusedError("credential_unknown", "the coordinator does not know this node", hint="meshray leave")
    outcome = await asyncio.to_thread(type_in, "web", "open", agent=FakeAgent({"api": refused}))
    assert (outcome.code, outcome.out) == (4, "")


def test_a_browser_gets_a_file_and_no_secret_in_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    app = FakeApp((), environ={"XDG_RUNTIME_DIR": str(tmp_path)})
    file = open_with_secret(app, 'https://head:1/enter#secret."><script>')
    with contextlib.closing(file.open()) as content:
        text = content.read()
    assert opened == [file.as_uri()]
    assert "secret" not in opened[0]
    assert 'url=https://head:1/enter#secret.&quot;&gt;&lt;script&gt;"' in text
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent == tmp_path
