"""The signatures of a node's identity, of a token and of a mesh's lock. The map contains them with the node.

    lock key ──Grant──► token key ──Chain──► identity ──Attestation──► WireGuard key, overlay address
       │                                                                        ▲
       └────────────────────── or, for a device with only wg-quick ─────────────┘

The identity is an Ed25519 key that never leaves its node, and the lock key never leaves the admin. So the coordinator
knows neither and only forwards the signatures. `meshray.model.lock` evaluates them.

>>> identity, key = SigningKey.generate(), PrivateKey.generate().public()
>>> signed = Attestation.sign(identity, "mesh", key, counter=1)
>>> signed.covers("mesh", key, IPv4Address("10.99.0.2"))
True
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from msgspec import UNSET

from meshray.model.address import overlay_address
from meshray.model.keys import PublicKey, SigningKey, VerifyKey
from meshray.protocol.codec import WireError, convert, optional, to_json
from meshray.protocol.forms import AttestationForm, ChainForm, GrantForm, RemovalsForm

#: The roles that let a node read what others send, or make others dial it.
PRIVILEGED = frozenset({"head", "hub", "coordinator"})
_SIGNATURE_BYTES = 64


@dataclass(frozen=True)
class Grant:
    """The lock lets the holder of a token's key endorse identities.

    Attributes:
        key: the token's key; its private half is in the token and is never sent to the coordinator.
        roles: the roles of `PRIVILEGED` that these nodes may have.
        epoch: the epoch of the removals when it was signed; a verifier must know removals of this epoch or later.
    """

    key: VerifyKey
    roles: frozenset[str]
    epoch: int
    signature: bytes = field(repr=False)

    @classmethod
    def sign(cls, lock: SigningKey, mesh_id: str, key: VerifyKey, roles: Iterable[str], epoch: int) -> Grant:
        """Return the grant, signed by the lock."""
        granted = frozenset(roles)
        return cls(key, granted, epoch, lock.sign(_grant(mesh_id, key, granted, epoch)))

    def is_signed(self, lock: VerifyKey, mesh_id: str) -> bool:
        """Return whether this lock signed the grant for this mesh."""
        return _verifies(lock, self.signature, _grant(mesh_id, self.key, self.roles, self.epoch))

    def form(self) -> GrantForm:
        """Return the form in messages."""
        return GrantForm(str(self.key), self.epoch, signature_text(self.signature), tuple(sorted(self.roles)))

    @classmethod
    def of(cls, form: GrantForm) -> Grant:
        """Return the value of this form. Raises UsageError or WireError."""
        return cls(VerifyKey.parse(form.key), frozenset(form.roles), form.epoch, parse_signature(form.signature))


@dataclass(frozen=True)
class Chain:
    """The chain from the lock to an identity: the token's key signed that the identity enrolled with it."""

    grant: Grant
    signature: bytes = field(repr=False)

    @classmethod
    def sign(cls, token: SigningKey, grant: Grant, mesh_id: str, identity: VerifyKey) -> Chain:
        """Return the chain to this identity, signed by the token's key."""
        return cls(grant, token.sign(_endorsement(mesh_id, identity)))

    def leads(self, lock: VerifyKey, mesh_id: str, identity: VerifyKey) -> bool:
        """Return whether the chain leads from this lock to this identity."""
        return self.grant.is_signed(lock, mesh_id) and _verifies(
            self.grant.key, self.signature, _endorsement(mesh_id, identity)
        )

    def form(self) -> ChainForm:
        """Return the form in messages."""
        return ChainForm(self.grant.form(), signature_text(self.signature))

    @classmethod
    def of(cls, form: ChainForm) -> Chain:
        """Return the value of this form. Raises UsageError or WireError."""
        return cls(Grant.of(form.grant), parse_signature(form.signature))


@dataclass(frozen=True)
class Attestation:
    """A signature of a node's WireGuard key.

    Attributes:
        identity: the identity that signed. For a static peer, which has none: the lock's key, or the identity of the
            coordinator's node.
        counter: increases with every signature of an identity; a node that knows a later one refuses older ones.
        ip: the overlay address that it covers as well; None: signed before the node had an address.
        chain: the proof that the identity was admitted; None in a mesh without a lock.
    """

    identity: VerifyKey
    counter: int
    signature: bytes = field(repr=False)
    ip: IPv4Address | None = None
    chain: Chain | None = None

    @classmethod
    def sign(
        cls,
        identity: SigningKey,
        mesh_id: str,
        key: PublicKey,
        *,
        counter: int,
        ip: IPv4Address | None = None,
        chain: Chain | None = None,
        static: bool = False,
    ) -> Attestation:
        """Return the signature of this WireGuard key; ``static``: it is a static peer's."""
        return cls(identity.public(), counter, identity.sign(_statement(mesh_id, key, ip, counter, static)), ip, chain)

    def covers(self, mesh_id: str, key: PublicKey, ip: IPv4Address, *, static: bool = False) -> bool:
        """Return whether the identity signed this key for this address, or for any address."""
        return self.ip in (None, ip) and _verifies(
            self.identity, self.signature, _statement(mesh_id, key, self.ip, self.counter, static)
        )

    def form(self) -> AttestationForm:
        """Return the form in messages."""
        return AttestationForm(
            str(self.identity),
            self.counter,
            signature_text(self.signature),
            str(self.ip) if self.ip is not None else UNSET,
            self.chain.form() if self.chain is not None else UNSET,
        )

    def to_json(self) -> dict[str, object]:
        """Return the JSON form."""
        return to_json(self.form())

    @classmethod
    def of(cls, form: AttestationForm) -> Attestation:
        """Return the value of this form. Raises UsageError or WireError."""
        return cls(
            VerifyKey.parse(form.identity),
            form.counter,
            parse_signature(form.signature),
            optional(overlay_address, form.ip),
            optional(Chain.of, form.chain),
        )

    @classmethod
    def from_json(cls, value: object) -> Attestation:
        """Return the value of its JSON form. Raises UsageError or WireError."""
        return cls.of(convert(value, AttestationForm))


