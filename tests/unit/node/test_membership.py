"""A disk that cannot be written: the node continues with its state in memory, and reports it."""

from __future__ import annotations

import asyncio
import errno
import threading
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from meshray.home import Home
from meshray.linux.tasks import Tasks
from meshray.model.address import Endpoint, NodeName, OverlayNetwork
from meshray.model.keys import MeshSecret, PrivateKey
from meshray.model.meshmap import MeshInfo, MeshMap
from meshray.model.node import COORDINATOR, HUB, Node
from meshray.node import enrolment as enrolment_module
from meshray.node import membership as membership_module
from meshray.node import state_writer
from meshray.node.enrolment import MOST_COORDINATORS, Enrolment
from meshray.node.map_cache import load_map
from meshray.node.membership import Membership
from meshray.node.state_writer import StateWriter
from meshray.protocol.connection import Restored, Ticket

MESH = MeshInfo("ab", "lab", OverlayNetwork.parse("10.99.0.0/16"))
NODE = Node("n1", NodeName("one"), IPv4Address("10.99.0.2"), PrivateKey.generate().public(), frozenset())
MAP = MeshMap(MESH, 3, {"n1": NODE}, "mark")


def membership(folder: Path, files: StateWriter | None = None) -> Membership:
    enrolment = Enrolment(
        mesh_id="ab",
        node_id="n1",
        name="one",
        credential="c",
        coordinators=(Endpoint("127.0.0.1", 1),),
        fingerprint="00" * 32,
        mesh_secret=MeshSecret.generate(),
        ray_token="t",
        mesh_port=51888,
        listen_port=0,
        user_uid=0,
    )
    home = Home(folder, folder / "run")
    return Membership(home, enrolment, files or StateWriter(home))


def no_room(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_map_that_cannot_be_kept_is_a_complaint_until_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = StateWriter(Home(tmp_path, tmp_path))
    mine = membership(tmp_path, files)
    with monkeypatch.context() as patched:
        patched.setattr(membership_module, "save_map", no_room)
        mine.keep_map(MAP, MAP)
        (complaint,) = files.problems()
        files.retry()
        assert files.problems() == (complaint,)
    assert "No space left on device" in complaint.text and str(tmp_path) in complaint.text
    files.retry()
    assert files.problems() == ()
    assert load_map(Home(tmp_path, tmp_path)) == MAP


async def test_a_write_that_was_refused_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_writer, "RETRY_S", 0.01)
    files, tasks, tries, written = (
        StateWriter(Home(tmp_path, tmp_path)),
        Tasks(),
        iter((no_room, print)),
        asyncio.Event(),
    )

    def write() -> None:
        next(tries)()
        written.set()

    files.write("the map", write)
    assert len(files.problems()) == 1
    tasks.start(files.run(), "state files")
    await asyncio.wait_for(written.wait(), 5)
    await tasks.close()
    assert files.problems() == ()


def large_map(revision: int) -> MeshMap:
    nodes = {f"n{n}": replace(NODE, id=f"n{n}", online=bool(revision % 2) and n == 2) for n in range(1, 100)}
    return MeshMap(MESH, revision, nodes)


async def test_a_large_map_is_written_once_for_many_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_writer, "RETRY_S", 0.01)
    files, tasks, saved = StateWriter(Home(tmp_path, tmp_path)), Tasks(), list[tuple[int, int]]()
    mine, is_saved = membership(tmp_path, files), threading.Event()

    def save(_home: Home, mesh_map: MeshMap) -> None:
        saved.append((mesh_map.revision, threading.get_ident()))
        is_saved.set()

    monkeypatch.setattr(membership_module, "save_map", save)
    for revision in range(1, 1000):
        mine.keep_map(large_map(revision - 1), large_map(revision))
    assert saved == [], "the event loop wrote"
    tasks.start(files.run(), "state files")
    assert await asyncio.to_thread(is_saved.wait, 10)
    await tasks.close()
    await files.flush()
    ((revision, thread),) = saved
    assert revision == 999 and thread != threading.get_ident()
    # What a start needs at once, and what waits when the agent ends.
    renamed = replace(large_map(1001), nodes={**large_map(1001).nodes, "n1": replace(NODE, name=NodeName("two"))})
    mine.keep_map(large_map(1000), renamed)
    assert saved[-1][0] == 1001
    mine.keep_map(large_map(1001), large_map(1002))
    mine.keep_map(large_map(1002), large_map(1003))
    assert saved[-1][0] == 1001
    await files.flush()
    assert [each[0] for each in saved] == [999, 1001, 1003]


