"""Enrolments and joins through a fake ssh, to a real coordinator; the lab tier tests sshd itself."""

from __future__ import annotations

import asyncio
import functools
import io
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any, cast

import pytest

from meshray.cli.app import App
from meshray.cli.enrolment_route import ForwardRoute, SshRoute, enrol_via, withdraw_via
from meshray.cli.machine_list import parse_inventory
from meshray.cli.remote_joins import JoinOptions, add_machines
from meshray.errors import MeshrayError, RefusedError, UnreachableError
from meshray.model.address import Endpoint
from meshray.model.enrol import EnrolRequest
from meshray.model.keys import PrivateKey
from meshray.model.token import Token
from meshray.runtime.ssh import SshTarget
from tests.unit.cli.fakes import FakeAgent, Outcome, type_in

from .coordinator_harness import KEYS, Running, enrol_request, running_mesh

#: Supports the two uses that meshray makes of ssh, -W and -R with a command, and fails like ssh.
SSH = """\
    import os, pathlib, socket, subprocess, sys, threading
    arguments = sys.argv[1:]
    host = arguments[arguments.index("--") + 1]
    if host == "hangs":
        import time
        pathlib.Path(os.environ["HOME"], "hangs").write_text(str(os.getpid()))
        time.sleep(60)
    if host == "nobody":
        print("ssh: Could not resolve hostname nobody: Name or service not known", file=sys.stderr)
        sys.exit(255)

    def pump(read, write):
        while data := read(65536):
            write(data)

    def connect(text):
        address, port = text.rsplit(":", 1)
        return socket.create_connection((address, int(os.environ.get("TEST_PORT", port))))

    if "-W" in arguments:
        try:
            there = connect(arguments[arguments.index("-W") + 1])
        except OSError:
            print("channel 0: open failed: connect failed: Connection refused", file=sys.stderr)
            print("stdio forwarding failed", file=sys.stderr)
            sys.exit(255)
        threading.Thread(target=pump, args=(there.recv, lambda data: os.write(1, data)), daemon=True).start()
        pump(lambda size: os.read(0, size), there.sendall)
        sys.exit(0)
    if "-R" in arguments and host == "no-forward":
        print("Error: remote port forwarding failed for listen port 20000", file=sys.stderr)
        sys.exit(255)
    if "-R" in arguments:
        address, port, to = arguments[arguments.index("-R") + 1].split(":", 2)
        listener = socket.create_server((address, int(port)))
        def forward():
            while True:
                here, there = listener.accept()[0], connect(to)
                for one, other in ((here, there), (there, here)):
                    threading.Thread(target=pump, args=(one.recv, other.sendall), daemon=True).start()
        threading.Thread(target=forward, daemon=True).start()
    sys.exit(subprocess.run(["sh", "-c", arguments[-1]]).returncode)
    """
#: A fake meshray on the other machine: reports its arguments, and whether the forward leads somewhere.
MESHRAY = """\
    import json, os, socket, sys
    print("preflight: ok", file=sys.stderr)
    via = sys.argv[sys.argv.index("--via") + 1] if "--via" in sys.argv else ""
    if via:
        address, port = via.split(":")
        socket.create_connection((address, int(port)), 5).close()
    if "refused" in sys.argv:
        print(json.dumps({"schema": 1, "error": {"code": "token_expired", "message": "expired", "hint": "h"}}))
        sys.exit(4)
    name = sys.argv[sys.argv.index("--name") + 1] if "--name" in sys.argv else "unnamed"
    member = os.path.join(os.environ["HOME"], "member-" + name)
    already = {"already": True} if os.path.exists(member) else {}
    open(member, "w").close()
    node = {"name": name, "ip": "10.99.0.9"}
    answer = {"schema": 1, "mesh": "lab", "node": node, "arguments": sys.argv[1:], "stdin": sys.stdin.read(), **already}
    print(json.dumps(answer))
    """
SUDO = """\
    import os, sys
    assert sys.argv[1:3] == ["-n", "--"]
    os.execv(sys.argv[3], sys.argv[3:])
    """


@pytest.fixture
def programs(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("ssh", SSH), ("meshray", MESHRAY), ("sudo", SUDO)):
        (folder / name).write_text(f"#!{sys.executable}\n" + dedent(text))
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:/usr/bin:/bin", "HOME": str(tmp_path)}


def app_with(environ: Mapping[str, str]) -> App:
    return App((), environ=environ, stderr=io.StringIO())


def enrolment_of(token: Token, **changes: str) -> tuple[EnrolRequest, PrivateKey]:
    request = EnrolRequest.from_json({**enrol_request(token), **changes})
    return request, KEYS[str(request.public_key)]


