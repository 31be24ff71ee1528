"""The file of `meshray backup`: the files of a head, encrypted with a passphrase.

    meshray-backup 1\\n | length of the rest (8) | salt (16) | nonce (12) | AES-256-GCM of the content | SHA-256 (32)

The key comes from the passphrase by scrypt. The hash at the end only distinguishes a damaged file from a wrong
passphrase; AES-GCM detects every change.

>>> data = Backup(created=now, meshray=__version__, mesh="lab", node="head", files=files).sealed("passphrase")
>>> SealedBackup.parse(data).open("passphrase").mesh
'lab'
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from meshray.errors import MeshrayError

#: The largest file, bytes: AES-GCM takes the whole content at once.
MAX_BYTES = 2**30
_PREFIX = b"meshray-backup "
#: The version of the format that this meshray writes, and the newest one that it reads.
_VERSION = 1
_LENGTH_BYTES, _SALT_BYTES, _NONCE_BYTES, _HASH_BYTES, _TAG_BYTES = 8, 16, 12, 32, 16
_LONGEST_HEADER = 32
#: The cost of one guess of the passphrase: 128 MiB of memory. OWASP's recommendation for scrypt.
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 2**17, 8, 1


class Backup(msgspec.Struct, frozen=True):
    """The content. It contains every secret of the mesh.

    Attributes:
        created: unix seconds.
        meshray: the version that wrote it.
        mesh: the name of the mesh.
        node: the name of its head.
        files: the content of each file in the state folder, by name.
    """

    created: float
    meshray: str
    mesh: str
    node: str
    files: Mapping[str, bytes]

    def __repr__(self) -> str:
        return f"Backup({self.mesh}, {self.node}, {len(self.files)} files)"

    def sealed(self, passphrase: str) -> bytes:
        """Return the encrypted file. Raises MeshrayError ``backup_too_large``."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        content = zlib.compress(msgspec.msgpack.encode(self))
        if len(content) > MAX_BYTES:
            raise MeshrayError(
                "backup_too_large",
                f"the state of this head has {len(content) // 2**20} MiB compressed, and a backup at most "
                f"{MAX_BYTES // 2**20}",
                hint="ls -lS /var/lib/meshray",
            )
        salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
        length = _SALT_BYTES + _NONCE_BYTES + len(content) + _TAG_BYTES + _HASH_BYTES
        header = b"%s%d\n%s" % (_PREFIX, _VERSION, length.to_bytes(_LENGTH_BYTES, "big"))
        secret = AESGCM(_key(passphrase, salt)).encrypt(nonce, content, header)
        whole = header + salt + nonce + secret
        return whole + hashlib.sha256(whole).digest()


@dataclass(frozen=True)
class SealedBackup:
    """A file whose form is right, and which is not opened yet."""

    _header: bytes
    _salt: bytes
    _nonce: bytes
    _secret: bytes = field(repr=False)

    @classmethod
    def parse(cls, data: bytes) -> SealedBackup:
        """Return the file with this content.

        Raises:
            MeshrayError: ``not_a_backup``, ``backup_too_new``, ``backup_truncated``, or ``backup_damaged``.
        """
        line, newline, rest = data.partition(b"\n")
        number = line.removeprefix(_PREFIX)
        if not line.startswith(_PREFIX) or not newline or len(line) > _LONGEST_HEADER or not number.isdigit():
            raise MeshrayError(
                "not_a_backup", "this file was not written by `meshray backup`", hint="on the head: meshray backup FILE"
            )
        if int(number) > _VERSION:
            raise MeshrayError(
                "backup_too_new",
                f"the backup was written by a newer meshray (format {int(number)}, known here: {_VERSION})",
                hint="install that meshray or a newer one here",
            )
        if int(number) < _VERSION:
            raise _damaged()
        length = int.from_bytes(rest[:_LENGTH_BYTES], "big")
        body = rest[_LENGTH_BYTES:]
        if len(rest) < _LENGTH_BYTES or len(body) < length:
            raise MeshrayError(
                "backup_truncated",
                f"the backup is incomplete: its end is missing ({len(data)} bytes are here)",
                hint="copy the file again, or use another backup",
            )
        signed, digest = data[:-_HASH_BYTES], data[-_HASH_BYTES:]
        shortest = _SALT_BYTES + _NONCE_BYTES + _TAG_BYTES + _HASH_BYTES
        if len(body) != length or length < shortest or hashlib.sha256(signed).digest() != digest:
            raise _damaged()
        salt, nonce = body[:_SALT_BYTES], body[_SALT_BYTES : _SALT_BYTES + _NONCE_BYTES]
        header = data[: len(line) + 1 + _LENGTH_BYTES]
        return cls(header, salt, nonce, body[_SALT_BYTES + _NONCE_BYTES : -_HASH_BYTES])

    def open(self, passphrase: str) -> Backup:
        """Return the content.

        Raises:
            MeshrayError: ``passphrase_wrong``, or ``backup_damaged``.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        try:
            content = AESGCM(_key(passphrase, self._salt)).decrypt(self._nonce, self._secret, self._header)
        except InvalidTag:
            raise MeshrayError(
                "passphrase_wrong",
                "the passphrase does not open this backup",
                hint="the passphrase of the `meshray backup` that wrote the file",
            ) from None
        try:
            return msgspec.msgpack.decode(zlib.decompress(content), type=Backup)
        except (zlib.error, msgspec.MsgspecError):
            raise _damaged() from None


def _key(passphrase: str, salt: bytes) -> bytes:
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    # A variable may contain bytes that are not UTF-8.
    return Scrypt(salt=salt, length=32, n=_SCRYPT_N, r=_SCRYPT_R, p=_SCRYPT_P).derive(os.fsencode(passphrase))


def _damaged() -> MeshrayError:
    return MeshrayError(
        "backup_damaged", "the backup was changed after it was written", hint="copy the file again, or use another one"
    )
