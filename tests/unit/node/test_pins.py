"""A node's pins of the others: on a full disk, over time, and with a forged node in place of the pinned one."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from meshray.home import Home
from meshray.model.address import NodeName
from meshray.model.attestation import Attestation
from meshray.model.keys import PrivateKey, PublicKey, SigningKey
from meshray.model.meshmap import MeshMap
from meshray.model.node import HUB, WORKER, Node
from meshray.node import pins as module
from meshray.node.pins import Pins
from meshray.node.state_writer import StateWriter
from tests.unit.agent.sample import HEAD_NODE, MAP, WORKER_A, WORKER_B

IDENTITIES = {node.id: SigningKey.generate() for node in (HEAD_NODE, WORKER_A, WORKER_B)}
EVIL = PrivateKey.generate().public()


def signed(node: Node, counter: int = 1, by: SigningKey | None = None) -> Node:
    identity = by or IDENTITIES[node.id]
    shown = Attestation.sign(identity, MAP.mesh.id, node.public_key, counter=counter, ip=node.ip)
    return replace(node, attestation=shown)


def map_of(*nodes: Node) -> MeshMap:
    return replace(MAP, nodes={node.id: node for node in nodes})


SIGNED = map_of(*(signed(node) for node in (HEAD_NODE, WORKER_A, WORKER_B)))


class Wall:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "state", tmp_path / "run")


def keys_of(mesh_map: MeshMap) -> dict[str, PublicKey]:
    return {node.id: node.public_key for node in mesh_map.nodes.values()}


def test_a_map_without_invalid_nodes_is_used_unchanged(home: Home) -> None:
    pins = Pins.load(home, "n1", StateWriter(home))
    assert pins.admit(MAP) is MAP
    assert pins.admit(SIGNED) is SIGNED
    assert pins.problems() == ()
    assert Pins.load(home, "n1", StateWriter(home)).admit(SIGNED) is SIGNED


def test_the_pinned_key_does_not_belong_to_another_node(home: Home) -> None:
    """The attacker swaps a node's key and gives the old one, or its address, to a node of their own."""
    pins = Pins.load(home, "n1", StateWriter(home))
    pins.admit(SIGNED)
    swapped = replace(SIGNED.nodes["n2"], public_key=EVIL, ip=IPv4Address("10.99.0.50"))
    for taken in ({"public_key": WORKER_B.public_key}, {"ip": WORKER_B.ip}):
        base = Node("evil", NodeName("evil"), IPv4Address("10.99.0.66"), PublicKey(bytes(32)), frozenset({WORKER}))
        forged = signed(replace(base, **taken), by=SigningKey.generate())
        used = pins.admit(map_of(SIGNED.nodes["n0"], SIGNED.nodes["n1"], swapped, forged))
        assert keys_of(used) == keys_of(SIGNED)
        assert used.nodes["n2"].ip == WORKER_B.ip


def test_a_full_disk_ends_nothing_and_is_reported(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    files = StateWriter(home)
    pins = Pins.load(home, "n1", files)
    with monkeypatch.context() as patched:
        patched.setattr(module, "write_atomically", full)
        assert pins.admit(SIGNED) is SIGNED
        assert [problem.code for problem in files.problems()] == ["disk_space"]
        assert pins.admit(replace(SIGNED, revision=SIGNED.revision + 1)).nodes == SIGNED.nodes
        assert files.problems(), "nothing new is no writing"
    swapped = map_of(*(replace(node, public_key=EVIL) if key == "n2" else node for key, node in SIGNED.nodes.items()))
    assert keys_of(pins.admit(swapped)) == keys_of(SIGNED), "it is pinned in memory"
    files.retry()
    assert not files.problems(), "there is room again, and nobody came or went"
    assert keys_of(Pins.load(home, "n1", files).admit(swapped)) == keys_of(SIGNED)


def test_hubs_of_the_first_map_are_not_announced_and_later_ones_are_for_a_day(home: Home) -> None:
    wall = Wall()
    pins = Pins(home, "n1", StateWriter(home), wall)
    pins.admit(MAP)
    pins.admit(SIGNED)  # An upgrade: they have identities now.
    assert list(pins.notices()) == []
    hub = signed(replace(WORKER_B, id="n3", name=NodeName("relay"), roles=frozenset({HUB})), by=SigningKey.generate())
    pins.admit(map_of(SIGNED.nodes["n0"], SIGNED.nodes["n1"], hub))
    output = list(pins.notices())
    assert any(text.startswith("new hubs") and "relay" in text for text in output)
    assert any(text.startswith("other identities") and "relay" in text for text in output), "it has n2's address"
    assert list(Pins.load(home, "n1", StateWriter(home)).notices()) == [], "a day of the real clock is over"
    wall.now += module.NOTICE_S
    pins.admit(map_of(SIGNED.nodes["n0"], SIGNED.nodes["n1"], hub))
    assert list(pins.notices()) == []


def test_a_node_in_place_of_an_ephemeral_one_that_left_is_not_announced(home: Home) -> None:
    """A pod that is replaced is normal, and its successor often gets its address."""

    def pod(number: int) -> Node:
        known = Node(f"p{number}", NodeName(f"pod-{number}"), WORKER_B.ip, keys[number], frozenset({WORKER}))
        return signed(replace(known, ephemeral=True), by=SigningKey.generate())

    def announced(pins: Pins) -> str:
        return " ".join(text for text in pins.notices() if text.startswith("other identities"))

    keys = [PublicKey(bytes([number + 1]) * 32) for number in range(4)]
    head, own = SIGNED.nodes["n0"], SIGNED.nodes["n1"]
    first, second, third, beside = map(pod, range(4))
    pins = Pins.load(home, "n1", StateWriter(home))
    for others in ((), (first,), (second,), (), (third,)):
        pins.admit(map_of(head, own, *others))
        assert announced(pins) == ""
    pins = Pins.load(home, "n1", StateWriter(home))
    assert announced(pins) == "", "it is on disk as well"
    pins.admit(map_of(head, own, third, replace(beside, name=third.name)))
    assert "pod-2" in announced(pins), "the other node with this name is still there"


def test_a_node_that_becomes_ephemeral_later_is_not_replaced_without_a_notice(home: Home) -> None:
    pins = Pins.load(home, "n1", StateWriter(home))
    pins.admit(SIGNED)
    own = SIGNED.nodes["n1"]
    pins.admit(map_of(own, replace(SIGNED.nodes["n2"], ephemeral=True)))
    pins.admit(map_of(own))
    forged = replace(WORKER_B, id="evil", public_key=EVIL, ephemeral=True)
    pins.admit(map_of(own, signed(forged, by=SigningKey.generate())))
    (notice,) = pins.notices()
    assert notice.startswith("other identities")


def test_nodes_that_left_are_remembered_and_bounded(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_GONE", 3)
    pins = Pins.load(home, "n1", StateWriter(home))
    pins.admit(SIGNED)
    own = SIGNED.nodes["n1"]
    pins.admit(map_of(own))
    back = replace(SIGNED.nodes["n2"], public_key=EVIL)
    assert keys_of(pins.admit(map_of(own, back)))["n2"] == WORKER_B.public_key, "it is not seen for the first time"
    for number in range(9):
        key = PublicKey(bytes([number + 1]) * 32)
        node = Node(
            f"e{number}", NodeName(f"e{number}"), IPv4Address(f"10.99.1.{number + 1}"), key, frozenset({WORKER})
        )
        pins.admit(map_of(own, signed(node, by=SigningKey.generate())))
    pins.admit(map_of(own))
    assert len(pins._known) == 4
