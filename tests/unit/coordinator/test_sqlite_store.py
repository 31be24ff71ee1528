from __future__ import annotations

import sqlite3
import time
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from meshray.coordinator import sqlite_store
from meshray.coordinator.certificate import fingerprint
from meshray.coordinator.head_environment import environment_of, locked
from meshray.coordinator.mesh_creation import create_mesh
from meshray.coordinator.records import (
    DropPass,
    Freed,
    PassRecord,
    PutFreed,
    PutMember,
    PutPass,
    PutRevision,
    PutToken,
    RowChanges,
    Settings,
)
from meshray.coordinator.registry import Registry
from meshray.coordinator.replacement import bound
from meshray.coordinator.sqlite_store import SqliteStore
from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.model.address import NodeName, OverlayNetwork
from meshray.model.enrol import EnrolAnswer
from meshray.model.environment import Environment
from meshray.model.keys import PrivateKey
from meshray.model.permission_level import Level
from meshray.model.token import Token

from .people import ENDPOINT, MESH, NOW, VERSIONS, accept_all, enrol, key, new_mesh, online, request, token

SETTINGS = Settings(MESH, 51888)


def everything(registry: Registry) -> RowChanges:
    return (
        *(PutMember(member) for member in registry.members.values()),
        *(PutToken(token) for token in registry.tokens.values()),
        *(PutFreed(address, left) for address, left in registry.freed.items()),
        PutRevision(registry.reserved),
    )


def test_applied_changes_are_loaded_again(tmp_path: Path) -> None:
    registry = enrol(enrol(new_mesh(token(), token("t2", uses=1)), request(1, ephemeral=True)), request(2))
    registry, _, _ = bound(registry, token("mine", uses=1, name="worker"), replace_node=True)
    registry, _, _ = online(registry, "id-2").remove("id-2", NOW + 0.125, take_back=True)
    assert registry.freed and registry.tokens["mine"].replaces == "id-1"
    file = SqliteStore.create(tmp_path / "db", SETTINGS)
    file.apply(everything(registry))
    file.close()
    file = SqliteStore.open(tmp_path / "db")
    assert file.settings() == SETTINGS
    loaded = file.load()
    file.close()
    assert loaded.members == registry.members
    assert loaded.tokens == registry.tokens
    assert loaded.freed == registry.freed
    assert loaded.revision >= registry.revision


def test_passes_are_loaded_again(tmp_path: Path) -> None:
    fresh = PassRecord("p1", "ana", "hash", Level.USE, NOW, NOW + 60)
    used = replace(fresh, id="p2", used=NOW + 1.5, session_hash="session", revoked=NOW + 2.5)
    file = SqliteStore.create(tmp_path / "db", SETTINGS)
    file.apply(
        (*everything(new_mesh()), PutPass(fresh), PutPass(fresh), PutPass(used), PutPass(replace(used, id="p3")))
    )
    file.apply((DropPass("p3"),))
    file.close()
    file = SqliteStore.open(tmp_path / "db")
    loaded = file.load().passes
    file.close()
    assert loaded == {"p1": fresh, "p2": used}
    assert "hash" not in repr(fresh) and "session" not in repr(used)


def test_the_rows_of_each_step_rebuild_the_registry(tmp_path: Path) -> None:
    registry = new_mesh()
    file = SqliteStore.create(tmp_path / "db", SETTINGS)
    file.apply(everything(registry))
    for number in range(1, 5):
        registry, rows, _ = registry.enrol(
            request(number), node_id=f"id-{number}", credential_hash=f"c{number}", compare=accept_all, now=NOW + number
        )
        file.apply(rows)
    registry, rows, _ = registry.rename("worker", NodeName("other"))
    file.apply(rows)
    registry, rows, _ = registry.drain("other", True)
    file.apply(rows)
    registry, rows, _ = registry.remove("id-2", NOW)
    file.apply(rows)
    registry, rows, _ = registry.collect(NOW + 5000)
    file.apply(rows)
    loaded = file.load()
    file.close()
    assert (loaded.members, loaded.tokens, loaded.freed) == (registry.members, registry.tokens, registry.freed)


def test_all_rows_or_none(tmp_path: Path) -> None:
    registry = new_mesh()
    head = registry.named("head")
    file = SqliteStore.create(tmp_path / "db", SETTINGS)
    twin = replace(head, node=replace(head.node, id="twin", name=NodeName("twin")))
    with pytest.raises(MeshrayError) as caught:
        file.apply((PutMember(head), PutMember(twin)))
    assert caught.value.code == "store_failed"
    assert file.load().members == {}
    file.close()


def broken(path: Path) -> str:
    with pytest.raises(MeshrayError) as caught:
        file = SqliteStore.open(path)
        try:
            file.load()
        finally:
            file.close()
    assert caught.value.hint
    return caught.value.code


@pytest.mark.parametrize("content", [b"", b"garbage" * 500, b"SQLite format 3\x00" + b"\xff" * 4080])
def test_a_file_that_is_not_a_store_is_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "db"
    path.write_bytes(content)
    assert broken(path) == "store_corrupt"
    if content:
        assert path.read_bytes() == content


def test_damage_inside_a_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "db"
    file = SqliteStore.create(path, SETTINGS)
    file.apply(everything(new_mesh()))
    file.close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE node SET public_key = 'short'")
    raw.close()
    assert broken(path) == "store_corrupt"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert broken(path) == "store_corrupt"