async def test_an_enrolment_through_ssh(tmp_path: Path, programs: dict[str, str]) -> None:
    async with running_mesh(tmp_path) as mesh:
        app = app_with({**programs, "TEST_PORT": str(mesh.client.port)})
        route = SshRoute(SshTarget("head", "ana", 2222))
        answer = await asyncio.to_thread(enrol_via, app, route, mesh.token, *enrolment_of(mesh.token))
        assert answer.map.nodes[answer.node_id].name == "worker"
        assert mesh.server is not None
        bad = enrolment_of(mesh.token, secret="no")
        with pytest.raises(RefusedError) as caught:
            await asyncio.to_thread(enrol_via, app, route, mesh.token, *bad)
        assert caught.value.code == "token_unknown"


async def test_an_enrolment_through_ssh_is_withdrawn_through_ssh(tmp_path: Path, programs: dict[str, str]) -> None:
    async with running_mesh(tmp_path) as mesh:
        app = app_with({**programs, "TEST_PORT": str(mesh.client.port)})
        route = SshRoute(SshTarget("head", "ana", 2222))
        request, key = enrolment_of(mesh.token)
        sent: list[str] = []
        enrol = functools.partial(enrol_via, on_sent=lambda: sent.append("now"))
        await asyncio.to_thread(enrol, app, route, mesh.token, request, key)
        assert sent == ["now"]
        assert len(mesh.server.service.members()) == 2
        await asyncio.to_thread(withdraw_via, app, route, mesh.token, key)
        assert len(mesh.server.service.members()) == 1
        with pytest.raises(UnreachableError):
            await asyncio.to_thread(enrol, app, SshRoute(SshTarget("nobody")), mesh.token, request, key)
        assert sent == ["now"], "the request never left this machine"


async def test_ssh_that_fails_is_quoted(tmp_path: Path, programs: dict[str, str]) -> None:
    async with running_mesh(tmp_path) as mesh:
        for target, port, words in (
            (SshTarget("nobody", "ana"), mesh.client.port, "Could not resolve hostname nobody"),
            (SshTarget("head"), 1, "Connection refused; stdio forwarding failed"),
        ):
            app = app_with({**programs, "TEST_PORT": str(port)})
            with pytest.raises(UnreachableError) as caught:
                await asyncio.to_thread(enrol_via, app, SshRoute(target), mesh.token, *enrolment_of(mesh.token))
            assert caught.value.code == "ssh_failed"
            assert words in caught.value.message
            assert target.command_line in caught.value.hint


