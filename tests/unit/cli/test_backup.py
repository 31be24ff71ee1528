"""`meshray backup` and `restore`, as a user types them, on the real state of a head whose agent is stopped.

That the mesh continues is shown by tests/lab/test_backup.py.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import termios
import time
from dataclasses import replace
from pathlib import Path

import pytest

from meshray.cli.head_backup import adapt, put_in_place, remove_interrupted, staged
from meshray.coordinator.audit_log import AuditLog, read_log
from meshray.coordinator.mesh_creation import create_mesh
from meshray.coordinator.store import open_store
from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.model.address import Endpoint, NodeName, OverlayNetwork
from meshray.model.keys import PrivateKey
from meshray.model.node import Versions
from meshray.node import backup_file
from meshray.node.backup_file import Backup, SealedBackup
from meshray.node.enrolment import Enrolment, save_private_key
from meshray.node.identity import Identity
from meshray.node.map_cache import save_map
from meshray.node.state_folder import claimed, delete_state, require_clean
from tests.unit.agent.sample import WORKER_A, enrolment
from tests.unit.cli.fakes import Outcome, type_in

WORDS = "five random words make one"
OLD = Endpoint("203.0.113.7", 51888)


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup_file, "_SCRYPT_N", 2**10)


@pytest.fixture
def head(tmp_path: Path) -> Home:
    """Return the state of a head that is stopped."""
    home, key = Home(tmp_path / "head", tmp_path / "run"), PrivateKey.generate()
    answer, token = create_mesh(
        home,
        mesh_name="lab",
        network=OverlayNetwork.parse("10.99.0.0/16"),
        node_name=NodeName("head"),
        public_key=key.public(),
        port=51888,
        endpoints=(OLD,),
        advertised=(OLD,),
        versions=Versions("0.1.0"),
        labels={},
        now=time.time(),
        attest=lambda mesh_id: Identity.load_or_create(home, mesh_id).sign(key.public()),
    )
    save_private_key(home, key)
    save_map(home, answer.map)
    replace(
        enrolment(WORKER_A),
        mesh_id=answer.map.mesh.id,
        node_id=answer.node_id,
        name="head",
        credential=answer.credential,
        fingerprint=token.fingerprint.hex(),
        hosts_coordinator=True,
        with_ray=False,
    ).save(home)
    AuditLog.open(home.audit_log, time.time).record("token_created", by="root on head")
    return home


def typed(home: Home, *words: str, passphrase: str | None = WORDS) -> Outcome:
    environ = {"MESHRAY_HOME": str(home.state), "MESHRAY_RUN": str(home.run)}
    return type_in(*words, environ=environ | ({"MESHRAY_PASSPHRASE": passphrase} if passphrase is not None else {}))


def backed_up(head: Home, file: Path) -> Backup:
    done = typed(head, "backup", str(file), "--json")
    assert done.code == 0, done.err
    return SealedBackup.parse(file.read_bytes()).open(WORDS)


def refusal(done: Outcome) -> tuple[int, str]:
    return done.code, json.loads(done.out)["error"]["code"]


def test_a_backup_has_the_whole_state_and_nothing_else(head: Home, tmp_path: Path) -> None:
    (head.state / ".coordinator.db.0123").write_text("of a backup that was killed")
    backup = backed_up(head, tmp_path / "lab.backup")
    assert (tmp_path / "lab.backup").stat().st_mode & 0o777 == 0o600
    assert backup.files.keys() == {
        *("node.json", "private.key", "identity.key", "identity.json", "audit.log"),
        *("coordinator.db", "coordinator.crt", "coordinator.key"),
    }
    assert backup.files["node.json"] == head.enrolment.read_bytes()
    assert [record.event for record in read_log(head.audit_log).records] == ["token_created", "backup_created"]
    assert [file.name for file in head.state.glob(".*")] == []


def test_a_failed_backup_leaves_no_file(head: Home, tmp_path: Path) -> None:
    file = tmp_path / "lab.backup"
    assert refusal(typed(head, "backup", str(file), "--json", passphrase=None)) == (2, "passphrase_missing")
    assert refusal(typed(head, "backup", str(file), "--json", passphrase="")) == (2, "passphrase_empty")
    head.certificate_key.unlink()
    assert refusal(typed(head, "backup", str(file), "--json")) == (1, "state_damaged")
    assert not file.exists()
    file.write_text("mine")
    assert refusal(typed(head, "backup", str(file), "--json")) == (2, "file_exists")
    replace(Enrolment.load(head), hosts_coordinator=False).save(head)
    assert refusal(typed(head, "backup", str(tmp_path / "other"), "--json")) == (2, "not_coordinator")


def test_what_cannot_be_restored_changes_nothing(head: Home, tmp_path: Path) -> None:
    file, fresh = tmp_path / "lab.backup", Home(tmp_path / "fresh", tmp_path / "fresh-run")
    backed_up(head, file)
    assert refusal(typed(fresh, "restore", str(file), "--json", passphrase="another")) == (1, "passphrase_wrong")
    assert refusal(typed(fresh, "restore", str(tmp_path / "none"), "--json")) == (2, "file_closed")
    assert refusal(typed(fresh, "restore", str(head.database), "--json")) == (1, "not_a_backup")
    assert refusal(typed(head, "restore", str(file), "--json")) == (1, "already_enrolled")
    for missing in ("node.json", "coordinator.db"):
        whole = SealedBackup.parse(file.read_bytes()).open(WORDS)
        files = {name: content for name, content in whole.files.items() if name != missing}
        (tmp_path / missing).write_bytes(Backup(1.0, "0.1.0", "lab", "head", files).sealed(WORDS))
        assert refusal(typed(fresh, "restore", str(tmp_path / missing), "--json")) == (1, "state_damaged")
    assert not fresh.state.exists()


def restore(home: Home, backup: Backup) -> None:
    with staged(home, backup) as stage:
        adapt(stage, Enrolment.load(stage), Versions("9.9"), (Endpoint("192.0.2.1", 51888),), backup)
        put_in_place(home, stage)


def test_the_restored_state_is_that_of_the_new_machine(head: Home, tmp_path: Path) -> None:
    backup, fresh = backed_up(head, tmp_path / "lab.backup"), Home(tmp_path / "fresh", tmp_path / "fresh-run")
    fresh.state.mkdir(mode=0o700)
    restore(fresh, backup)
    store = open_store(fresh)
    registry = store.load()
    store.close()
    own = registry.member(Enrolment.load(fresh).node_id)
    assert (own.advertised, own.node.versions.meshray) == ((Endpoint("192.0.2.1", 51888),), "9.9")
    # The old head may have signed newer keys, and other nodes refuse a lower counter.
    assert own.node.attestation is not None
    assert own.node.attestation.counter > 1_000_000
    assert json.loads(fresh.identity.read_text())["counter"] == own.node.attestation.counter
    # A run of the coordinator that wrote: nodes detect a copy by this.
    assert registry.lineage.serial > 0
    log = read_log(fresh.audit_log)
    assert (log.broken, [record.event for record in log.records]) == (
        "",
        ["token_created", "backup_created", "mesh_restored"],
    )
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in fresh.state.iterdir())
    assert not fresh.restoring.exists()


def test_a_restore_that_is_killed_is_repeated_or_removed(
    head: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup, fresh = backed_up(head, tmp_path / "lab.backup"), Home(tmp_path / "fresh", tmp_path / "fresh-run")

    class Killed(BaseException):
        """The process ends here, and nothing is cleaned up."""

    rename = Path.rename
    total = len(backup.files)
    for number in range(total):
        fresh.state.mkdir(mode=0o700, exist_ok=True)
        moved = 0

        def moving(source: Path, target: Path, last: int = number) -> Path:
            nonlocal moved
            if moved == last:
                raise Killed
            moved += 1
            return rename(source, target)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Path, "rename", moving)
            patch.setattr(shutil, "rmtree", lambda *arguments, **options: None)
            restore(fresh, backup)
        assert not fresh.enrolment.exists()
        assert fresh.restoring.is_dir()
        if number % 2:
            with claimed(fresh):
                remove_interrupted(fresh)
                require_clean(fresh)
                assert list(fresh.state.iterdir()) == []
        else:
            delete_state(fresh)
            assert not fresh.state.exists()
    fresh.state.mkdir(mode=0o700, exist_ok=True)
    restore(fresh, backup)
    assert Enrolment.load(fresh).name == "head"


def test_the_files_of_an_enrolled_node_are_never_removed(head: Home) -> None:
    before = sorted(head.state.iterdir())
    head.restoring.mkdir()
    remove_interrupted(head)
    assert [file for file in sorted(head.state.iterdir()) if file != head.restoring] == before


def test_a_head_that_leaves_keeps_no_audit_log(head: Home) -> None:
    delete_state(head)
    assert not head.state.exists()


def test_a_database_that_cannot_be_copied_leaves_nothing(head: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(head)
    try:
        monkeypatch.setattr(os, "open", lambda *arguments: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(MeshrayError) as failed:
            store.copy()
    finally:
        monkeypatch.undo()
        store.close()
    assert failed.value.code == "store_failed"
    assert list(head.state.glob(".coordinator.db.*")) == []


def on_terminal(home: Home, words: list[str], keys: list[bytes]) -> tuple[int, str, bool]:
    """Type a command on a real terminal, and answer each question with the next keys.

    Returns:
        The exit code, what the terminal showed, and whether it has its settings as before.
    """
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    process = subprocess.Popen(
        [sys.executable, "-m", "meshray", *words],
        env={**os.environ, "MESHRAY_HOME": str(home.state), "MESHRAY_RUN": str(home.run)},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - this process has one thread
    )
    shown, deadline = b"", time.monotonic() + 60
    try:
        while process.poll() is None or select.select([ours], [], [], 0)[0]:
            assert time.monotonic() < deadline, shown
            if select.select([ours], [], [], 0.1)[0]:
                shown += os.read(ours, 4096)
            if keys and shown.endswith(b": "):
                os.write(ours, keys.pop(0))
                shown += b"\n"
        return process.returncode, shown.decode(), termios.tcgetattr(theirs) == before
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def test_the_passphrase_is_asked_for_on_a_terminal_and_never_shown(head: Home, tmp_path: Path) -> None:
    file = tmp_path / "lab.backup"
    typed_twice = [f"{WORDS}\n".encode()] * 2
    code, shown, is_restored = on_terminal(head, ["backup", str(file)], list(typed_twice))
    assert (code, is_restored) == (0, True), shown
    assert ("Repeat for confirmation" in shown, WORDS in shown) == (True, False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backup_file, "_SCRYPT_N", 2**17)
        assert SealedBackup.parse(file.read_bytes()).open(WORDS).mesh == "lab"


def test_ctrl_c_at_the_question_changes_nothing(head: Home, tmp_path: Path) -> None:
    code, shown, is_restored = on_terminal(head, ["backup", str(tmp_path / "lab.backup")], [b"\x03"])
    assert (code, is_restored, list(tmp_path.glob("*.backup"))) == (130, True, []), shown
