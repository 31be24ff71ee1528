"""The store in SQLite. A change that was applied survives `kill -9` and a power cut.

>>> SqliteStore.create(path, settings).close()
>>> SqliteStore.open(path).load().map.revision
0
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from ipaddress import IPv4Address
from pathlib import Path

from meshray.coordinator.records import (
    DropEpoch,
    DropFreed,
    DropMember,
    DropPass,
    Freed,
    Member,
    PassRecord,
    PutEpoch,
    PutFreed,
    PutMember,
    PutPass,
    PutRemovals,
    PutRequirements,
    PutRestored,
    PutRevision,
    PutTimeline,
    PutToken,
    RowChange,
    SecretEpoch,
    Settings,
    TokenRecord,
)
from meshray.coordinator.registry import Registry
from meshray.coordinator.restore.lineage import Lineage
from meshray.errors import MeshrayError
from meshray.model.address import Endpoint, NodeName, OverlayNetwork
from meshray.model.attestation import Attestation, Removals
from meshray.model.keys import MeshSecret, PublicKey, VerifyKey
from meshray.model.meshmap import MeshInfo
from meshray.model.node import Node, Versions
from meshray.model.permission_level import Level
from meshray.model.ray_ports import ports_of_mesh
from meshray.protocol.api import Restored
from meshray.protocol.codec import convert, encode
from meshray.protocol.fields import DEFAULT_PATIENCE_S

#: One entry per schema version, applied in order; a released entry never changes.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        # The registry keeps these unique; the constraints guard against its errors.
        "CREATE TABLE node (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, ip TEXT NOT NULL UNIQUE,"
        " public_key TEXT NOT NULL UNIQUE, roles TEXT NOT NULL, advertised TEXT NOT NULL,"
        " ephemeral INTEGER NOT NULL, labels TEXT NOT NULL, versions TEXT NOT NULL, credential_hash TEXT NOT NULL,"
        " token_id TEXT NOT NULL, enrolled REAL NOT NULL, had_map INTEGER NOT NULL)",
        "CREATE TABLE token (id TEXT PRIMARY KEY, secret_hash TEXT NOT NULL, uses INTEGER NOT NULL,"
        " used INTEGER NOT NULL, expires REAL, ephemeral INTEGER NOT NULL, created REAL NOT NULL,"
        " revoked INTEGER NOT NULL)",
        "CREATE TABLE freed (ip TEXT PRIMARY KEY, at REAL NOT NULL)",
    ),
    ("ALTER TABLE node ADD COLUMN drained INTEGER NOT NULL DEFAULT 0",),
    ("CREATE TABLE timeline (id TEXT PRIMARY KEY, serial INTEGER NOT NULL)",),
    ("ALTER TABLE node ADD COLUMN down INTEGER NOT NULL DEFAULT 0",),
    # The endpoints that the map showed last; `advertised` contains only a user's.
    ("ALTER TABLE node ADD COLUMN endpoints TEXT NOT NULL DEFAULT '[]'",),
    # The mesh's current secrets are its first epoch. The agent itself reports whether it follows epochs.
    (
        "CREATE TABLE secret_epoch (number INTEGER PRIMARY KEY, mesh_secret TEXT NOT NULL, ray_token TEXT NOT NULL,"
        " began REAL NOT NULL, retired INTEGER NOT NULL)",
        "INSERT INTO secret_epoch SELECT 1, mesh.value, ray.value, 0, 0 FROM setting AS mesh, setting AS ray"
        " WHERE mesh.name = 'mesh_secret' AND ray.name = 'ray_token'",
        "DELETE FROM setting WHERE name IN ('mesh_secret', 'ray_token')",
        "ALTER TABLE node ADD COLUMN secret_epoch INTEGER NOT NULL DEFAULT 1",
        "ALTER TABLE node ADD COLUMN follows_epochs INTEGER NOT NULL DEFAULT 0",
    ),
    # The roles that a token grants. A token of an older release grants neither hub nor head.
    ("ALTER TABLE token ADD COLUMN roles TEXT NOT NULL DEFAULT '[]'",),
    # The identity's signature of the node's key, JSON; empty: none.
    ("ALTER TABLE node ADD COLUMN attestation TEXT NOT NULL DEFAULT ''",),
    # Tokens that are bound to a name, and the nodes that had free addresses. Before, `had_map` was stored for ephemeral
    # nodes only: the others count as nodes that came online, whose addresses cool down.
    (
        "ALTER TABLE token ADD COLUMN name TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE token ADD COLUMN replaces TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE freed ADD COLUMN name TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE freed ADD COLUMN failed INTEGER NOT NULL DEFAULT 0",
        "UPDATE node SET had_map = 1 WHERE ephemeral = 0",
    ),
    # The passes of the coordinator's page.
    (
        "CREATE TABLE pass (id TEXT PRIMARY KEY, name TEXT NOT NULL, secret_hash TEXT NOT NULL, level INTEGER NOT NULL,"
        " created REAL NOT NULL, expires REAL NOT NULL, used REAL, session_hash TEXT NOT NULL, revoked REAL)",
    ),
)
#: A coordinator that is ending still holds the file, milliseconds.
LOCK_WAIT_MS = 3000


class SqliteStore:
    """One open database. It must not be used by two threads at the same time."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path

    @classmethod
    def create(cls, path: Path, settings: Settings) -> SqliteStore:
        """Create a database that only its owner may read. Raises FileExistsError, MeshrayError store_unwritable."""
        # SQLite gives its write-ahead log files the mode of the database.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        store = cls._connect(path)
        store._migrate(0)
        values = {
            "mesh_id": settings.mesh.id,
            "mesh_name": settings.mesh.name,
            "network": str(settings.mesh.network),
            "patience_s": str(settings.mesh.patience_s),
            "port": str(settings.port),
            "revision": "0",
            **({"lock": str(settings.mesh.lock)} if settings.mesh.lock is not None else {}),
            **({"ray_ports": json.dumps(dict(settings.mesh.ray_ports))} if settings.mesh.ray_ports else {}),
        }
        with store._reporting_damage(), store._transaction() as connection:
            connection.executemany("INSERT INTO setting VALUES (?, ?)", values.items())
        return store

    @classmethod
    def write(cls, path: Path, settings: Settings, rows: Sequence[RowChange]) -> None:
        """Create a database with these rows. It gets its name only when it is complete."""
        unfinished = path.with_name(f"{path.name}.new")
        leftovers = [unfinished, *(unfinished.with_name(unfinished.name + end) for end in ("-wal", "-shm"))]
        for file in leftovers:
            file.unlink(missing_ok=True)
        try:
            with closing(cls.create(unfinished, settings)) as store:
                store.apply(rows)
            unfinished.rename(path)
        except BaseException:
            for file in leftovers:
                file.unlink(missing_ok=True)
            raise

    @classmethod
    def open(cls, path: Path) -> SqliteStore:
        """Open an existing database, migrated to the newest schema.

        Raises:
            MeshrayError: no_mesh, store_corrupt, store_locked, store_too_new. The file is unchanged.
        """
        if not path.exists():
            raise MeshrayError("no_mesh", f"there is no mesh here: {path} does not exist", hint="meshray init")
        store = cls._connect(path)
        try:
            store._check()
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def _connect(cls, path: Path) -> SqliteStore:
        # The ledger uses the connection from its own thread, one call after another.
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        store = cls(connection, path)
        try:
            with store._reporting_damage():
                connection.execute(f"PRAGMA busy_timeout = {LOCK_WAIT_MS}")
                # Two coordinators on one file would assign one address twice.
                connection.execute("PRAGMA locking_mode = EXCLUSIVE")
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
        except BaseException:
            connection.close()
            raise
        return store

    def _check(self) -> None:
        with self._reporting_damage():
            found = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if found != "ok":
            raise self._damaged(str(found))
        if version == 0:
            raise self._damaged("it holds no mesh")
        if version > len(MIGRATIONS):
            raise MeshrayError(
                "store_too_new",
                f"{self._path} was written by a newer meshray (schema {version}, known here: {len(MIGRATIONS)})",
                hint="install the newer meshray again",
            )
        self._migrate(version)

    def _migrate(self, version: int) -> None:
        for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
            with self._reporting_damage(), self._transaction() as connection:
                for statement in statements:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number}")

    def settings(self) -> Settings:
        """Return the settings. Raises MeshrayError store_corrupt."""
        with self._reporting_damage():
            values = dict(self._connection.execute("SELECT name, value FROM setting").fetchall())
            network = OverlayNetwork.parse(values["network"])
            return Settings(
                # A database of an older release has no patience.
                MeshInfo(
                    values["mesh_id"],
                    values["mesh_name"],
                    network,
                    int(values.get("patience_s", DEFAULT_PATIENCE_S)),
                    VerifyKey.parse(values["lock"]) if "lock" in values else None,
                    ports_of_mesh(json.loads(values.get("ray_ports", "{}"))),
                ),
                int(values["port"]),
            )

    def load(self) -> Registry:
        """Return everything that was applied. Raises MeshrayError store_corrupt."""
        mesh = self.settings().mesh
        with self._reporting_damage():
            query = self._connection.execute
            members = [_member(row) for row in query("SELECT * FROM node ORDER BY enrolled")]
            tokens = [_token(row) for row in query("SELECT * FROM token ORDER BY created")]
            freed = {
                IPv4Address(ip): Freed(float(at), str(name), bool(failed))
                for ip, at, name, failed in query("SELECT ip, at, name, failed FROM freed")
            }
            reserved = int(query("SELECT value FROM setting WHERE name = 'revision'").fetchone()[0])
            timelines = {str(name): int(serial) for name, serial in query("SELECT id, serial FROM timeline")}
            restored = query("SELECT value FROM setting WHERE name = 'restored'").fetchone()
            requirements = query("SELECT value FROM setting WHERE name = 'requirements'").fetchone()
            epochs = tuple(
                SecretEpoch(int(number), MeshSecret.parse(secret), str(token), float(began), bool(retired))
                for number, secret, token, began, retired in query("SELECT * FROM secret_epoch ORDER BY number")
            )
            removals = query("SELECT value FROM setting WHERE name = 'removals'").fetchone()
            passes = [_pass(row) for row in query("SELECT * FROM pass ORDER BY created")]
            lineage = Lineage(
                secrets.token_hex(8), timelines, convert(json.loads(restored[0]), Restored) if restored else None
            )
        return Registry(
            mesh,
            {member.node.id: member for member in members},
            {token.id: token for token in tokens},
            freed,
            revision=reserved,
            reserved=reserved,
            requirements=str(requirements[0]) if requirements else "",
            lineage=lineage,
            epochs=epochs,
            removals=Removals.from_json(json.loads(removals[0])) if removals else None,
            passes={record.id: record for record in passes},
        )

    def apply(self, changes: Sequence[RowChange]) -> None:
        """Apply all rows or none. Raises MeshrayError store_failed."""
        try:
            with self._transaction() as connection:
                for change in changes:
                    _write(connection, change)
        except sqlite3.Error as error:
            raise MeshrayError(
                "store_failed",
                f"the coordinator could not write {self._path}: {error}",
                hint="is the disk full? on the head: meshray logs",
            ) from error

    def copy(self) -> Path:
        """Write a copy beside the database, for its owner alone; return its file. Raises MeshrayError store_failed."""
        file = self._path.with_name(f".{self._path.name}.{secrets.token_hex(8)}")
        try:
            os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            self._connection.execute("VACUUM INTO ?", (str(file),))
        except (OSError, sqlite3.Error) as error:
            file.unlink(missing_ok=True)
            raise MeshrayError("store_failed", f"{self._path} cannot be copied: {error}", hint="df") from error
        return file

    def close(self) -> None:
        """Merge the write-ahead log into the database."""
        self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _reporting_damage(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise MeshrayError(
                    "store_locked",
                    f"{self._path} is in use by another coordinator",
                    hint="meshray down",
                ) from error
            if "full" in str(error) or "readonly" in str(error):
                raise MeshrayError(
                    "store_unwritable", f"{self._path}: {error}", hint="make room on that disk"
                ) from error
            raise self._damaged(str(error)) from error
        except (sqlite3.Error, ValueError, KeyError, TypeError, MeshrayError) as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, cause: str) -> MeshrayError:
        return MeshrayError(
            "store_corrupt",
            f"{self._path} is damaged and was left as it is: {cause}",
            hint="restore it from a backup; or move it away and start a new mesh with meshray init",
        )


