"""The token: what a person pastes. Where the coordinator is, how to recognise it, the right to enrol.

    meshray1_<base64url of: checksum (4 bytes) + JSON [mesh id, [endpoints], certificate SHA-256, token id, secret]>

The checksum tells a token that was cut short or mistyped from one that is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import secrets
from dataclasses import dataclass, field

from meshray.errors import RefusedError, UsageError
from meshray.model.address import Endpoint

PREFIX = "meshray1_"
#: Far above any real token (a coordinator with 20 addresses makes 700 characters).
MAX_TOKEN_CHARACTERS = 8192
_CHECKSUM_BYTES = 4
_SECRET_BYTES = 24


@dataclass(frozen=True)
class Token:
    """The right to enrol in one mesh.

    Attributes:
        mesh_id: which mesh; 16 hexadecimal digits.
        coordinators: every address by which the coordinator may be reached; join tries all at once.
        fingerprint: SHA-256 of the coordinator's certificate; nothing else is trusted.
        token_id: public name of the token, for ``token list`` and ``token revoke``.
        secret: the right itself; the coordinator stores only its hash.
    """

    mesh_id: str
    coordinators: tuple[Endpoint, ...]
    fingerprint: bytes
    token_id: str
    secret: str = field(repr=False)

    def encode(self) -> str:
        """The text that a person pastes."""
        value = [
            self.mesh_id,
            [str(endpoint) for endpoint in self.coordinators],
            self.fingerprint.hex(),
            self.token_id,
            self.secret,
        ]
        payload = json.dumps(value, separators=(",", ":")).encode()
        return PREFIX + base64.urlsafe_b64encode(_checksum(payload) + payload).rstrip(b"=").decode()

    @classmethod
    def parse(cls, text: str) -> Token:
        """Reads a pasted token; white space and line breaks in it are forgiven.

        Raises:
            UsageError: the text is no token at all.
            RefusedError: it was one, but it was cut short or changed.
        """
        compact = "".join(text[: MAX_TOKEN_CHARACTERS * 2].split())
        if not compact.startswith(PREFIX) or len(compact) > MAX_TOKEN_CHARACTERS:
            raise UsageError(
                "not_a_token",
                f"this is no meshray token: it does not start with {PREFIX}",
                hint="copy the whole line that `meshray token create` printed on the head",
            )
        damaged = RefusedError(
            "token_damaged",
            "the token is damaged: it was cut short or changed on its way",
            hint="copy the whole line that `meshray token create` printed on the head",
        )
        body = compact[len(PREFIX) :]
        try:
            raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        except (binascii.Error, ValueError):
            raise damaged from None
        checksum, payload = raw[:_CHECKSUM_BYTES], raw[_CHECKSUM_BYTES:]
        if checksum != _checksum(payload):
            raise damaged
        try:
            mesh_id, coordinators, fingerprint, token_id, secret = json.loads(payload)
            token = cls(
                str(mesh_id),
                tuple(Endpoint.parse(str(item)) for item in coordinators),
                bytes.fromhex(fingerprint),
                str(token_id),
                str(secret),
            )
        except (ValueError, TypeError, RecursionError, UsageError):
            raise damaged from None
        if len(token.fingerprint) != hashlib.sha256().digest_size or not token.coordinators:
            raise damaged
        return token


def new_token_id() -> str:
    """A token's public name: 8 hexadecimal digits."""
    return secrets.token_hex(4)


def new_secret() -> str:
    """192 random bits: beyond guessing, so that a plain hash protects it at rest."""
    return secrets.token_urlsafe(_SECRET_BYTES)


def hash_secret(secret: str) -> str:
    """What is stored in place of a secret. A fast hash is enough for 192 random bits."""
    return hashlib.sha256(b"meshray secret v1:" + secret.encode()).hexdigest()


def _checksum(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()[:_CHECKSUM_BYTES]
