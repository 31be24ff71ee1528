"""The coordinator as a separate process: killed at any moment, it loses no node that got its answer."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

import aiohttp

from meshray.coordinator.sqlite_store import SqliteStore
from meshray.home import Home
from meshray.model.enrol import EnrolAnswer

from .coordinator_harness import PATIENCE_S, Client, client_of, enrol_request, make_mesh
from .process_harness import coordinator_process


async def enrol_until_it_dies(
    client: Client, names: list[str], token_request: dict[str, dict[str, object]]
) -> list[EnrolAnswer]:
    answers: list[EnrolAnswer] = []
    for name in names:
        try:
            reply = await client.call("POST", "/v1/enroll", token_request[name])
        except (aiohttp.ClientError, OSError):
            break
        assert reply.status == 200, reply.body
        answers.append(EnrolAnswer.from_json(reply.body))
    return answers


async def still_known(client: Client, answer: EnrolAnswer) -> None:
    agent = await client.agent(answer.credential)
    assert await agent.receive() == "map"
    assert agent.map is not None
    assert agent.map.nodes[answer.node_id].ip == answer.map.nodes[answer.node_id].ip
    await agent.socket.close()


async def test_kill_9_loses_no_acknowledged_enrolment(tmp_path: Path) -> None:
    home, head, token = make_mesh(tmp_path)
    acknowledged: list[EnrolAnswer] = []
    dice = random.Random(1)
    for turn in range(6):
        async with (
            coordinator_process(home, tmp_path / f"{turn}.log") as coordinator,
            client_of(coordinator.port, token.fingerprint) as client,
        ):
            # Enrolments wait for the agent of the coordinator's own machine.
            await still_known(client, head)
            # Not all at once: of more than 256 concurrent handshakes the oldest are aborted.
            for start in range(0, len(acknowledged), 100):
                await asyncio.gather(*(still_known(client, one) for one in acknowledged[start : start + 100]))
            # From then on there is state to lose, however slow the machine is.
            acknowledged += await enrol_until_it_dies(
                client, ["first"], {"first": enrol_request(token, f"first{turn}")}
            )
            requests = {f"n{turn}-{number}": enrol_request(token, f"n{turn}-{number}") for number in range(200)}
            names = list(requests)
            work = asyncio.gather(*(enrol_until_it_dies(client, names[start::4], requests) for start in range(4)))
            await asyncio.sleep(0.05 + dice.random() * 0.4)
            await coordinator.kill()
            new = [answer for answers in await work for answer in answers]
            acknowledged.extend(new)
    store = SqliteStore.open(home.database)
    registry = store.load()
    store.close()
    assert len(acknowledged) > 6
    assert all(answer.node_id in registry.members for answer in acknowledged)
    addresses = [member.node.ip for member in registry.members.values()]
    assert len(set(addresses)) == len(addresses)


async def test_sigterm_ends_cleanly(tmp_path: Path) -> None:
    home, head, token = make_mesh(tmp_path)
    async with coordinator_process(home, tmp_path / "log") as coordinator:
        async with client_of(coordinator.port, token.fingerprint) as client:
            agent = await client.agent(head.credential)
            assert await agent.receive() == "map"
            await client.enrol(token)
            coordinator.process.terminate()
            assert await agent.until_closed() == 1001
        assert await asyncio.wait_for(coordinator.process.wait(), PATIENCE_S) == 0
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert token.secret not in log
    assert not list(home.state.glob("*-wal"))


async def run_and_fail(home: Home, *arguments: str) -> tuple[int | None, str]:
    environment = {**os.environ, "MESHRAY_HOME": str(home.state), "MESHRAY_RUN": str(home.run)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "meshray.coordinator", "--listen", "127.0.0.1", *arguments),
        env=environment,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    return process.returncode, errors.decode()


async def test_the_coordinator_reports_why_it_cannot_start(tmp_path: Path) -> None:
    nowhere = Home(tmp_path / "nowhere", tmp_path / "run")
    code, output = await run_and_fail(nowhere, "--port", "0")
    assert code == 1
    assert "there is no mesh here" in output
    assert not nowhere.database.exists()
    home, _, _ = make_mesh(tmp_path)
    async with coordinator_process(home, tmp_path / "log"):
        code, output = await run_and_fail(home, "--port", "0")
        assert (code, "in use by another coordinator" in output) == (1, True)
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    code, output = await run_and_fail(home, "--port", str(port))
    server.close()
    assert code == 1
    assert f"TCP port {port} is in use" in output
    content = b"this is not a database" * 100
    home.database.write_bytes(content)
    code, output = await run_and_fail(home, "--port", "0")
    assert code == 1
    assert "is damaged and was left as it is" in output
    assert home.database.read_bytes() == content
