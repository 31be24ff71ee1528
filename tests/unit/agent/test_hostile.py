"""Damaged files and hostile packets cause an error that keeps the file, an answer, or nothing."""

from __future__ import annotations

import asyncio
import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshray.agent.connection.coordinator_connection import CoordinatorConnection
from meshray.agent.paths.prober import Echo
from meshray.agent.status.startup_progress import Progress
from meshray.client.coordinator import Coordinator
from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.model.meshmap import MeshMap
from meshray.node.enrolment import Enrolment
from meshray.node.identity import Identity
from meshray.node.map_cache import load_map
from meshray.node.membership import Membership
from meshray.node.pins import Pins
from meshray.node.state_writer import StateWriter
from meshray.protocol.codec import encode, to_json
from meshray.protocol.connection import Hello, WholeMap, read_coordinator
from tests.unit.agent.sample import MAP, WORKER_A, enrolment
from tests.unit.hostile import mutated
from tests.unit.model.map_changes import diff

LATER = MeshMap(MAP.mesh, 6, {**MAP.nodes, WORKER_A.id: WORKER_A})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("home")
    home = Home(folder / "state", folder / "run")
    enrolment(WORKER_A).save(home)
    return home


# Each example waits for the disk several times.
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_pins_and_identity_are_read_or_damaged_and_kept(home: Home, data: st.DataObject) -> None:
    """A damaged file neither admits another identity nor makes this node sign again."""
    for path in (home.pins, home.identity, home.identity_key):
        path.unlink(missing_ok=True)
    identity = Identity.load_or_create(home, "m1")
    signed = identity.sign(WORKER_A.public_key, WORKER_A.ip)
    me = replace(WORKER_A, attestation=signed)
    mesh_map = replace(MAP, nodes={**MAP.nodes, me.id: me})
    assert Pins.load(home, "n0", StateWriter(home)).admit(mesh_map) is mesh_map
    path = data.draw(st.sampled_from([home.pins, home.identity]))
    content = data.draw(st.binary(max_size=50) | mutated(json.loads(path.read_text())).map(as_bytes))
    path.write_bytes(content)
    try:
        used = Pins.load(home, "n0", StateWriter(home)).admit(mesh_map)
        Identity.load_or_create(home, "m1").sign(WORKER_A.public_key)
    except MeshrayError as error:
        assert error.code == "state_damaged"
        assert path.read_bytes() == content
        return
    assert used.nodes.keys() <= mesh_map.nodes.keys()
    Pins.load(home, "n0", StateWriter(home)).admit(used)


@given(data=st.data())
def test_node_json_is_read_or_damaged_and_kept(home: Home, data: st.DataObject) -> None:
    enrolment(WORKER_A).save(home)
    valid = json.loads(home.enrolment.read_text())
    content = data.draw(st.binary(max_size=50) | mutated(valid).map(as_bytes))
    home.enrolment.write_bytes(content)
    try:
        mine = Enrolment.load(home)
    except MeshrayError as error:
        assert error.code == "state_damaged"
        assert home.enrolment.read_bytes() == content
        assert mentions_no_secret(error, valid, content)
        return
    # The agent's use of it at its start works.
    Coordinator(mine.coordinators, bytes.fromhex(mine.fingerprint), mine.credential)
    mine.save(home)
    assert Enrolment.load(home) == mine


@given(data=st.data())
def test_the_map_cache_is_read_or_damaged_and_kept(home: Home, data: st.DataObject) -> None:
    content = data.draw(st.binary(max_size=50) | mutated(to_json(MAP.form())).map(as_bytes))
    home.map_cache.write_bytes(content)
    try:
        load_map(home)
    except MeshrayError as error:
        assert error.code == "cache_damaged"
        assert home.map_cache.read_bytes() == content


def as_bytes(value: object) -> bytes:
    return json.dumps(value).encode()


def mentions_no_secret(error: MeshrayError, valid: Mapping[str, str], content: bytes) -> bool:
    """Return whether no secret is shown, unless the mutation wrote it into a place for public values."""
    secrets = [valid[name] for name in ("credential", "mesh_secret", "ray_token")]
    shown = f"{error.message} {error.hint}"
    return not any(secret in shown for secret in secrets if content.count(secret.encode()) < 2)


class Hostile:
    """A coordinator's connection that sends anything."""

    endpoint = "203.0.113.10:51888"

    def __init__(self, messages: list[Any]) -> None:
        self._messages = messages

    async def messages(self) -> Any:
        for message in self._messages:
            if (known := read_coordinator(json.dumps(message))) is not None:
                yield known

    async def send(self, message: object) -> None:
        pass

    async def close(self) -> None:
        pass


class Ended(Exception):
    """The keeper opens the connection again: it survived."""


class Opened:
    def __init__(self, messages: list[Any]) -> None:
        self.links: list[Any] = [Hostile(messages)]

    async def open_connection(self, accepts: str) -> Any:
        if not self.links:
            raise Ended
        return self.links.pop()


PACKED = base64.b64encode(zlib.compress(encode(WholeMap(MAP.form())).encode())).decode()
MESSAGE = st.one_of(
    mutated({"type": "map", "map": to_json(MAP.form())}),
    mutated({"type": "change", "change": to_json(diff(MAP, LATER).form())}),
    mutated({"type": "packed_map", "data": PACKED, "change": to_json(diff(MAP, LATER).form())}),
    mutated({"type": "punch", "node": "n1"}),
    mutated({"type": "left", "node": "n1"}),
    mutated({"type": "ticket", "ticket": "t"}),
    mutated({"type": "restored", "text": "from a copy"}),
    mutated({"type": "recall"}),
)


@given(st.lists(MESSAGE, max_size=3))
def test_a_hostile_coordinator_ends_no_agent(home: Home, messages: list[Any]) -> None:
    held = [MAP]

    opened = Opened(messages)
    keeper = CoordinatorConnection(
        lambda: cast(Coordinator, opened),
        lambda: held[-1],
        on_map=held.append,
        on_message=lambda message: None,
        hello=Hello,
        progress=Progress(),
        membership=Membership(home, enrolment(WORKER_A), StateWriter(home)),
    )

    async def run() -> None:
        # No time passes between two connections.
        keeper._retry_now.set()
        with pytest.raises(Ended):
            await keeper.run()

    asyncio.run(run())
    assert all(mesh_map.mesh == MAP.mesh and WORKER_A.id in mesh_map.nodes for mesh_map in held)
    assert not opened.links


class Wire(asyncio.DatagramTransport):
    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []

    def sendto(self, data: Any, addr: Any = None) -> None:
        self.sent.append(bytes(data))


@given(
    st.binary(max_size=40)
    | st.tuples(st.sampled_from([b"mr\x01", b"mr\x02", b"mr"]), st.binary(max_size=2000)).map(b"".join)
)
def test_any_datagram_is_a_probe_or_nothing(data: bytes) -> None:
    echo, sent = Echo(), Wire()
    echo._transport = sent
    echo.datagram_received(data, ("10.99.0.2", 1))
    # Nothing is amplified.
    assert sum(map(len, sent.sent)) <= len(data)
