"""The lock file, and the commands that sign with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from meshray.cli.lock_file import LockFile
from meshray.errors import MeshrayError, RefusedError
from meshray.home import Home
from meshray.model.address import Endpoint, NodeName
from meshray.model.attestation import Attestation, Removals, parse_signature
from meshray.model.keys import PrivateKey, SigningKey
from meshray.model.lock import Rules, judge, removal_key
from meshray.model.node import COORDINATOR, HEAD, HUB, STATIC, WORKER, Node
from meshray.model.token import Token
from meshray.node.enrolment import Enrolment
from meshray.node.identity import Identity
from meshray.protocol.codec import to_json
from tests.unit.cli.fakes import FakeAgent, type_in
from tests.unit.cli.test_bring_up import Machine, machine

__all__ = ["machine"]

MESH = "00112233aabbccdd"
KEY = PrivateKey.generate().public()
PLAIN = Token(MESH, (Endpoint("192.0.2.1", 51888),), bytes(32), "1f2e3d4c", "secret")


@pytest.fixture
def lock(tmp_path: Path) -> LockFile:
    return LockFile.load_or_create(tmp_path / "mesh.lock", Home(tmp_path / "state", tmp_path / "run"))[0]


def test_the_file_is_made_once_and_closed_to_others(tmp_path: Path, lock: LockFile) -> None:
    assert lock.path.stat().st_mode & 0o777 == 0o600
    again, is_new = LockFile.load_or_create(lock.path, Home(tmp_path / "state", tmp_path / "run"))
    assert (again, is_new) == (lock, False)


def test_files_that_are_not_a_lock_are_refused(tmp_path: Path, lock: LockFile) -> None:
    link = tmp_path / "link.lock"
    link.symlink_to(lock.path)
    open_to_all = tmp_path / "open.lock"
    open_to_all.write_text(lock.path.read_text())
    open_to_all.chmod(0o640)
    damaged = tmp_path / "damaged.lock"
    damaged.write_text('{"key": "no key"}')
    damaged.chmod(0o600)
    for path, code in (
        (link, "lock_open"),
        (open_to_all, "lock_open"),
        (damaged, "lock_damaged"),
        (tmp_path / "none", "lock_missing"),
        (tmp_path, "lock_open"),
    ):
        with pytest.raises(MeshrayError) as caught:
            LockFile.load(path)
        assert caught.value.code == code
        assert lock.key.reveal() not in caught.value.message


def test_a_lock_in_the_state_folder_is_refused(tmp_path: Path) -> None:
    home = Home(tmp_path / "state", tmp_path / "run")
    home.state.mkdir()
    with pytest.raises(MeshrayError) as caught:
        LockFile.load_or_create(home.state / "mesh.lock", home)
    assert caught.value.code == "lock_in_state"


def test_the_coordinator_gets_the_public_half_only(lock: LockFile) -> None:
    made = {"token": PLAIN.encode(), "id": "1f2e3d4c", "uses": 1, "expires": None, "port": 51888, "roles": ["hub"]}
    agent = FakeAgent({"api": made})
    outcome = type_in("token", "create", "--hub", "--lock", str(lock.path), agent=agent)
    assert outcome.code == 0, outcome.err
    token = Token.parse(outcome.out)
    assert token.endorser is not None
    sent = json.dumps(agent.asked)
    assert str(lock.key.public()) in sent
    for secret in (lock.key.reveal(), token.endorser.key.reveal()):
        assert secret not in sent
    identity = SigningKey.generate()
    signed = Attestation.sign(identity, MESH, KEY, counter=1, chain=token.endorse(identity.public()))
    node = Node("n1", NodeName("a"), IPv4Address("10.99.0.2"), KEY, frozenset({WORKER, HUB, HEAD}), attestation=signed)
    assert judge(node, None, Rules(MESH, lock.key.public())).roles == frozenset({WORKER, HUB})


def test_a_removal_raises_the_epoch_in_the_file(lock: LockFile) -> None:
    node = Node("n1", NodeName("gpu-1"), IPv4Address("10.99.0.2"), KEY, frozenset({WORKER}))
    shown = {"mesh": MESH, "nodes": [to_json(node.form())], "lock": str(lock.key.public())}
    agent = FakeAgent({"api": shown})
    outcome = type_in("node", "rm", "gpu-1", "--yes", "--lock", str(lock.path), agent=agent)
    assert outcome.code == 0, outcome.err
    body = agent.asked[-1][1]["body"]
    assert isinstance(body, dict)
    removals = Removals(1, frozenset({removal_key(node)}), parse_signature(body["removal"]["signature"]))
    assert removals.is_signed(lock.key.public(), MESH)
    assert LockFile.load(lock.path).epoch == 1
    # A coordinator that shows an older list than the last signed one.
    assert refusal(lock, shown) == "removals_hidden"
    other = SigningKey.generate()
    forged = {**shown, "removals": Removals.sign(other, MESH, 5, []).to_json()}
    assert refusal(lock, forged) == "removals_hidden"
    elsewhere = {**shown, "lock": str(other.public())}
    assert refusal(lock, elsewhere) == "lock_other"


def refusal(lock: LockFile, shown: Mapping[str, object]) -> str:
    words = ("node", "rm", "gpu-1", "--yes", "--lock", str(lock.path), "--json")
    return str(json.loads(type_in(*words, agent=FakeAgent({"api": shown})).out)["error"]["code"])


def test_a_removal_without_the_lock_warns() -> None:
    outcome = type_in("node", "rm", "gpu-1", "--yes", agent=FakeAgent({"api": {"name": "gpu-1", "locked": True}}))
    assert outcome.code == 0
    assert "--lock FILE" in outcome.err


def test_init_makes_the_lock_and_a_signed_first_token(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "keys" / "mesh.lock"
    path.parent.mkdir()
    outcome = machine.type_in("init", "--no-ray", "--advertise", "192.0.2.1", "--lock", str(path), "--json")
    assert outcome.code == 0, outcome.err
    lock, token = LockFile.load(path), Token.parse(json.loads(outcome.out)["token"])
    assert token.endorser is not None
    assert token.endorser.lock == lock.key.public()
    assert token.endorser.grant.roles == frozenset()
    assert lock.key.reveal() not in outcome.out + outcome.err
    for file in machine.home.state.rglob("*"):
        assert not file.is_file() or lock.key.reveal().encode() not in file.read_bytes()
    enrolment = Enrolment.load(machine.home)
    chain = Identity.load_or_create(machine.home, enrolment.mesh_id).chain
    assert chain is not None
    assert chain.grant.roles == frozenset({HUB, HEAD, COORDINATOR})
    assert chain.grant.is_signed(lock.key.public(), enrolment.mesh_id)


def test_a_static_peer_is_signed_by_the_lock(lock: LockFile, tmp_path: Path) -> None:
    private = PrivateKey.generate()
    hub = {"name": "head", "ip": "10.99.0.1", "public_key": str(KEY), "endpoints": ["192.0.2.1:51888"]}
    answer = {
        "mesh": MESH,
        "name": "phone",
        "ip": "10.99.0.9",
        "private_key": private.reveal(),
        "public_key": str(private.public()),
        "network": "10.99.0.0/16",
        "hub": {**hub, "preshared_key": private.reveal()},
    }
    agent = FakeAgent({"api": answer})
    config = str(tmp_path / "phone.conf")
    outcome = type_in("peer", "add", "phone", "--config", config, "--lock", str(lock.path), agent=agent)
    assert outcome.code == 0, outcome.err
    method, body = agent.asked[-1][1]["method"], agent.asked[-1][1]["body"]
    assert method == "PUT"
    assert isinstance(body, dict)
    signed = Attestation.from_json(body["attestation"])
    ip, roles = IPv4Address("10.99.0.9"), frozenset({STATIC})
    phone = Node("p", NodeName("phone"), ip, private.public(), roles, attestation=signed)
    assert judge(phone, None, Rules(MESH, lock.key.public())).roles == frozenset({STATIC})


def test_a_token_of_a_mesh_with_a_lock_survives_its_text() -> None:
    lock = SigningKey.generate()
    token = PLAIN.signed(lock, (HUB,), 3)
    assert Token.parse(token.encode()) == token
    assert Token.parse(PLAIN.encode()) == PLAIN
    damaged = token.encode()[:-9]
    with pytest.raises(RefusedError):
        Token.parse(damaged)
    assert token.endorser is not None
    assert token.endorser.key.reveal() not in repr(token)
