"""The token that a user pastes: the coordinator's addresses, its certificate, and the right to enrol.

    meshray1_<base64url of: checksum (4 bytes) + JSON [mesh id, [endpoints], certificate SHA-256, token id, secret]>

In a mesh with a lock the list has one more item, which is never sent to the coordinator: {lock, key, grant}. The
joining machine signs its own identity with the token's key (`meshray.model.attestation`).

The checksum distinguishes a truncated or mistyped token from one that is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import secrets
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from meshray.errors import RefusedError, UsageError
from meshray.model.address import Endpoint
from meshray.model.attestation import Chain, Grant
from meshray.model.keys import SigningKey, VerifyKey
from meshray.protocol.codec import WireError, convert, to_json
from meshray.protocol.forms import EndorserForm

PREFIX = "meshray1_"
#: Far above any real token (a coordinator with 20 addresses gives 700 characters).
MAX_TOKEN_CHARACTERS = 8192
_CHECKSUM_BYTES = 4
_QUOTES = "\"'`\u2018\u2019\u201c\u201d"
_SECRET_BYTES = 24


@dataclass(frozen=True)
class Endorser:
    """The part of a token that the lock signed.

    Attributes:
        lock: the lock that signed.
        key: the token's key, whose holder admits identities.
    """

    lock: VerifyKey
    key: SigningKey
    grant: Grant

    def to_json(self) -> dict[str, object]:
        """Return the JSON form; it contains a secret."""
        return to_json(EndorserForm(str(self.lock), self.key.reveal(), self.grant.form()))

    @classmethod
    def from_json(cls, value: object) -> Endorser:
        """Return the value of its JSON form. Raises UsageError or WireError."""
        form = convert(value, EndorserForm)
        return cls(VerifyKey.parse(form.lock), SigningKey.parse(form.key), Grant.of(form.grant))


@dataclass(frozen=True)
class Token:
    """The right to enrol in one mesh.

    Attributes:
        mesh_id: the mesh; 16 hexadecimal digits.
        coordinators: every possible address of the coordinator; join tries all at once.
        fingerprint: SHA-256 of the coordinator's certificate; nothing else is trusted.
        token_id: public name of the token, for ``token list`` and ``token revoke``.
        secret: the right itself; the coordinator stores only its hash.
        endorser: the part signed by the lock; None: the mesh has none, or the token was created without it.
    """

    mesh_id: str
    coordinators: tuple[Endpoint, ...]
    fingerprint: bytes
    token_id: str
    secret: str = field(repr=False)
    endorser: Endorser | None = field(default=None, repr=False)

    def signed(self, lock: SigningKey, roles: Iterable[str], epoch: int) -> Token:
        """Return the token signed by the lock.

        Args:
            roles: the roles that machines which join with it may have.
            epoch: the epoch of the removals that the lock has signed so far.
        """
        key = SigningKey.generate()
        grant = Grant.sign(lock, self.mesh_id, key.public(), roles, epoch)
        return replace(self, endorser=Endorser(lock.public(), key, grant))

    def endorse(self, identity: VerifyKey) -> Chain:
        """Return the chain from the lock to this identity. Raises ValueError if the lock did not sign the token."""
        if self.endorser is None:
            raise ValueError("the token is not signed by a lock")
        return Chain.sign(self.endorser.key, self.endorser.grant, self.mesh_id, identity)

    def encode(self) -> str:
        """Return the text that a user pastes."""
        value: list[object] = [
            self.mesh_id,
            [str(endpoint) for endpoint in self.coordinators],
            self.fingerprint.hex(),
            self.token_id,
            self.secret,
            *([self.endorser.to_json()] if self.endorser is not None else []),
        ]
        payload = json.dumps(value, separators=(",", ":")).encode()
        return PREFIX + base64.urlsafe_b64encode(_checksum(payload) + payload).rstrip(b"=").decode()

    @classmethod
    def parse(cls, text: str) -> Token:
        """Parse a pasted token.

        White space and line breaks in it, quotes, invisible characters, and the command line around it are ignored.

        Raises:
            UsageError: the text is not a token.
            RefusedError: it is a truncated or changed token.
        """
        compact = _compact(text[: MAX_TOKEN_CHARACTERS * 2])
        if not compact.startswith(PREFIX) or len(compact) > MAX_TOKEN_CHARACTERS:
            raise UsageError(
                "not_a_token",
                f"this is not a meshray token: it does not start with {PREFIX}",
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
            mesh_id, coordinators, fingerprint, token_id, secret, *more = json.loads(payload)
            token = cls(
                str(mesh_id),
                tuple(Endpoint.parse(str(item)) for item in coordinators),
                bytes.fromhex(fingerprint),
                str(token_id),
                str(secret),
                Endorser.from_json(more[0]) if more else None,
            )
        except (ValueError, TypeError, RecursionError, UsageError, WireError):
            raise damaged from None
        if len(token.fingerprint) != hashlib.sha256().digest_size or not token.coordinators:
            raise damaged
        return token


def _compact(text: str) -> str:
    """Return the token in the pasted text. A mail program may add quotes, byte order marks and zero-width spaces."""
    visible = "".join(char for char in text if unicodedata.category(char) != "Cf" and char not in _QUOTES)
    before, prefix, rest = visible.partition(PREFIX)
    if not prefix or not before.strip():
        return "".join(visible.split())
    # In a command line the token ends with its word.
    return prefix + next(iter(rest.split()), "")


def new_token_id() -> str:
    """Return a token's public name: 8 hexadecimal digits."""
    return secrets.token_hex(4)


def new_secret() -> str:
    """Return 192 random bits: they cannot be guessed, so a plain hash protects them at rest."""
    return secrets.token_urlsafe(_SECRET_BYTES)


def hash_secret(secret: str) -> str:
    """Return what is stored in place of a secret. A fast hash is sufficient for 192 random bits."""
    return hashlib.sha256(b"meshray secret v1:" + secret.encode()).hexdigest()


def _checksum(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()[:_CHECKSUM_BYTES]


def require_one_node(name: str | None, *, uses: int, replaces: bool) -> None:
    """Require that a token which is bound to a node's name is for one node.

    Raises:
        UsageError: ``name_with_uses``: it has another number of uses; ``replace_without_name``.
    """
    if name is None and replaces:
        raise UsageError(
            "replace_without_name",
            "--replace needs the name of the node to replace",
            hint="meshray token create --name NODE --replace",
        )
    if name is not None and uses != 1:
        raise UsageError(
            "name_with_uses",
            f"a token for the node {name} has exactly one use",
            hint="leave out --uses, or --name",
        )
