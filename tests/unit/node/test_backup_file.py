"""The encrypted file of a backup: what it hides, and which damage has which message."""

from __future__ import annotations

import hashlib
import zlib

import msgspec
import pytest

from meshray.errors import MeshrayError
from meshray.node import backup_file
from meshray.node.backup_file import Backup, SealedBackup

BACKUP = Backup(1767225600.0, "0.1.0", "lab", "head", {"node.json": b"credential", "coordinator.db": bytes(5000)})


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup_file, "_SCRYPT_N", 2**10)


def code_of(data: bytes, passphrase: str = "correct") -> str:
    with pytest.raises(MeshrayError) as refused:
        SealedBackup.parse(data).open(passphrase)
    assert refused.value.hint
    return refused.value.code


def test_the_passphrase_opens_it_and_nothing_is_readable_without() -> None:
    data = BACKUP.sealed("correct")
    assert SealedBackup.parse(data).open("correct") == BACKUP
    assert b"credential" not in data
    assert BACKUP.sealed("correct") != data
    assert "credential" not in repr(BACKUP)


def test_another_passphrase_is_wrong() -> None:
    data = BACKUP.sealed("correct")
    assert code_of(data, "Correct") == "passphrase_wrong"
    # A variable of the environment may contain bytes that are not UTF-8.
    assert SealedBackup.parse(BACKUP.sealed("\udcff")).open("\udcff") == BACKUP


def test_every_truncated_file_is_refused() -> None:
    data = BACKUP.sealed("correct")
    for length in range(len(data)):
        expected = "not_a_backup" if length < data.index(b"\n") + 1 else "backup_truncated"
        assert code_of(data[:length]) == expected, length


def test_every_changed_bit_is_refused() -> None:
    data = BACKUP.sealed("correct")
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1
        assert code_of(bytes(changed)) in ("not_a_backup", "backup_too_new", "backup_truncated", "backup_damaged")
    assert code_of(data + b"\0") == "backup_damaged"


def test_a_change_with_a_matching_hash_is_refused() -> None:
    changed = bytearray(BACKUP.sealed("correct"))
    changed[60] ^= 1
    whole = bytes(changed[:-32])
    assert code_of(whole + hashlib.sha256(whole).digest()) == "passphrase_wrong"


def test_a_newer_format_and_other_files_are_named() -> None:
    assert code_of(b"meshray-backup 2\n" + bytes(1000)) == "backup_too_new"
    for data in (b"", b"SQLite format 3\0", b"meshray-backup 1", b"meshray-backup x\n", b"meshray-backup \n"):
        assert code_of(data) == "not_a_backup", data


def test_a_content_of_another_form_is_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (b"not compressed", zlib.compress(b"not msgpack"), zlib.compress(msgspec.msgpack.encode({}))):
        with monkeypatch.context() as patch:
            patch.setattr(zlib, "compress", lambda whole, content=content: content)
            data = BACKUP.sealed("correct")
        assert code_of(data) == "backup_damaged"
