"""What a backup of the head contains, and how it becomes the state of another machine.

>>> backup = collect(app, home)
>>> with staged(home, backup) as stage:
...     adapt(stage, ...)
...     put_in_place(home, stage)

All files are prepared in a folder of the state folder. The enrolment is put in its place last: a machine without it is
not a node.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from meshray import __version__
from meshray.cli.app import App
from meshray.errors import MeshrayError, UnreachableError
from meshray.home import Home
from meshray.linux.files import sync
from meshray.node.backup_file import Backup

if TYPE_CHECKING:
    from meshray.coordinator.records import Member
    from meshray.model.address import Endpoint
    from meshray.model.node import Versions
    from meshray.node.enrolment import Enrolment

#: The counters that the old head may have used for signatures since the backup.
_SKIPPED_COUNTERS = 1_000_000


def _files(home: Home) -> tuple[Path, ...]:
    """Return the files of a backup in the order in which they are put in their places.

    The map and the logs are left out: the coordinator's database has the one, and the others are of no use elsewhere.
    """
    return (
        home.certificate,
        home.certificate_key,
        home.identity_key,
        home.identity,
        home.pins,
        home.private_key,
        home.pending_key,
        home.older_audit_log,
        home.audit_log,
        home.database,
        home.enrolment,
    )


#: Files that only some nodes have.
_OPTIONAL = {"identity.json", "pins.json", "private.key.next", "audit.log", "audit.log.1"}


def collect(app: App, home: Home, enrolment: Enrolment) -> Backup:
    """Return the state of this head, whether its agent runs or not.

    Raises:
        MeshrayError: ``state_damaged`` if a file is missing or cannot be read; ``store_failed``; ``store_corrupt``.
    """
    from meshray.coordinator.audit_log import read_log

    for leftover in home.state.glob(f".{home.database.name}.*"):
        leftover.unlink(missing_ok=True)
    # The database comes first: keys and enrolments newer than the database are reported to it, older ones are lost.
    copy = _copy_of_database(app, home, enrolment)
    try:
        content = {home.database.name: copy.read_bytes()}
    finally:
        copy.unlink(missing_ok=True)
    for path in _files(home):
        if path == home.database:
            continue
        try:
            content[path.name] = path.read_bytes()
        except FileNotFoundError:
            if path.name not in _OPTIONAL:
                raise _missing(path.name) from None
    # The coordinator may be writing a record now.
    log = content.get(home.audit_log.name, b"")
    content[home.audit_log.name] = log[: log.rfind(b"\n") + 1]
    if home.audit_log.exists() and (broken := read_log(home.audit_log).broken):
        app.warn(f"the audit log was changed, and the backup contains it as it is: {broken}")
    return Backup(time.time(), __version__, _mesh_name(home), enrolment.name, content)


def _copy_of_database(app: App, home: Home, enrolment: Enrolment) -> Path:
    from meshray.coordinator.audit_log import AuditLog
    from meshray.coordinator.store import open_store

    try:
        name = str(app.api("POST", "/v1/backup")["file"])
    except UnreachableError:
        store = open_store(home)
        try:
            path = store.copy()
        finally:
            store.close()
        AuditLog.open(home.audit_log, time.time).record("backup_created", by=f"root on {enrolment.name}")
        return path
    if "/" in name or not name.startswith(f".{home.database.name}."):
        raise MeshrayError(
            "bad_answer", "the coordinator answered with the name of another file", hint="meshray doctor"
        )
    return home.state / name


def _mesh_name(home: Home) -> str:
    from meshray.node.map_cache import load_map

    return str(load_map(home).mesh.name)


def remove_interrupted(home: Home) -> None:
    """Remove the files of a restore that was killed before the enrolment was in its place."""
    if home.restoring.is_dir() and not home.enrolment.exists():
        for path in _files(home):
            path.unlink(missing_ok=True)
    shutil.rmtree(home.restoring, ignore_errors=True)


@contextlib.contextmanager
def staged(home: Home, backup: Backup) -> Iterator[Home]:
    """Write the files of the backup into a folder in the state folder; it is removed at the end of the block.

    Raises:
        MeshrayError: ``backup_incomplete``.
    """
    home.restoring.mkdir(mode=0o700)
    stage = Home(home.restoring, home.run)
    try:
        for path in _files(stage):
            if (content := backup.files.get(path.name)) is not None:
                with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                    file.write(content)
            elif path.name not in _OPTIONAL:
                raise _missing(path.name)
        yield stage
    finally:
        shutil.rmtree(home.restoring, ignore_errors=True)


def put_in_place(home: Home, stage: Home) -> None:
    """Move the prepared files into the state folder, the enrolment last. All are on the disk when it returns."""
    for source, target in zip(_files(stage), _files(home), strict=True):
        if source.exists():
            sync(source)
            source.rename(target)
            sync(home.state)


def adapt(
    stage: Home, enrolment: Enrolment, versions: Versions | None, advertised: tuple[Endpoint, ...], backup: Backup
) -> Member:
    """Make the prepared state that of this machine; return the head's member.

    Args:
        enrolment: the enrolment for this machine.
        versions: the versions of this machine's programs; None: they stay unknown, without Ray.
        advertised: the addresses that replace those that the user advertised on the old machine; empty: unchanged.
    """
    from meshray.coordinator.audit_log import AuditLog

    enrolment.save(stage)
    member = asyncio.run(_changed(stage, enrolment, versions, advertised))
    created = datetime.fromtimestamp(backup.created, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    AuditLog.open(stage.audit_log, time.time).record(
        "mesh_restored",
        by=f"root on {enrolment.name}",
        node=enrolment.name,
        host=socket.gethostname(),
        created=created,
        meshray=backup.meshray,
    )
    return member


async def _changed(
    stage: Home, enrolment: Enrolment, versions: Versions | None, advertised: tuple[Endpoint, ...]
) -> Member:
    """Change the head's row of the prepared database, as a run of the coordinator does."""
    from meshray.coordinator.registry_writer import Ledger
    from meshray.coordinator.store import open_store
    from meshray.node.enrolment import load_private_key
    from meshray.node.identity import Identity

    store = open_store(stage)
    ledger = Ledger(store.load(), store.apply, on_change=lambda: None)
    try:
        member = ledger.registry.member(enrolment.node_id)
        # Nodes that saw a newer key of the old head accept this one only with a higher counter.
        identity, key = Identity.load_or_create(stage, enrolment.mesh_id), load_private_key(stage).public()
        identity.skip(_SKIPPED_COUNTERS)
        node = replace(
            member.node,
            public_key=key,
            attestation=identity.sign(key, member.node.ip),
            versions=versions or member.node.versions,
            endpoints=advertised or member.node.endpoints,
        )
        changed = replace(member, node=node, advertised=advertised or member.advertised)
        return await ledger.change(lambda registry: registry.put(changed))
    finally:
        await ledger.close()
        store.close()


def _missing(name: str) -> MeshrayError:
    return MeshrayError("state_damaged", f"the state has no {name}", hint="meshray doctor; or use another backup")
