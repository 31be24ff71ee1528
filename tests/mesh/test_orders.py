"""Orders from the head to other nodes, over the real coordinator, and the audit log of them."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from meshray.agent import remote_orders
from meshray.agent.agent import Agent, RestartRequested
from meshray.agent.control.operations import Operations
from meshray.client.order import give_order
from meshray.coordinator import order_broker
from meshray.coordinator.audit_log import read_log
from meshray.errors import MeshrayError, RefusedError, UnreachableError
from meshray.model.node import WORKER
from meshray.protocol.audit import AuditRecord
from meshray.protocol.connection import Message, Order, OrderOutput
from meshray.protocol.control import GetStatus, GiveOrder, OrderPart, RotateKey
from meshray.protocol.orders import BUNDLE, LOGS, RESTART, OrderForm
from tests.mesh.mesh import Member, Mesh, running_mesh, until

#: Other tests share the cores.
DEADLINE_S = 120.0


async def give(agent: Agent, node: str, order: str, **arguments: object) -> bytes:
    """Give an order on this agent's control socket; return its output."""
    parts: list[bytes] = []

    async def take(part: msgspec.Struct) -> None:
        assert isinstance(part, OrderPart)
        parts.append(base64.b64decode(part.data))

    operation = Operations(agent, dict).for_owner()[GiveOrder]
    await asyncio.wait_for(operation(GiveOrder(node, order, arguments), take), DEADLINE_S)
    return b"".join(parts)


def audited(mesh: Mesh) -> list[AuditRecord]:
    """Return the records about orders, after a check of the whole log."""
    found = read_log(mesh.server_home.audit_log)
    assert found.broken == ""
    return [record for record in found.records if record.event.startswith("order")]


def write_log(member: Member, text: str, part: str = "agent") -> Path:
    member.home.logs.mkdir(exist_ok=True)
    path = member.home.logs / f"{part}.log"
    path.write_text(text)
    return path


async def with_worker(mesh: Mesh, **changes: object) -> Member:
    """Return a worker whose enrolment has these changes, once all see all."""
    worker = await mesh.join("gpu-1")
    if changes:
        await worker.kill()
        worker = mesh.members["gpu-1"]
        enrolment = replace(worker.agent.state.enrolment, **changes)  # type: ignore[arg-type]
        enrolment.save(worker.home)
        worker = mesh.reborn("gpu-1")
        worker.start()
    await until(mesh.whole, "all see all")
    return worker