async def test_an_older_write_in_progress_is_never_the_last_one(tmp_path: Path) -> None:
    files, tasks, began, may_end = StateWriter(Home(tmp_path, tmp_path)), Tasks(), threading.Event(), threading.Event()
    written = list[str]()

    def slow() -> None:
        began.set()
        assert may_end.wait(10)
        written.append("old")

    files.write_later("the map", slow)
    tasks.start(files.run(), "state files")
    assert await asyncio.to_thread(began.wait, 10)
    files.write("the map", lambda: written.append("new"))
    await tasks.close()
    may_end.set()
    await files.flush()
    assert written == ["old", "new"]


async def test_a_waiting_write_that_is_refused_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_writer, "RETRY_S", 0.01)
    files, tasks, tries, written = StateWriter(Home(tmp_path, tmp_path)), Tasks(), iter((no_room, print)), list[int]()
    is_written = threading.Event()

    def write() -> None:
        next(tries)()
        written.append(len(files.problems()))
        is_written.set()

    files.write_later("the map", write)
    tasks.start(files.run(), "state files")
    assert await asyncio.to_thread(is_written.wait, 10)
    await tasks.close()
    assert written == [1] and files.problems() == ()


def test_a_ticket_is_kept_in_memory_where_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = StateWriter(Home(tmp_path, tmp_path))
    mine = membership(tmp_path, files)
    with monkeypatch.context() as patched:
        patched.setattr(enrolment_module, "write_atomically", no_room)
        mine.handle(Ticket("abc"))
        assert mine.enrolment.ticket == "abc" and len(files.problems()) == 1
    mine.handle(Ticket("def"))
    assert Enrolment.load(Home(tmp_path, tmp_path)).ticket == "def" and files.problems() == ()


def test_an_outdated_ticket_is_requested_again(tmp_path: Path) -> None:
    mine = membership(tmp_path)
    renamed = replace(MAP, nodes={"n1": replace(NODE, name=NodeName("two"))})
    assert mine.needs_new_ticket(MAP, renamed)
    assert not mine.needs_new_ticket(MAP, replace(MAP, nodes={"n1": replace(NODE, online=True)}))
    assert not mine.needs_new_ticket(MAP, replace(MAP, nodes={}))


def test_a_restore_notice_is_shown_until_the_coordinator_withdraws_it(tmp_path: Path) -> None:
    mine = membership(tmp_path)
    mine.handle(Restored("an older copy"))
    assert [complaint.text for complaint in mine.complaints()] == ["an older copy"]
    mine.set_behind(None)
    assert mine.complaints() == ()


HEAD = replace(NODE, id="h", name=NodeName("head"), ip=IPv4Address("10.99.0.1"), roles=frozenset({COORDINATOR, HUB}))
OLD, NEW, LAN = (Endpoint(host, 51888) for host in ("203.0.113.50", "203.0.113.60", "10.0.0.5"))


def with_head(*endpoints: Endpoint) -> MeshMap:
    return MeshMap(MESH, 4, {"n1": NODE, "h": replace(HEAD, endpoints=endpoints)}, "mark")


def test_the_current_address_of_the_coordinator_is_kept(tmp_path: Path) -> None:
    mine = membership(tmp_path)
    mine.prefer_coordinator(OLD)
    mine.store_coordinators(with_head(NEW, LAN))
    first = mine.enrolment.coordinators[-1]
    assert mine.enrolment.coordinators == (OLD, NEW, LAN, Endpoint("127.0.0.1", 1))
    mine.prefer_coordinator(NEW)
    kept = Enrolment.load(Home(tmp_path, tmp_path / "run")).coordinators
    assert kept == mine.enrolment.coordinators == (NEW, OLD, LAN, first)


def test_addresses_of_the_coordinator_do_not_pile_up(tmp_path: Path) -> None:
    mine = membership(tmp_path)
    mine.prefer_coordinator(OLD)
    for number in range(5):
        mine.store_coordinators(with_head(*(Endpoint(f"10.{number}.0.{host}", 51888) for host in range(16))))
    assert len(mine.enrolment.coordinators) == MOST_COORDINATORS
    assert mine.enrolment.coordinators[0] == OLD
    assert mine.enrolment.coordinators[1].host == "10.4.0.0"


def test_the_coordinators_own_node_goes_on_with_the_loopback(tmp_path: Path) -> None:
    mine = membership(tmp_path)
    mine.enrolment = replace(mine.enrolment, hosts_coordinator=True)
    mine.store_coordinators(with_head(NEW))
    mine.prefer_coordinator(NEW)
    assert mine.enrolment.coordinators == (Endpoint("127.0.0.1", 1),)
