"""The audit log: its chain of hashes, and what a crash or a full disk leaves."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from meshray.coordinator import audit_log
from meshray.coordinator.audit_log import CONTINUED, ORIGIN, AuditLog, hash_of, older_file, read_log
from meshray.errors import MeshrayError


def opened(path: Path) -> AuditLog:
    return AuditLog.open(path, lambda: 1767225600.25)


def three_records(path: Path) -> list[str]:
    log = opened(path)
    log.record("node_enrolled", by="token 1f2e3d4c", source="192.0.2.7", node="gpu-1", token="1f2e3d4c", uses=1)
    log.record("order", by="root on head", source="127.0.0.1", node="gpu-1", order="restart")
    log.record("node_removed", by="the coordinator", node="gpu-1")
    return path.read_text().splitlines(keepends=True)


def test_each_record_has_a_number_and_a_hash_over_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    three_records(path)
    found = read_log(path)
    assert (found.total, found.broken, found.newest) == (3, "", found.records[-1].hash)
    assert [record.number for record in found.records] == [1, 2, 3]
    first, second, _ = found.records
    assert (first.at, first.source, first.details) == (1767225600.25, "192.0.2.7", {"token": "1f2e3d4c", "uses": "1"})
    assert first.hash == hash_of(first, ORIGIN)
    assert second.hash == hash_of(second, first.hash)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_log(path, 1).records == found.records[-1:]


def test_a_restarted_coordinator_continues_the_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    three_records(path)
    opened(path).record("order", by="root on head")
    found = read_log(path)
    assert (found.total, found.broken) == (4, "")


@pytest.mark.parametrize("line", [0, 1, 2])
def test_a_changed_record_is_found(tmp_path: Path, line: int) -> None:
    path = tmp_path / "audit.log"
    lines = three_records(path)
    lines[line] = lines[line].replace("gpu-1", "gpu-2")
    path.write_text("".join(lines))
    found = read_log(path)
    assert found.broken == f"line {line + 1}: the hash does not match the record and the one before"


def test_a_removed_an_inserted_and_a_damaged_record_are_found(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    one, two, three = three_records(path)
    path.write_text(one + three)
    assert read_log(path).broken == "line 2: the record has number 3"
    path.write_text(one + one + two + three)
    assert read_log(path).broken == "line 2: the record has number 1"
    path.write_text(one + "{}\n" + three)
    assert read_log(path).broken == "line 2 is damaged"
    # A new hash for a changed record does not match the record after it.
    changed = json.loads(one)
    changed["node"] = "gpu-2"
    path.write_text(one.replace("gpu-1", "gpu-2") + two + three)
    found = read_log(path).records[0]
    forged = {**changed, "hash": hash_of(found, ORIGIN)}
    path.write_text(json.dumps(forged) + "\n" + two + three)
    assert read_log(path).broken == "line 2: the hash does not match the record and the one before"


def test_an_incomplete_last_line_is_cut_off_and_the_chain_continues(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    lines = three_records(path)
    path.write_text("".join(lines[:2]) + lines[2][:20])
    assert (read_log(path).total, read_log(path).broken) == (2, "")
    opened(path).record("order", by="root on head")
    found = read_log(path)
    assert (found.total, found.broken, found.records[-1].event) == (3, "", "order")


def test_a_full_disk_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.log"
    log = opened(path)
    log.record("order", by="root on head")
    before, write = path.read_bytes(), os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, data: write(handle, data[:10]))
        with pytest.raises(MeshrayError) as failed:
            log.record("order", by="root on head")
    assert failed.value.code == "audit_failed"
    assert path.read_bytes() == before
    log.note("order_ended", by="root on head", code="done")
    assert (read_log(path).total, read_log(path).broken) == (2, "")


def test_a_note_that_cannot_be_written_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = opened(tmp_path / "folder" / "audit.log")
    (tmp_path / "folder" / "audit.log").unlink()
    (tmp_path / "folder").rmdir()
    log.note("node_removed", by="root on head", node="gpu-1")
    assert "node_removed of gpu-1 by root on head is not in the audit log" in caplog.text


def test_long_details_are_cut_and_empty_ones_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    opened(path).record("order", by="root on head", arguments="x" * 1000, name=None, roles="")
    assert read_log(path).records[0].details == {"arguments": "x" * 300}


async def test_records_are_written_to_the_disk_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = opened(tmp_path / "audit.log")
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    await log.sync()
    assert synced == []
    log.record("order", by="root on head")
    await log.sync()
    await log.sync()
    assert len(synced) == 1


def test_a_full_log_continues_in_another_file_and_the_chain_covers_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, older = tmp_path / "audit.log", tmp_path / "audit.log.1"
    monkeypatch.setattr(audit_log, "MAX_BYTES", 2000)
    log = opened(path)
    for number in range(40):
        log.record("node_removed", by="root on head", node=f"gpu-{number}")
        if number % 7 == 0:
            log = opened(path)
        assert read_log(path).broken == ""
    assert max(path.stat().st_size, older.stat().st_size) < 2500
    found = read_log(path)
    assert (found.records[-1].node, found.total) == ("gpu-39", found.records[-1].number)
    assert found.total > 40  # Each further file begins with a record about that.
    assert len(found.records) < 20
    assert found.records[0].event == CONTINUED
    assert len([record for record in found.records if record.event == CONTINUED]) == 2
    # Nothing can be taken away between or before them.
    whole, before = path.read_bytes(), older.read_bytes()
    for file, content in (
        (older, before.split(b"\n", 1)[1]),
        (older, before.rsplit(b"\n", 2)[0] + b"\n"),
        (path, whole.split(b"\n", 1)[1]),
        (older, before.replace(b"root on head", b"root on hand", 1)),
    ):
        kept = file.read_bytes()
        file.write_bytes(content)
        assert read_log(path).broken
        file.write_bytes(kept)
    older.unlink()
    assert read_log(path).broken == ""


def test_a_crash_while_the_log_continues_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.log"
    log = opened(path)
    log.record("node_removed", by="root on head", node="gpu-1")
    path.rename(older_file(path))
    assert read_log(path).records[-1].node == "gpu-1"
    opened(path).record("node_removed", by="root on head", node="gpu-2")
    found = read_log(path)
    assert (found.broken, [record.event for record in found.records]) == (
        "",
        ["node_removed", CONTINUED, "node_removed"],
    )
    older_file(path).unlink()
    assert (read_log(path).broken, read_log(path).total) == ("", 3)