def _member(row: tuple[object, ...]) -> Member:
    texts = [str(item) for item in row]
    node = Node(
        id=texts[0],
        name=NodeName.parse(texts[1]),
        ip=IPv4Address(texts[2]),
        public_key=PublicKey.parse(texts[3]),
        roles=frozenset(json.loads(texts[4])),
        endpoints=_endpoints(texts[15]) or _endpoints(texts[5]),
        ephemeral=bool(row[6]),
        drained=bool(row[13]),
        down=bool(row[14]),
        labels=json.loads(texts[7]),
        versions=Versions.from_json(json.loads(texts[8])),
        secret_epoch=int(texts[16]),
        attestation=Attestation.from_json(json.loads(texts[18])) if texts[18] else None,
    )
    return Member(
        node,
        texts[9],
        texts[10],
        _endpoints(texts[5]),
        float(texts[11]),
        bool(row[12]),
        follows_epochs=bool(row[17]),
    )


def _endpoints(text: str) -> tuple[Endpoint, ...]:
    return Endpoint.parse_readable(json.loads(text))


def _token(row: tuple[object, ...]) -> TokenRecord:
    token_id, secret_hash, uses, used, expires, ephemeral, created, revoked, roles, name, replaces = row
    return TokenRecord(
        str(token_id),
        str(secret_hash),
        int(str(uses)),
        int(str(used)),
        None if expires is None else float(str(expires)),
        bool(ephemeral),
        float(str(created)),
        bool(revoked),
        frozenset(json.loads(str(roles))),
        NodeName(str(name)) if name else None,
        str(replaces),
    )


