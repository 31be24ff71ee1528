"""The lock of a mesh: a key that its admin keeps, in a file outside of the state folder.

    {"key": "<Ed25519, base64>", "epoch": 0}

The epoch is that of the last removal that this file signed: it exposes a coordinator that shows an older list.

>>> lock, is_new = LockFile.load_or_create(Path("/root/mesh.lock"), home)
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from msgspec import Struct, structs

from meshray.cli.app import App
from meshray.errors import RefusedError, UsageError
from meshray.home import Home
from meshray.linux.files import write_atomically
from meshray.model.attestation import Removals
from meshray.model.keys import SigningKey, VerifyKey
from meshray.model.meshmap import MeshInfo
from meshray.model.token import Token
from meshray.protocol.api import CreatedToken
from meshray.protocol.codec import WireError, convert, decode, encode
from meshray.protocol.fields import Counter, Key

_LARGEST = 4096


@dataclass(frozen=True)
class LockFile:
    """The key, and the epoch of its last signature."""

    path: Path
    key: SigningKey
    epoch: int = 0

    @classmethod
    def load_or_create(cls, path: Path, home: Home) -> tuple[LockFile, bool]:
        """Return the lock, and whether it was just created.

        Raises:
            UsageError: ``lock_in_state``, ``lock_open``, ``lock_damaged``, ``lock_unwritable``.
        """
        if path.absolute().resolve().is_relative_to(home.state.resolve()):
            raise UsageError(
                "lock_in_state",
                f"{path} is in the state folder: an attacker who takes over the coordinator would have it",
                hint="a file elsewhere, best on a removable medium",
            )
        lock = cls(path, SigningKey.generate())
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except FileExistsError:
            return cls.load(path), False
        except OSError as error:
            raise UsageError("lock_unwritable", f"{path} cannot be written: {error.strerror}", hint="--lock") from None
        with os.fdopen(handle, "w") as file:
            file.write(lock._text())
            file.flush()
            os.fsync(handle)
        return lock, True

    @classmethod
    def load(cls, path: Path) -> LockFile:
        """Read the file. Raises UsageError as `load_or_create` does, and ``lock_missing``."""
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            raise UsageError("lock_missing", f"there is no lock file {path}", hint="--lock FILE") from None
        except OSError as error:
            raise UsageError("lock_open", f"{path} cannot be read: {error.strerror}", hint="--lock FILE") from None
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077 or found.st_uid != os.geteuid():
                raise UsageError(
                    "lock_open", f"others may read {path}, or it is not yours", hint=f"chmod 600 {path}, as its owner"
                )
            text = os.read(handle, _LARGEST)
        finally:
            os.close(handle)
        try:
            kept = decode(text, _File)
            return cls(path, SigningKey.parse(kept.key), kept.epoch)
        except (UsageError, WireError):
            raise UsageError(
                "lock_damaged", f"{path} is not the lock of a mesh", hint="restore it from a backup"
            ) from None

    def require_of(self, lock: VerifyKey | None) -> None:
        """Raise RefusedError ``lock_other`` unless this is the lock of that mesh."""
        if lock is None:
            raise UsageError("no_lock", "this mesh has no lock", hint="leave out --lock: meshray init --lock makes one")
        if lock != self.key.public():
            raise RefusedError("lock_other", f"{self.path} is the lock of another mesh", hint="--lock FILE")

    def removing(self, mesh_id: str, shown: Removals | None, name: VerifyKey) -> tuple[LockFile, Removals]:
        """Return the file after signing one more removal, not yet written, and the signed removals.

        Raises:
            RefusedError: ``removals_hidden``: the coordinator shows fewer removals than this file has signed.
        """
        epoch = shown.epoch if shown is not None else 0
        if epoch < self.epoch or (shown is not None and not shown.is_signed(self.key.public(), mesh_id)):
            raise RefusedError(
                "removals_hidden",
                f"the coordinator shows the removals of epoch {epoch}, and this lock has signed those of {self.epoch}: "
                "its database is an older copy, or it was taken over",
                hint="restore a newer copy of coordinator.db; otherwise assume that the machine is compromised, "
                "and make a new mesh",
            )
        names = {*(shown.identities if shown is not None else ()), name}
        return replace(self, epoch=epoch + 1), Removals.sign(self.key, mesh_id, epoch + 1, names)

    def save(self) -> None:
        """Write the file. Raises UsageError ``lock_unwritable``."""
        try:
            write_atomically(self.path, self._text())
        except OSError as error:
            raise UsageError(
                "lock_unwritable", f"{self.path} cannot be written: {error.strerror}", hint="--lock FILE"
            ) from None

    def _text(self) -> str:
        return encode(_File(self.key.reveal(), self.epoch)) + "\n"


class _File(Struct):
    key: Key
    epoch: Counter


def open_lock(path: str | None) -> LockFile | None:
    """Return the lock in this file; None if no file was given. Raises as `LockFile.load` does."""
    return LockFile.load(Path(path)) if path is not None else None


def create_token(app: App, body: Mapping[str, object], lock: LockFile | None) -> CreatedToken:
    """Return the coordinator's answer to a request for a token; with a lock, the token is signed.

    Args:
        body: the body of POST /v1/tokens.

    Raises:
        MeshrayError: the coordinator's error.
        WireError: the answer contains no token.
    """
    if lock is None:
        return convert(app.api("POST", "/v1/tokens", body), CreatedToken)
    made = convert(app.api("POST", "/v1/tokens", {**body, "lock": str(lock.key.public())}), CreatedToken)
    token = Token.parse(made.token).signed(lock.key, convert(body.get("roles", ()), tuple[str, ...]), lock.epoch)
    return structs.replace(made, token=token.encode())


def lock_of(answer: Mapping[str, object]) -> VerifyKey | None:
    """Return the lock in the coordinator's list of nodes. Raises UsageError or WireError."""
    return VerifyKey.parse(convert(answer["lock"], str)) if "lock" in answer else None


def require_lock(token: Token, mesh: MeshInfo) -> None:
    """Raise RefusedError ``lock_other`` if the mesh that answered has another lock than the token's."""
    if token.endorser is not None and token.endorser.lock != mesh.lock:
        raise RefusedError(
            "lock_other",
            "the coordinator shows another lock than the one that signed the token: it may have been taken over",
            hint="ask the user who made the token",
        )
