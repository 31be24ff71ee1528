"""The audit log: what administrators and nodes did, by whom and from where. Records are only appended.

Each line of the file is one JSON object. A full file is renamed, and replaces the one that was renamed before; the next
one continues its numbers and hashes. Its hash covers the record and the hash of the line before, so that a changed,
inserted or removed line breaks the chain from there on. The chain cannot show that lines at the end are missing: keep
the newest hash elsewhere for that.

>>> log = AuditLog.open(home.audit_log, time.time)
>>> log.record("order", by="root on head", source="127.0.0.1", node="gpu-1", order="restart")
>>> read_log(home.audit_log).broken
''
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from meshray.errors import MeshrayError
from meshray.linux.files import make_folder, sync
from meshray.protocol.audit import Audit, AuditRecord
from meshray.protocol.codec import WireError, decode, to_json

#: The hash before the first record.
ORIGIN = "0" * 64
#: The event of the first record of a file that continues another one.
CONTINUED = "log_continued"
#: The size at which the log continues in a new file, bytes.
MAX_BYTES = 32 * 1024 * 1024
#: The longest detail, characters.
_LONGEST = 300

_log = logging.getLogger(__name__)


class AuditLog:
    """The log of one coordinator, which is its only writer.

    Args:
        wall: unix seconds.
        total: the number of the last record.
        newest: its hash.
    """

    def __init__(self, path: Path, wall: Callable[[], float], total: int = 0, newest: str = ORIGIN) -> None:
        self._path = path
        self._wall = wall
        self._total = total
        self._newest = newest
        self._is_synced = True

    @classmethod
    def open(cls, path: Path, wall: Callable[[], float]) -> AuditLog:
        """Open the log, or create it. An incomplete last line, which was never acknowledged, is cut off.

        Raises:
            MeshrayError: ``audit_failed``.
        """
        make_folder(path.parent)
        try:
            with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "rb+") as file:
                content = file.read()
                complete = content[: content.rfind(b"\n") + 1]
                if complete != content:
                    _log.warning("the last line of %s is incomplete, and is cut off", path)
                    file.truncate(len(complete))
        except OSError as error:
            raise _failed(path, error) from None
        found = read_log(path, 0)
        return cls(path, wall, found.total, found.newest)

    def record(self, event: str, *, by: str, source: str = "", node: str = "", **details: object) -> None:
        """Append a record.

        Args:
            event: see `AuditRecord`.
            by: the token, pass, node or administrator that caused it.
            source: the address from which the request came.

        Raises:
            MeshrayError: ``audit_failed``; nothing was appended.
        """
        self._continue_if_full()
        self._append(event, by=by, source=source, node=node, **details)

    def _continue_if_full(self) -> None:
        """Rename a full file. The record of the next one contains the hash of the last record before it."""
        older = older_file(self._path)
        try:
            size = self._path.stat().st_size if self._path.exists() else 0
            if size >= MAX_BYTES:
                self._path.rename(older)
            elif size or not self._total or not older.exists():
                return
        except OSError as error:
            raise _failed(self._path, error) from None
        self._append(CONTINUED, by="the coordinator", previous=self._newest)

    def _append(self, event: str, *, by: str, source: str = "", node: str = "", **details: object) -> None:
        texts = {name: str(value)[:_LONGEST] for name, value in details.items() if value not in ("", None)}
        unsigned = AuditRecord(self._total + 1, round(self._wall(), 3), event, by, source, str(node), texts, "")
        digest = hash_of(unsigned, self._newest)
        line = json.dumps({**to_json(unsigned), "hash": digest}).encode() + b"\n"
        try:
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                _write_all(handle, line)
            finally:
                os.close(handle)
        except OSError as error:
            raise _failed(self._path, error) from None
        self._total, self._newest, self._is_synced = unsigned.number, digest, False

    def note(self, event: str, *, by: str, source: str = "", node: str = "", **details: object) -> None:
        """Append a record of something that has happened; a failure is only logged. Arguments as of `record`."""
        try:
            self.record(event, by=by, source=source, node=node, **details)
        except MeshrayError as error:
            _log.error("%s of %s by %s is not in the audit log: %s", event, node or "-", by, error.message)

    async def sync(self) -> None:
        """Write the records to the disk, if there are new ones; to be called every few seconds."""
        if self._is_synced:
            return
        self._is_synced = True
        try:
            await asyncio.to_thread(sync, self._path)
        except OSError as error:
            self._is_synced = False
            _log.error("%s cannot be written to the disk: %s", self._path, error.strerror)


def read_log(path: Path, last: int | None = None) -> Audit:
    """Return the last records of the file (None: all), and the first fault of its chain.

    Raises:
        OSError: the file cannot be read.
    """
    records: deque[AuditRecord] = deque(maxlen=last)
    newest, broken, total = ORIGIN, "", 0
    for file, number, line in _lines(path):
        where = f"{'' if file == path else f'{file.name}, '}line {number}"
        total += 1
        try:
            found = decode(line, AuditRecord)
        except WireError:
            broken = broken or f"{where} is damaged"
            continue
        if total == 1 and found.event == CONTINUED:
            # The file before it was replaced by a later one, or removed.
            total, newest = found.number, found.details.get("previous", "")
        fault = _fault(found, total, newest)
        broken = broken or (f"{where}: {fault}" if fault else "")
        newest = found.hash
        records.append(found)
    return Audit(tuple(records), total, newest, not broken, broken)


def older_file(path: Path) -> Path:
    """Return the file that this log continues."""
    return path.with_name(f"{path.name}.1")


def _lines(path: Path) -> Iterator[tuple[Path, int, bytes]]:
    """Yield the complete lines of the older file and of the log, each with its number from 1."""
    older = older_file(path)
    for file in (older, path):
        try:
            opened = file.open("rb")
        except FileNotFoundError:
            # There may be no older one; and just after it was renamed, there is no other one.
            if file == path and not older.exists():
                raise
            continue
        with opened:
            for number, line in enumerate(opened, start=1):
                if not line.endswith(b"\n"):
                    break  # The coordinator may be writing it now.
                yield file, number, line


def hash_of(record: AuditRecord, previous: str) -> str:
    """Return the hash of a record after one with the hash ``previous``."""
    fields = {name: value for name, value in to_json(record).items() if name != "hash"}
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{previous}{canonical}".encode()).hexdigest()


def _fault(record: AuditRecord, number: int, previous: str) -> str:
    if record.number != number:
        return f"the record has number {record.number}"
    return "" if record.hash == hash_of(record, previous) else "the hash does not match the record and the one before"


def _write_all(handle: int, line: bytes) -> None:
    size = os.fstat(handle).st_size
    try:
        written = os.write(handle, line)
        if written != len(line):
            raise OSError(28, "No space left on device")
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(handle, size)
        raise


def _failed(path: Path, error: OSError) -> MeshrayError:
    return MeshrayError(
        "audit_failed", f"the audit log {path} cannot be written: {error.strerror}", hint="on the head: df, ls -l"
    )