def _pass(row: tuple[object, ...]) -> PassRecord:
    pass_id, name, secret_hash, level, created, expires, used, session_hash, revoked = row
    return PassRecord(
        str(pass_id),
        str(name),
        str(secret_hash),
        Level(int(str(level))),
        float(str(created)),
        float(str(expires)),
        None if used is None else float(str(used)),
        str(session_hash),
        None if revoked is None else float(str(revoked)),
    )


def _put_member(connection: sqlite3.Connection, change: PutMember) -> None:
    member, node = change.member, change.member.node
    values = (
        node.id,
        node.name,
        str(node.ip),
        str(node.public_key),
        json.dumps(sorted(node.roles)),
        json.dumps([str(endpoint) for endpoint in member.advertised]),
        int(node.ephemeral),
        json.dumps(dict(node.labels)),
        json.dumps(node.versions.to_json()),
        member.credential_hash,
        member.token_id,
        member.enrolled,
        int(member.had_map),
        int(node.drained),
        int(node.down),
        json.dumps([str(endpoint) for endpoint in node.endpoints]),
        node.secret_epoch,
        int(member.follows_epochs),
        json.dumps(node.attestation.to_json()) if node.attestation is not None else "",
    )
    connection.execute("DELETE FROM node WHERE id = ?", (node.id,))
    connection.execute(f"INSERT INTO node VALUES ({', '.join('?' * len(values))})", values)  # noqa: S608 - only marks


