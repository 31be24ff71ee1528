"""Keys as types, for WireGuard and for signatures: 32 bytes, written as 44 characters of base64.

>>> private = PrivateKey.generate()
>>> PublicKey.parse(str(private.public())) == private.public()
True
>>> private
PrivateKey(…)
"""

from __future__ import annotations

import base64
import binascii
import secrets
from dataclasses import dataclass
from typing import TypeVar

from meshray.errors import UsageError

KEY_BYTES = 32

_K = TypeVar("_K", bound="_Key")


@dataclass(frozen=True, order=True, repr=False)
class _Key:
    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != KEY_BYTES:
            raise UsageError("bad_key", f"a WireGuard key has {KEY_BYTES} bytes, not {len(self.raw)}")

    @classmethod
    def parse(cls: type[_K], text: str) -> _K:
        """Parse the base64 form that ``wg`` prints.

        Raises:
            UsageError: the text is not base64 of 32 bytes.
        """
        try:
            return cls(base64.b64decode(text.encode("ascii"), validate=True))
        except (binascii.Error, UnicodeEncodeError):
            raise UsageError("bad_key", "not a WireGuard key: not base64 of 32 bytes") from None

    @classmethod
    def from_hex(cls: type[_K], text: str) -> _K:
        """Parse the hexadecimal form of WireGuard's UAPI."""
        return cls(bytes.fromhex(text))

    @property
    def hex(self) -> str:
        """The form of WireGuard's UAPI."""
        return self.raw.hex()


class _PublicKey(_Key):
    """A key that may be shown to everyone."""

    def __str__(self) -> str:
        return base64.b64encode(self.raw).decode("ascii")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self})"


class PublicKey(_PublicKey):
    """The name of a WireGuard peer."""


class VerifyKey(_PublicKey):
    """The public half of a `SigningKey`."""

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Return whether the private half made this Ed25519 signature (RFC 8032) of the message."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


class _SecretKey(_Key):
    """A key that no log line, error or repr may show; a call of ``reveal`` makes its use visible in the code."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"

    __str__ = __repr__

    def reveal(self) -> str:
        """Return the base64 form, for the device and for files of mode 0600."""
        return base64.b64encode(self.raw).decode("ascii")


class PrivateKey(_SecretKey):
    """The half of a WireGuard key that never leaves its node."""

    @classmethod
    def generate(cls) -> PrivateKey:
        """Return a new random key, clamped as Curve25519 requires (RFC 7748, section 5)."""
        raw = bytearray(secrets.token_bytes(KEY_BYTES))
        raw[0] &= 248
        raw[31] = (raw[31] & 127) | 64
        return cls(bytes(raw))

    def public(self) -> PublicKey:
        """Return the public half."""
        # Importing cryptography takes 40 ms, and most commands never create a key.
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        return PublicKey(X25519PrivateKey.from_private_bytes(self.raw).public_key().public_bytes_raw())

    def shared_with(self, other: PublicKey) -> bytes:
        """Return X25519's shared secret (RFC 7748). Raises ValueError if ``other`` is a point of low order."""
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

        return X25519PrivateKey.from_private_bytes(self.raw).exchange(X25519PublicKey.from_public_bytes(other.raw))


class SigningKey(_SecretKey):
    """An Ed25519 key: a node's identity, a token's key, or the lock of a mesh."""

    @classmethod
    def generate(cls) -> SigningKey:
        """Return a new random key."""
        return cls(secrets.token_bytes(KEY_BYTES))

    def public(self) -> VerifyKey:
        """Return the public half."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return VerifyKey(Ed25519PrivateKey.from_private_bytes(self.raw).public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """Return the signature of the message, 64 bytes."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Ed25519PrivateKey.from_private_bytes(self.raw).sign(message)


class PresharedKey(_SecretKey):
    """The second, symmetric key of a pair (WireGuard's defence against a broken Curve25519)."""


class MeshSecret(_SecretKey):
    """The secret of all members, from which each pair derives its preshared key."""

    @classmethod
    def generate(cls) -> MeshSecret:
        """Return a new random secret."""
        return cls(secrets.token_bytes(KEY_BYTES))

    def preshared_key(self, one: PublicKey, other: PublicKey) -> PresharedKey:
        """Return the pair's key: HKDF-SHA256 (RFC 5869) over this secret and both public keys.

        The keys are sorted, so that both sides compute the same key without a message.
        """
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        first, second = sorted((one, other))
        info = b"meshray preshared key v1" + first.raw + second.raw
        return PresharedKey(HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(self.raw))