def test_a_store_of_a_newer_meshray_and_none(tmp_path: Path) -> None:
    path = tmp_path / "db"
    assert broken(path) == "no_mesh"
    assert not path.exists()
    SqliteStore.create(path, SETTINGS).close()
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA user_version = 99")
    raw.close()
    assert broken(path) == "store_too_new"


def test_an_older_store_is_brought_forward_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "db"
    SqliteStore.create(path, SETTINGS).close()
    monkeypatch.setattr(sqlite_store, "MIGRATIONS", (*sqlite_store.MIGRATIONS, ("CREATE TABLE later (x)",)))
    for _ in range(2):
        file = SqliteStore.open(path)
        assert file.settings() == SETTINGS
        file.close()


def test_a_store_from_before_drain_has_no_drained_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "db"
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_store, "MIGRATIONS", sqlite_store.MIGRATIONS[:1])
        SqliteStore.create(path, SETTINGS).close()
    with sqlite3.connect(path) as raw:
        row = ("id-1", "worker", "10.99.0.2", str(key(1)), '["worker"]', "[]", 0, "{}", "{}", "c", "t1", 1.0, 0)
        raw.execute(f"INSERT INTO node VALUES ({', '.join('?' * len(row))})", row)
    raw.close()
    file = SqliteStore.open(path)
    assert not file.load().named("worker").node.drained
    file.close()


def test_the_nodes_of_an_older_store_count_as_online_once_so_that_their_addresses_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "db"
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_store, "MIGRATIONS", sqlite_store.MIGRATIONS[:8])
        SqliteStore.create(path, SETTINGS).close()
    with sqlite3.connect(path) as raw:
        for number, ephemeral in ((1, 0), (2, 1)):
            columns = "id, name, ip, public_key, roles, advertised, ephemeral, labels, versions, credential_hash"
            raw.execute(
                f"INSERT INTO node ({columns}, token_id, enrolled, had_map) VALUES ({', '.join('?' * 13)})",
                (
                    *(f"id-{number}", f"w{number}", f"10.99.0.{number}", str(key(number)), "[]", "[]", ephemeral),
                    *("{}", "{}", "c", "t1", 1.0, 0),
                ),
            )
        raw.execute("INSERT INTO token VALUES ('t1', 'hash', 0, 2, NULL, 0, 1.0, 0, '[]')")
        raw.execute("INSERT INTO freed VALUES ('10.99.0.9', 5.0)")
    raw.close()
    file = SqliteStore.open(path)
    loaded = file.load()
    file.close()
    assert {key: member.had_map for key, member in loaded.members.items()} == {"id-1": True, "id-2": False}
    assert (loaded.tokens["t1"].name, loaded.tokens["t1"].replaces) == (None, "")
    assert loaded.freed == {IPv4Address("10.99.0.9"): Freed(5.0)}


def test_recorded_requirements_are_loaded_again(tmp_path: Path) -> None:
    registry = new_mesh()
    assert environment_of(registry) == Environment(VERSIONS.ray, VERSIONS.python, "")
    file = SqliteStore.create(tmp_path / "db", SETTINGS)
    file.apply(everything(registry))
    for requirements in ("numpy==2.1.0\n", "torch==2.9.1\n"):
        registry, rows, _ = locked(registry, requirements)
        file.apply(rows)
        assert file.load().requirements == requirements
    assert locked(registry, requirements)[1] == ()
    assert environment_of(file.load()).requirements == "torch==2.9.1\n"
    file.close()


def test_one_coordinator_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "LOCK_WAIT_MS", 1)
    path = tmp_path / "db"
    first = SqliteStore.create(path, SETTINGS)
    assert broken(path) == "store_locked"
    first.close()
    SqliteStore.open(path).close()


def make(home: Home) -> tuple[EnrolAnswer, Token]:
    return create_mesh(
        home,
        mesh_name="lab",
        network=OverlayNetwork.parse("10.99.0.0/16"),
        node_name=NodeName("head"),
        public_key=PrivateKey.generate().public(),
        port=51999,
        endpoints=(ENDPOINT,),
        advertised=(ENDPOINT,),
        versions=VERSIONS,
        labels={"zone": "a"},
        now=time.time(),
    )


def test_a_new_mesh(tmp_path: Path) -> None:
    home = Home(tmp_path / "state", tmp_path / "run")
    answer, token = make(home)
    node = answer.map.nodes[answer.node_id]
    assert (node.ip, node.role, node.endpoints) == (IPv4Address("10.99.0.1"), "head", (ENDPOINT,))
    assert Token.parse(token.encode()) == token
    assert token.fingerprint == fingerprint(home.certificate.read_text())
    assert home.state.stat().st_mode & 0o777 == 0o700
    files = sorted(home.state.iterdir())
    assert [file.name for file in files] == ["coordinator.crt", "coordinator.db", "coordinator.key"]
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    file = SqliteStore.open(home.database)
    assert file.settings().port == 51999
    record = file.load().tokens[token.token_id]
    file.close()
    assert (record.uses, record.expires is not None) == (0, True)
    before = [file.read_bytes() for file in files]
    with pytest.raises(MeshrayError) as caught:
        make(home)
    assert caught.value.code == "mesh_exists"
    assert [file.read_bytes() for file in files] == before


def test_a_mesh_that_could_not_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path / "state", tmp_path / "run")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "apply", full)
        with pytest.raises(OSError, match="No space"):
            make(home)
    assert list(home.state.iterdir()) == []
    make(home)