def _put_token(connection: sqlite3.Connection, change: PutToken) -> None:
    token = change.token
    values = (
        token.id,
        token.secret_hash,
        token.uses,
        token.used,
        token.expires,
        int(token.ephemeral),
        token.created,
        int(token.revoked),
        json.dumps(sorted(token.roles)),
        token.name or "",
        token.replaces,
    )
    connection.execute(f"REPLACE INTO token VALUES ({', '.join('?' * len(values))})", values)  # noqa: S608 - only marks


def _write_pass(connection: sqlite3.Connection, change: PutPass | DropPass) -> None:
    if isinstance(change, DropPass):
        connection.execute("DELETE FROM pass WHERE id = ?", (change.pass_id,))
        return
    record = change.record
    values = (
        *(record.id, record.name, record.secret_hash, int(record.level), record.created, record.expires),
        *(record.used, record.session_hash, record.revoked),
    )
    connection.execute("REPLACE INTO pass VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)


def _write(connection: sqlite3.Connection, change: RowChange) -> None:
    if isinstance(change, PutMember):
        _put_member(connection, change)
    elif isinstance(change, PutToken):
        _put_token(connection, change)
    elif isinstance(change, DropMember):
        connection.execute("DELETE FROM node WHERE id = ?", (change.node_id,))
    elif isinstance(change, PutFreed):
        freed = change.freed
        values = (str(change.address), freed.at, freed.name, int(freed.failed))
        connection.execute("REPLACE INTO freed VALUES (?, ?, ?, ?)", values)
    elif isinstance(change, DropFreed):
        connection.execute("DELETE FROM freed WHERE ip = ?", (str(change.address),))
    elif isinstance(change, PutTimeline):
        connection.execute("REPLACE INTO timeline VALUES (?, ?)", (change.timeline, change.serial))
    elif isinstance(change, (PutEpoch, DropEpoch)):
        _write_epoch(connection, change)
    elif isinstance(change, (PutPass, DropPass)):
        _write_pass(connection, change)
    else:
        _write_setting(connection, change)


def _write_epoch(connection: sqlite3.Connection, change: PutEpoch | DropEpoch) -> None:
    if isinstance(change, DropEpoch):
        connection.execute("DELETE FROM secret_epoch WHERE number = ?", (change.number,))
        return
    epoch = change.epoch
    values = (epoch.number, epoch.mesh_secret.reveal(), epoch.ray_token, epoch.began, int(epoch.retired))
    connection.execute("REPLACE INTO secret_epoch VALUES (?, ?, ?, ?, ?)", values)


def _write_setting(
    connection: sqlite3.Connection, change: PutRestored | PutRequirements | PutRevision | PutRemovals
) -> None:
    if isinstance(change, PutRestored):
        connection.execute("REPLACE INTO setting VALUES ('restored', ?)", (encode(change.restored),))
    elif isinstance(change, PutRequirements):
        # It is a setting and not a table: an older meshray ignores it and can still open the file.
        connection.execute("REPLACE INTO setting VALUES ('requirements', ?)", (change.requirements,))
    elif isinstance(change, PutRemovals):
        connection.execute("REPLACE INTO setting VALUES ('removals', ?)", (json.dumps(change.removals.to_json()),))
    else:
        connection.execute("UPDATE setting SET value = ? WHERE name = 'revision'", (str(change.reserved),))