async def test_a_machine_without_ssh(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        app = app_with({"PATH": str(tmp_path)})
        with pytest.raises(MeshrayError) as caught:
            enrol_via(app, SshRoute(SshTarget("head")), mesh.token, *enrolment_of(mesh.token))
        assert caught.value.code == "no_ssh"


async def test_an_enrolment_through_a_forward(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        route = ForwardRoute(Endpoint("127.0.0.1", mesh.client.port))
        app = app_with({})
        answer = await asyncio.to_thread(enrol_via, app, route, mesh.token, *enrolment_of(mesh.token))
        assert answer.map.nodes[answer.node_id].name == "worker"
        other = Token(mesh.token.mesh_id, mesh.token.coordinators, bytes(32), "00000000", "x")
        with pytest.raises(RefusedError) as caught:
            await asyncio.to_thread(enrol_via, app, route, other, *enrolment_of(other))
        assert caught.value.code == "token_other_mesh"
    with pytest.raises(UnreachableError, match="nothing answers"):
        await asyncio.to_thread(enrol_via, app, route, mesh.token, *enrolment_of(mesh.token))


async def add(mesh: Running, programs: dict[str, str], host: str, *more: str) -> Outcome:
    made = (await mesh.admin("POST", "/v1/tokens", {})).body
    agent = FakeAgent({"api": {**made, "port": mesh.client.port}})
    return await asyncio.to_thread(
        type_in, "node", "add", "--json", f"ssh://ana@{host}", *more, agent=agent, environ=programs
    )


async def test_a_node_that_is_added_from_the_head(tmp_path: Path, programs: dict[str, str]) -> None:
    async with running_mesh(tmp_path) as mesh:
        outcome = await add(mesh, programs, "gpu-1", "--name", "gpu-1", "--label", "zone=a-b", "--", "--num-cpus=1")
    assert outcome.code == 0, outcome.out
    answer = json.loads(outcome.out)
    assert answer["mesh"] == "lab"
    arguments, token = answer["arguments"], answer["stdin"]
    assert arguments[:4] == ["join", "-", "--json", "--via"]
    assert arguments[5:] == ["--name", "gpu-1", "--label", "zone=a-b", "--", "--num-cpus=1"]
    assert Token.parse(token).mesh_id
    assert "gpu-1: preflight: ok" in outcome.err
    assert token.strip() not in outcome.err + str(arguments)
    (operation, made), *rest = outcome.agent.asked
    assert (operation, made["body"]) == ("api", {"uses": 1, "ttl_s": 3600, "ephemeral": False})
    assert rest == []


@pytest.mark.parametrize(
    ("host", "more", "code", "exit_code"),
    [
        ("gpu-1", ("--name", "refused"), "token_expired", 4),
        ("nobody", (), "ssh_failed", 5),
        ("gpu-1", ("--meshray", "/no/meshray"), "no_meshray_there", 1),
        ("gpu-1", ("--meshray", "false"), "push_failed", 1),
    ],
)
async def test_a_push_that_fails_revokes_its_token(
    tmp_path: Path, programs: dict[str, str], host: str, more: tuple[str, ...], code: str, exit_code: int
) -> None:
    async with running_mesh(tmp_path) as mesh:
        outcome = await add(mesh, programs, host, *more)
    assert (outcome.code, json.loads(outcome.out)["error"]["code"]) == (exit_code, code)
    assert outcome.agent.asked[-1][1]["method"] == "DELETE"


async def test_without_ssh_forwarding_the_worker_connects_directly(tmp_path: Path, programs: dict[str, str]) -> None:
    async with running_mesh(tmp_path) as mesh:
        outcome = await add(mesh, programs, "no-forward")
    assert outcome.code == 0
    assert cast("list[str]", json.loads(outcome.out)["arguments"]) == ["join", "-", "--json"]
    assert "must reach the coordinator directly" in outcome.err


HOSTS = """
[headnode]
head
[workernode]
gpu-[1:12]
nobody
[storage]
nas
"""


async def add_list(mesh: Running, programs: dict[str, str], text: str, *more: str) -> Outcome:
    file = Path(programs["HOME"]) / "hosts.ini"
    file.write_text(text)
    made = (await mesh.admin("POST", "/v1/tokens", {"uses": 0})).body
    agent = FakeAgent({"api": {**made, "port": mesh.client.port}})
    words = ("node", "add", "--json", "--from", str(file), *more)
    return await asyncio.to_thread(type_in, *words, agent=agent, environ=programs)


async def test_all_machines_of_an_inventory_join_and_the_rest_is_named(
    tmp_path: Path, programs: dict[str, str]
) -> None:
    async with running_mesh(tmp_path) as mesh:
        first = await add_list(mesh, programs, HOSTS, "--parallel", "4", "--no-ray")
        again = await add_list(mesh, programs, HOSTS.replace("nobody", "gpu-13").replace("nas", ""))
    answer = json.loads(first.out)
    assert (first.code, answer["added"], answer["already"], answer["failed"]) == (1, 12, 0, 2)
    results = {machine["machine"]: machine for machine in answer["machines"]}
    assert list(results) == ["head", *(f"gpu-{n}" for n in range(1, 13)), "nobody", "nas"]
    assert (results["gpu-7"]["done"], results["gpu-7"]["node"]["name"]) == ("added", "gpu-7")
    assert results["nobody"]["error"]["code"] == "ssh_failed"
    assert results["nas"]["error"]["code"] == "group_unknown"
    assert "gpu-7: ok gpu-7, 10.99.0.9" in first.err
    # Every token of a machine that failed is revoked; each of the others was used by the machine.
    methods = [asked["method"] for _, asked in first.agent.asked]
    assert (methods[0], methods.count("POST"), methods.count("DELETE")) == ("GET", 13, 1)
    counts = json.loads(again.out)
    assert (again.code, counts["added"], counts["already"], counts["failed"]) == (0, 1, 12, 0)


async def test_ctrl_c_ends_every_ssh(tmp_path: Path, programs: dict[str, str]) -> None:
    found = parse_inventory("[worker]\nhangs\ngpu-1\n")

    class Interrupted(App):
        def progress(self) -> Any:
            return self

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *error: object) -> None:
            return None

        def stage(self, name: str, state: str, detail: str = "") -> None:
            if state == "ok":
                while not (tmp_path / "hangs").exists():
                    time.sleep(0.01)
                raise KeyboardInterrupt

        def api(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Mapping[str, object]:
            return {**made, "port": mesh.client.port}

    async with running_mesh(tmp_path) as mesh:
        made = (await mesh.admin("POST", "/v1/tokens", {"uses": 0})).body
        app = Interrupted((), environ=programs, stderr=io.StringIO())

        def interrupted() -> None:
            with pytest.raises(KeyboardInterrupt):
                add_machines(app, found, JoinOptions("meshray", parallel=2))

        began = time.monotonic()
        await asyncio.to_thread(interrupted)
    assert time.monotonic() - began < 20
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "hangs").read_text()), 0)
