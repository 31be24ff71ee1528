"""Ledger and publisher: the order of events, without network and without waiting."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest

from meshray.coordinator import publisher
from meshray.coordinator.journal import Journal
from meshray.coordinator.map_messages import MapMessages
from meshray.coordinator.publisher import MAX_NOTICES, Outbox, Publisher
from meshray.coordinator.records import Member, PutMember, RowChanges
from meshray.coordinator.registry import Outcome, Registry
from meshray.coordinator.registry_writer import Ledger
from meshray.errors import MeshrayError, RefusedError
from meshray.model.address import NodeName
from meshray.model.meshmap import MapChange, MeshMap
from meshray.model.node import Versions
from meshray.protocol.codec import convert
from meshray.protocol.connection import CLOSE_ENDING, CLOSE_REPLACED, Ask, Punch, Ticket
from meshray.protocol.forms import ChangeForm, MapForm

from .people import accept_all, enrol, new_mesh, request, token


class Disk:
    """Record the writes; it can be made to fail, and to wait."""

    def __init__(self) -> None:
        self.writes: list[RowChanges] = []
        self.fails = False
        self.goes_on = threading.Event()
        self.goes_on.set()

    def write(self, rows: RowChanges) -> None:
        self.goes_on.wait(10)
        if self.fails:
            raise MeshrayError("store_failed", "disk full")
        self.writes.append(rows)


def joining(number: int) -> object:
    def step(registry: Registry) -> Outcome[NodeName]:
        registry, rows, member = registry.enrol(
            request(number), node_id=f"id-{number}", credential_hash=f"c{number}", compare=accept_all, now=0.0
        )
        return registry, rows, member.node.name

    return step


async def enrol_in(ledger: Ledger, number: int) -> object:
    return await ledger.change(joining(number))  # type: ignore[arg-type]


async def test_changes_that_wait_are_written_together() -> None:
    disk, changed = Disk(), []
    ledger = Ledger(new_mesh(), disk.write, lambda: changed.append(1))
    disk.goes_on.clear()
    joins = asyncio.gather(*(enrol_in(ledger, number) for number in range(1, 31)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(ledger.registry.members) == 1, "nobody is in the registry before he is on disk"
    disk.goes_on.set()
    assert len(set(await joins)) == 30
    assert len(disk.writes) <= 2
    assert len(changed) == len(disk.writes)
    await ledger.close()


async def test_one_refusal_does_not_touch_the_others() -> None:
    disk = Disk()
    ledger = Ledger(new_mesh(token(uses=2)), disk.write, lambda: None)
    results = await asyncio.gather(*(enrol_in(ledger, n) for n in (1, 2, 3)), return_exceptions=True)
    assert [isinstance(result, RefusedError) for result in results] == [False, False, True]
    assert len(ledger.registry.members) == 3
    await ledger.close()


async def test_an_unwritten_change_has_no_effect() -> None:
    disk = Disk()
    ledger = Ledger(new_mesh(), disk.write, lambda: None)
    disk.fails = True
    with pytest.raises(MeshrayError, match="disk full"):
        await enrol_in(ledger, 1)
    assert len(ledger.registry.members) == 1
    disk.fails = False
    await enrol_in(ledger, 2)
    assert str(ledger.registry.members["id-2"].node.ip) == "10.99.0.2"
    await ledger.close()


async def test_presence_is_tracked_with_a_full_disk_and_written_later() -> None:
    disk, changed = Disk(), []
    ledger = Ledger(new_mesh(), disk.write, lambda: changed.append(1))
    await enrol_in(ledger, 1)
    disk.fails = True
    newer = Versions("9.9.9")
    output = ledger.change(lambda registry: registry.reported("id-1", newer, ()), durable=False)
    came = ledger.change(lambda registry: registry.connected("id-1"), durable=False)
    results = await asyncio.gather(enrol_in(ledger, 2), output, came, return_exceptions=True)
    assert isinstance(results[0], MeshrayError) and results[1] is None and isinstance(results[2], Member)
    node = ledger.registry.members["id-1"].node
    assert node.online and node.versions == newer
    assert len(ledger.registry.members) == 2
    serial = ledger.registry.lineage.serial
    disk.fails = False
    await ledger.change(lambda registry: registry.collect(0.0))
    written = [row.member for row in disk.writes[-1] if isinstance(row, PutMember)]
    assert [member.node.versions for member in written] == [newer]
    assert ledger.registry.lineage.serial == serial + 1
    writes = len(disk.writes)
    await ledger.change(lambda registry: registry.collect(0.0))
    assert len(disk.writes) == writes, "nothing is owed any more"
    await ledger.close()


async def test_a_caller_that_gives_up_does_not_tear_registry_and_disk_apart() -> None:
    disk = Disk()
    ledger = Ledger(new_mesh(), disk.write, lambda: None)
    disk.goes_on.clear()
    join = asyncio.gather(enrol_in(ledger, 1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    join.cancel()
    disk.goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await join
    await ledger.close()
    assert ("id-1" in ledger.registry.members) == bool(disk.writes)


class World:
    def __init__(self) -> None:
        self.registry = new_mesh()
        self.publisher = Publisher(self.registry.map, lambda: self.registry.map, gather_s=0)

    def join(self, number: int) -> None:
        self.registry = enrol(self.registry, request(number))
        self.publisher.changed()


def kind(message: bytes | None) -> object:
    return json.loads(message)["type"] if message else None


async def test_never_a_change_before_the_map() -> None:
    world = World()
    early = world.publisher.join("head-id")
    world.join(1)
    assert kind(await early.next()) == "map"
    late = world.publisher.join("id-1")
    world.join(2)
    assert kind(await late.next()) == "map"
    change = await early.next()
    assert kind(change) == "change"
    assert change is not None
    assert list(json.loads(change)["change"]["nodes"]) == ["id-2"]


async def test_changes_at_once_travel_together_and_as_one_text() -> None:
    world = World()
    outboxes = [world.publisher.join(name) for name in ("a", "b", "c")]
    whole = [await outbox.next() for outbox in outboxes]
    assert whole[0] is whole[1] is whole[2]
    for number in range(1, 6):
        world.join(number)
    texts = [await outbox.next() for outbox in outboxes]
    assert texts[0] is texts[1] is texts[2]
    assert len(json.loads(texts[0] or b"")["change"]["nodes"]) == 5


async def test_the_newest_connection_wins() -> None:
    world = World()
    first = world.publisher.join("head-id")
    second = world.publisher.join("head-id")
    assert await first.next() is None
    assert first.close_code == CLOSE_REPLACED
    assert not world.publisher.leave("head-id", first)
    assert kind(await second.next()) == "map"
    assert world.publisher.leave("head-id", second)


async def test_an_agent_that_connects_twice_at_once_was_not_taken_over() -> None:
    """It tries several addresses of the coordinator, and two may answer in the same moment."""
    world = World()
    first = world.publisher.join("head-id", "one")
    world.publisher.join("head-id", "one")
    assert first.close_code == CLOSE_ENDING
    second = world.publisher.join("head-id", "other")
    world.publisher.join("head-id", "one")
    assert second.close_code == CLOSE_REPLACED


async def test_a_slow_reader_gets_one_change_for_many() -> None:
    world = World()
    fast, slow = world.publisher.join("head-id"), world.publisher.join("slow")
    held = MeshMap.of(convert(json.loads(await slow.next() or b"")["map"], MapForm))
    assert kind(await fast.next()) == "map"
    for number in range(1, 101):
        world.join(number)
        assert kind(await fast.next()) == "change"
    change = MapChange.of(convert(json.loads(await slow.next() or b"")["change"], ChangeForm))
    assert held.apply(change).nodes == world.registry.map.nodes
    assert not slow.close_code


async def test_a_slow_reader_gets_only_the_newest_map() -> None:
    world = World()
    slow = world.publisher.join("slow")
    for number in range(1, 11):
        world.join(number)
        await asyncio.sleep(0.001)
    whole = MeshMap.of(convert(json.loads(await slow.next() or b"")["map"], MapForm))
    assert whole.nodes == world.registry.map.nodes
    world.publisher.notify("slow", Ticket("t"))
    assert kind(await slow.next()) == "ticket"


async def test_of_notices_the_newest_wait_and_of_equal_ones_one() -> None:
    world = World()
    slow = world.publisher.join("slow")
    assert kind(await slow.next()) == "map"
    world.publisher.notify("slow", Ask("q", "survey"))
    for number in range(1000):
        world.publisher.notify("slow", Punch(f"n{number % 500}"), is_notice=True)
    assert kind(await slow.next()) == "ask"
    nodes = [json.loads(await slow.next() or b"")["node"] for _ in range(MAX_NOTICES)]
    assert nodes == [f"n{number}" for number in range(500 - MAX_NOTICES, 500)]
    world.join(1)
    assert kind(await slow.next()) == "change", "nothing else waited"


async def test_changes_are_batched_only_under_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "BYTES_PER_S", 10_000)
    world = World()
    outbox = world.publisher.join("head-id")
    assert kind(await outbox.next()) == "map"
    loop = asyncio.get_running_loop()
    await asyncio.sleep(0.2)
    began = loop.time()
    world.join(1)
    assert kind(await outbox.next()) == "change"
    first_s = loop.time() - began
    for number in range(2, 6):
        world.join(number)
        await asyncio.sleep(0)
    change = json.loads(await outbox.next() or b"")["change"]
    assert len(change["nodes"]) == 4
    assert first_s < 0.04 <= loop.time() - began < publisher.MAX_GATHER_S + 1


async def test_a_closed_outbox_gives_nothing() -> None:
    outbox = Outbox(MapMessages(Journal(new_mesh().map)))
    outbox.put("key", b"message")
    outbox.close(CLOSE_REPLACED, "")
    outbox.put("key", b"message")
    assert await outbox.next() is None