@dataclass(frozen=True)
class Removals:
    """The identities that the lock has removed permanently. A later epoch replaces an earlier one."""

    epoch: int
    identities: frozenset[VerifyKey]
    signature: bytes = field(repr=False)

    @classmethod
    def sign(cls, lock: SigningKey, mesh_id: str, epoch: int, identities: Iterable[VerifyKey]) -> Removals:
        """Return the list, signed by the lock."""
        removed = frozenset(identities)
        return cls(epoch, removed, lock.sign(_removals(mesh_id, epoch, removed)))

    def is_signed(self, lock: VerifyKey, mesh_id: str) -> bool:
        """Return whether this lock signed the list for this mesh."""
        return _verifies(lock, self.signature, _removals(mesh_id, self.epoch, self.identities))

    def form(self) -> RemovalsForm:
        """Return the form in messages."""
        return RemovalsForm(self.epoch, tuple(sorted(map(str, self.identities))), signature_text(self.signature))

    def to_json(self) -> dict[str, object]:
        """Return the JSON form."""
        return to_json(self.form())

    @classmethod
    def of(cls, form: RemovalsForm) -> Removals:
        """Return the value of this form. Raises UsageError or WireError."""
        return cls(form.epoch, frozenset(map(VerifyKey.parse, form.identities)), parse_signature(form.signature))

    @classmethod
    def from_json(cls, value: object) -> Removals:
        """Return the value of its JSON form. Raises UsageError or WireError."""
        return cls.of(convert(value, RemovalsForm))


def sign_release(lock: SigningKey, mesh_id: str, sha256: str) -> str:
    """Return the lock's signature of a wheel of meshray that the mesh's nodes may run.

    Args:
        sha256: of the wheel, hexadecimal.
    """
    return signature_text(lock.sign(_release(mesh_id, sha256)))


def is_release_signed(lock: VerifyKey, mesh_id: str, sha256: str, signature: str) -> bool:
    """Return whether the lock signed this wheel. Raises WireError unless the text is a signature."""
    return _verifies(lock, parse_signature(signature), _release(mesh_id, sha256))


# Every message begins with its own kind, so that a signature of one kind is never valid for another.


def _grant(mesh_id: str, key: VerifyKey, roles: frozenset[str], epoch: int) -> bytes:
    return _message("grant", mesh_id, str(key), sorted(roles), epoch)


def _endorsement(mesh_id: str, identity: VerifyKey) -> bytes:
    return _message("endorsement", mesh_id, str(identity))


def _statement(mesh_id: str, key: PublicKey, ip: IPv4Address | None, counter: int, static: bool) -> bytes:
    return _message("static peer" if static else "node", mesh_id, str(key), str(ip) if ip is not None else "", counter)


def _removals(mesh_id: str, epoch: int, identities: frozenset[VerifyKey]) -> bytes:
    return _message("removals", mesh_id, epoch, sorted(map(str, identities)))


def _release(mesh_id: str, sha256: str) -> bytes:
    return _message("release", mesh_id, sha256)


def _message(kind: str, *parts: object) -> bytes:
    return json.dumps(["meshray", 1, kind, *parts], separators=(",", ":")).encode()


# A token's grant is in every node that enrolled with it, and a refused map comes again.
@functools.lru_cache(1024)
def _verifies(key: VerifyKey, signature: bytes, message: bytes) -> bool:
    return key.verifies(signature, message)


def signature_text(signature: bytes) -> str:
    """Return a signature in the form of messages."""
    return base64.b64encode(signature).decode("ascii")


def parse_signature(text: str) -> bytes:
    """Parse a signature in the form of messages. Raises WireError."""
    try:
        raw = base64.b64decode(text.encode(), validate=True)
    except binascii.Error:
        raw = b""
    if len(raw) != _SIGNATURE_BYTES:
        raise WireError(f"signature: must be {_SIGNATURE_BYTES} bytes in base64")
    return raw