async def test_the_head_shows_the_last_lines_of_another_nodes_log(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        worker = await with_worker(mesh)
        write_log(worker, "".join(f"line {n}\n" for n in range(500)))
        write_log(worker, "Ray started\n", "ray")
        head = mesh.head.agent
        assert await give(head, "gpu-1", LOGS, lines=2) == b"line 498\nline 499\n"
        assert (await give(head, "gpu-1", LOGS)).splitlines()[0] == b"line 400"
        assert await give(head, "gpu-1", LOGS, part="ray") == b"Ray started\n"
        write_log(mesh.head, "the head's own\n")
        assert await give(head, "head", LOGS) == b"the head's own\n"
        with pytest.raises(MeshrayError) as missing:
            await give(head, "gpu-1", LOGS, part="engine")
        assert (missing.value.code, "engine has written no log" in missing.value.message) == ("no_log", True)


async def test_an_order_is_in_the_audit_log_before_and_after(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        write_log(await with_worker(mesh), "started\n")
        await give(mesh.head.agent, "gpu-1", LOGS, lines=1)
        with pytest.raises(MeshrayError):
            await give(mesh.head.agent, "gpu-1", "format_disk")
        with pytest.raises(MeshrayError):
            await give(mesh.head.agent, "gpu-1", LOGS, part="../../etc/shadow")
        await until(lambda: len(audited(mesh)) == 6, "all are recorded")
        records = audited(mesh)
        assert [(record.event, record.details.get("code")) for record in records] == [
            ("order", None),
            ("order_ended", "done"),
            ("order", None),
            ("order_ended", "order_unknown"),
            ("order", None),
            ("order_ended", "bad_message"),
        ]
        assert {(record.by, record.source, record.node) for record in records} == {
            ("root on head", "127.0.0.1", "gpu-1")
        }
        assert records[0].details == {"order": LOGS, "arguments": '{"lines": 1}'}
        everything = read_log(mesh.server_home.audit_log).records
        enrolled = next(record for record in everything if record.event == "node_enrolled")
        assert (enrolled.node, enrolled.details["token"]) == ("gpu-1", mesh.token.token_id)


async def test_a_node_with_no_remote_refuses_and_that_is_audited(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        worker = await with_worker(mesh, no_remote=True)
        write_log(worker, "private\n")
        head = mesh.head.agent
        for order, arguments in ((LOGS, {}), (RESTART, {"ray": True}), (BUNDLE, {})):
            with pytest.raises(RefusedError) as refused:
                await give(head, "gpu-1", order, **arguments)
            assert (refused.value.code, refused.value.exit_code) == ("remote_refused", 4)
            assert "gpu-1 accepts no remote orders: it joined with --no-remote" in refused.value.message
        await until(lambda: len(audited(mesh)) == 6, "all are recorded")
        assert [record.event for record in audited(mesh)] == ["order", "order_refused"] * 3
        status = await Operations(worker.agent, dict).for_all_users()[GetStatus](GetStatus(), ignore)
        assert getattr(status, "no_remote", None) is True
        with pytest.raises(MeshrayError, match="accepts no remote orders"):
            await Operations(head, dict).for_owner()[RotateKey](RotateKey("gpu-1"), ignore)
        # A drain is not an order but a state of the map.
        service = mesh.server.service
        member = service.member_named("gpu-1")
        with_ray = replace(member, node=replace(member.node, roles=frozenset({WORKER})))
        await service._ledger.change(lambda registry: registry.put(with_ray))
        await head.state.coordinator.call("PATCH", "/v1/nodes/gpu-1", {"drained": True})
        await until(lambda: worker.agent.state.me.drained, "the node is drained")


async def test_the_node_itself_refuses_even_if_the_coordinator_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_broker.OrderBroker, "_require_accepting", lambda self, node: None)
    async with running_mesh(tmp_path) as mesh:
        write_log(await with_worker(mesh, no_remote=True), "private\n")
        with pytest.raises(RefusedError) as refused:
            await give(mesh.head.agent, "gpu-1", LOGS)
        assert refused.value.code == "remote_refused"
        await until(lambda: len(audited(mesh)) == 2, "it is recorded")
        assert audited(mesh)[-1].event == "order_refused"


async def test_an_order_of_a_member_is_refused_and_audited(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        worker = await with_worker(mesh)
        write_log(mesh.head, "secrets of the head\n")
        with pytest.raises(RefusedError) as refused:
            await give(worker.agent, "head", LOGS)
        assert refused.value.code == "not_admin"
        (record,) = audited(mesh)
        assert (record.event, record.by, record.node) == ("order_refused", "root on gpu-1", "head")
        assert record.details["code"] == "not_admin"
        for _ in range(40):
            with pytest.raises(RefusedError):
                await give(worker.agent, "head", RESTART)
        assert len(audited(mesh)) == 20  # A member cannot fill the disk.


async def test_an_agent_of_an_earlier_version_gets_no_order_and_the_message_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_mesh(tmp_path) as mesh:
        worker = await with_worker(mesh)
        received: list[Order] = []

        async def ignored(order: Order) -> None:
            received.append(order)

        monkeypatch.setattr(worker.agent.orders, "carry_out", ignored)
        service = mesh.server.service
        old = msgspec.structs.replace(worker.agent._hello(), takes_orders=msgspec.UNSET)
        monkeypatch.setattr(worker.agent.connection, "_hello", lambda: old)
        await worker.agent.connection.send_hello()
        node_id = worker.agent.state.enrolment.node_id
        await until(lambda: service.orders._accepting.get(node_id, True) is None, "the old report has arrived")
        with pytest.raises(MeshrayError) as refused:
            await give(mesh.head.agent, "gpu-1", LOGS)
        assert refused.value.code == "orders_unknown"
        assert "the meshray of gpu-1 is too old: it knows no remote orders" in refused.value.message
        assert received == []


async def test_ten_megabytes_of_logs_do_not_delay_a_status(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        worker = await with_worker(mesh)
        text = "2026-01-01 12:00:00,000 INFO " + "x" * 70 + "\n"
        size = len(write_log(worker, text * (10 * 1024 * 1024 // len(text) + 1)).read_bytes())
        operations = Operations(mesh.head.agent, dict).for_all_users(), Operations(worker.agent, dict).for_all_users()

        async def ask_all() -> float:
            began = time.monotonic()
            await asyncio.gather(*(each[GetStatus](GetStatus(), ignore) for each in operations))
            return time.monotonic() - began

        quiet = max([await ask_all() for _ in range(5)])
        reading = asyncio.get_running_loop().create_task(give(mesh.head.agent, "gpu-1", LOGS, lines=10_000_000))
        longest = 0.0
        while not reading.done():
            longest = max(longest, await ask_all())
            await asyncio.sleep(0.05)
        assert len(await reading) == size
        print(f"the slowest status: {quiet:.2f} s, and beside {size} bytes of logs {longest:.2f} s")
        # All nodes of this mesh share one process, and other tests share its core.
        assert longest < 1 + 4 * quiet
        assert worker.agent.connection.is_open


async def test_a_reader_that_stops_stops_the_node(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        worker = await with_worker(mesh)
        produced = 0

        async def endless(arguments: Mapping[str, object]) -> AsyncGenerator[bytes, None]:
            nonlocal produced
            while True:
                produced += 1
                yield b"x" * 16 * 1024
                await asyncio.sleep(0)

        worker.agent.orders._operations = {LOGS: endless}
        output = give_order(mesh.head.agent.state.coordinator, OrderForm("gpu-1", LOGS))
        await anext(output)
        before, deadline = -1, time.monotonic() + DEADLINE_S
        while produced != before:
            assert time.monotonic() < deadline, "the node never stops"
            before = produced
            await asyncio.sleep(1)
        # The kernel's buffers and those of the coordinator hold some megabytes at most.
        assert produced < 1000
        await output.aclose()
        await until(lambda: not worker.agent.orders._running, "the order is cancelled")
        await until(lambda: len(audited(mesh)) == 2, "its end is recorded")
        assert audited(mesh)[-1].details["code"] == "cancelled"


async def test_a_followed_log_shows_new_lines_until_it_is_cancelled(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        worker = await with_worker(mesh)
        path = write_log(worker, "first\n")
        output = give_order(mesh.head.agent.state.coordinator, OrderForm("gpu-1", LOGS, {"follow": True}))
        assert await anext(output) == b"first\n"
        with path.open("a") as file:
            file.write("second\n")
        found = b""
        while not found:
            found = await asyncio.wait_for(anext(output), DEADLINE_S)
        assert found == b"second\n"
        await output.aclose()
        await until(lambda: not worker.agent.orders._running, "the order is cancelled")


async def test_a_node_that_vanishes_in_the_middle_of_an_order_is_named(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        worker = await with_worker(mesh)
        write_log(worker, "first\n")
        output = give_order(mesh.head.agent.state.coordinator, OrderForm("gpu-1", LOGS, {"follow": True}))
        assert await anext(output) == b"first\n"
        await worker.kill()
        with pytest.raises(UnreachableError) as ended:
            while True:
                await asyncio.wait_for(anext(output), DEADLINE_S)
        assert ended.value.code == "node_offline"
        assert "gpu-1" in ended.value.message
        with pytest.raises(UnreachableError) as away:
            await give(mesh.head.agent, "gpu-1", LOGS)
        assert (away.value.code, "not connected" in away.value.message) == ("node_offline", True)
        with pytest.raises(MeshrayError, match="no node"):
            await give(mesh.head.agent, "nobody", LOGS)


async def test_a_restarted_agent_leaves_its_device_in_place(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        worker = await with_worker(mesh)
        assert await give(mesh.head.agent, "gpu-1", RESTART) == b"the agent restarts now"
        with pytest.raises(RestartRequested):
            await worker.ended()
        assert worker.device.state is not None
        again = mesh.reborn("gpu-1")
        again.start()
        await until(mesh.whole, "all see all again")


async def test_a_node_without_ray_cannot_restart_it(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        await with_worker(mesh)
        with pytest.raises(MeshrayError) as failed:
            await give(mesh.head.agent, "gpu-1", RESTART, ray=True)
        assert failed.value.code == "no_ray"


async def test_the_archive_of_another_node_arrives_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_mesh(tmp_path) as mesh:
        worker = await with_worker(mesh)
        worker.home.run.mkdir(exist_ok=True)
        content = bytes(range(256)) * 1000

        async def create(home: object, path: Path) -> None:
            assert home == worker.home
            await asyncio.to_thread(path.write_bytes, content)

        monkeypatch.setattr(remote_orders, "create_bundle", create)
        assert await give(mesh.head.agent, "gpu-1", BUNDLE) == content
        assert list(worker.home.run.glob("bundle-*")) == []

        async def fail(home: object, path: Path) -> None:
            raise MeshrayError("bundle_failed", "meshray doctor failed on that node: the disk is full")

        monkeypatch.setattr(remote_orders, "create_bundle", fail)
        with pytest.raises(MeshrayError, match="the disk is full"):
            await give(mesh.head.agent, "gpu-1", BUNDLE)


async def test_output_beyond_the_credit_ends_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_mesh(tmp_path) as mesh:
        worker = await with_worker(mesh)

        async def flood(order: Order) -> None:
            for _ in range(order.credit + 200):
                await worker.agent.connection.send(OrderOutput(order.id, "AAAA"))

        monkeypatch.setattr(worker.agent.orders, "carry_out", flood)
        with pytest.raises(MeshrayError) as ended:
            await give(mesh.head.agent, "gpu-1", LOGS)
        assert ended.value.code == "bad_answer"
        assert worker.agent.connection.is_open


async def test_an_order_that_cannot_be_audited_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_mesh(tmp_path) as mesh:
        worker = await with_worker(mesh)
        write_log(worker, "x\n")
        received: list[Message] = []

        async def carry_out(order: Order) -> None:
            received.append(order)

        def fail(*args: object, **details: object) -> None:
            raise MeshrayError("audit_failed", "the audit log cannot be written: the disk is full")

        monkeypatch.setattr(worker.agent.orders, "carry_out", carry_out)
        monkeypatch.setattr(mesh.server.service.audit, "record", fail)
        with pytest.raises(MeshrayError) as refused:
            await give(mesh.head.agent, "gpu-1", LOGS)
        assert refused.value.code == "audit_failed"
        assert received == []


async def ignore(event: msgspec.Struct) -> None:
    """No event is expected."""
