"""What a node's identity, a token and the lock of a mesh sign. The signatures travel with the node in the map.

    lock key ──Grant──► token key ──Chain──► identity ──Attestation──► WireGuard key, overlay address
       │                                                                        ▲
       └────────────────────── or, for a device with only wg-quick ─────────────┘

The identity is an Ed25519 key that never leaves its node, and the lock key never leaves the admin. So the coordinator
knows neither and only passes the signatures on. `meshray.model.lock` judges what they prove.

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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from meshray.model import wire
from meshray.model.keys import PublicKey, SigningKey, VerifyKey
from meshray.protocol.codec import WireError
from meshray.protocol.fields import MAX_COUNTER, MOST_REMOVED, SIGNATURE_CHARACTERS

#: The roles that let a node read what others send, or make others dial it.
PRIVILEGED = frozenset({"head", "hub", "coordinator"})
_SIGNATURE_BYTES = 64


@dataclass(frozen=True)
class Grant:
    """The lock lets the holder of a token's key endorse identities.

    Attributes:
        key: of the token; its private half is in the token and is never sent to the coordinator.
        roles: of `PRIVILEGED`, that these nodes may have.
        epoch: of the removals when it was signed; whoever shows the grant must know removals of this epoch or later.
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
        """Return whether this lock made it for this mesh."""
        return _verifies(lock, self.signature, _grant(mesh_id, self.key, self.roles, self.epoch))

    def to_json(self) -> dict[str, object]:
        """The JSON form."""
        return {
            "key": str(self.key),
            "roles": sorted(self.roles),
            "epoch": self.epoch,
            "signature": signature_to_json(self.signature),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Grant:
        """The inverse of `to_json`. Raises UsageError or WireError."""
        return cls(
            VerifyKey.parse(wire.text(value, "key", 44)),
            frozenset(wire.texts(value, "roles")),
            wire.number(value, "epoch", 0, MAX_COUNTER),
            signature_from_json(value),
        )


@dataclass(frozen=True)
class Chain:
    """From the lock to an identity: the token's key signed that the identity enrolled with it."""

    grant: Grant
    signature: bytes = field(repr=False)

    @classmethod
    def sign(cls, token: SigningKey, grant: Grant, mesh_id: str, identity: VerifyKey) -> Chain:
        """Return the chain to this identity, signed by the token's key."""
        return cls(grant, token.sign(_endorsement(mesh_id, identity)))

    def leads(self, lock: VerifyKey, mesh_id: str, identity: VerifyKey) -> bool:
        """Return whether it leads from this lock to this identity."""
        return self.grant.is_signed(lock, mesh_id) and _verifies(
            self.grant.key, self.signature, _endorsement(mesh_id, identity)
        )

    def to_json(self) -> dict[str, object]:
        """The JSON form."""
        return {"grant": self.grant.to_json(), "signature": signature_to_json(self.signature)}

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Chain:
        """The inverse of `to_json`. Raises UsageError or WireError."""
        return cls(Grant.from_json(wire.mapping(value, "grant")), signature_from_json(value))


@dataclass(frozen=True)
class Attestation:
    """A signature of a node's WireGuard key.

    Attributes:
        identity: that signed. Of a static peer, which has none: the lock's key, or the identity of the coordinator's
            node.
        counter: rises with every signature of an identity; an older one is refused by whoever has seen a later one.
        ip: the overlay address that it covers as well; None: signed before the node was told its address.
        chain: how the identity was let in; None in a mesh without a lock.
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

    def to_json(self) -> dict[str, object]:
        """The JSON form."""
        return {
            "identity": str(self.identity),
            "counter": self.counter,
            "signature": signature_to_json(self.signature),
            **({"ip": str(self.ip)} if self.ip is not None else {}),
            **({"chain": self.chain.to_json()} if self.chain is not None else {}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Attestation:
        """The inverse of `to_json`. Raises UsageError or WireError."""
        return cls(
            VerifyKey.parse(wire.text(value, "identity", 44)),
            wire.number(value, "counter", 0, MAX_COUNTER),
            signature_from_json(value),
            wire.address(value, "ip") if "ip" in value else None,
            Chain.from_json(wire.mapping(value, "chain")) if "chain" in value else None,
        )


@dataclass(frozen=True)
class Removals:
    """The identities that the lock has removed for good. A later epoch replaces an earlier one."""

    epoch: int
    identities: frozenset[VerifyKey]
    signature: bytes = field(repr=False)

    @classmethod
    def sign(cls, lock: SigningKey, mesh_id: str, epoch: int, identities: Iterable[VerifyKey]) -> Removals:
        """Return the list, signed by the lock."""
        removed = frozenset(identities)
        return cls(epoch, removed, lock.sign(_removals(mesh_id, epoch, removed)))

    def is_signed(self, lock: VerifyKey, mesh_id: str) -> bool:
        """Return whether this lock made it for this mesh."""
        return _verifies(lock, self.signature, _removals(mesh_id, self.epoch, self.identities))

    def to_json(self) -> dict[str, object]:
        """The JSON form."""
        return {
            "epoch": self.epoch,
            "identities": sorted(map(str, self.identities)),
            "signature": signature_to_json(self.signature),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Removals:
        """The inverse of `to_json`. Raises UsageError or WireError."""
        identities = value.get("identities")
        if not isinstance(identities, list) or len(identities) > MOST_REMOVED:
            raise WireError(f"identities: must be a list of at most {MOST_REMOVED}")
        return cls(
            wire.number(value, "epoch", 0, MAX_COUNTER),
            frozenset(VerifyKey.parse(wire.text({"key": item}, "key", 44)) for item in identities),
            signature_from_json(value),
        )


def optional_attestation(value: Mapping[str, object]) -> Attestation | None:
    """Return the field ``attestation`` of a message. Raises UsageError or WireError where it has another form."""
    return Attestation.from_json(wire.mapping(value, "attestation")) if "attestation" in value else None


def optional_removals(value: Mapping[str, object]) -> Removals | None:
    """Return the field ``removals`` of a message. Raises UsageError or WireError where it has another form."""
    return Removals.from_json(wire.mapping(value, "removals")) if "removals" in value else None


# Every message begins with its own kind, so that a signature of one is none of another.


def _grant(mesh_id: str, key: VerifyKey, roles: frozenset[str], epoch: int) -> bytes:
    return _message("grant", mesh_id, str(key), sorted(roles), epoch)


def _endorsement(mesh_id: str, identity: VerifyKey) -> bytes:
    return _message("endorsement", mesh_id, str(identity))


def _statement(mesh_id: str, key: PublicKey, ip: IPv4Address | None, counter: int, static: bool) -> bytes:
    return _message("static peer" if static else "node", mesh_id, str(key), str(ip) if ip is not None else "", counter)


def _removals(mesh_id: str, epoch: int, identities: frozenset[VerifyKey]) -> bytes:
    return _message("removals", mesh_id, epoch, sorted(map(str, identities)))


def _message(kind: str, *parts: object) -> bytes:
    return json.dumps(["meshray", 1, kind, *parts], separators=(",", ":")).encode()


# A token's grant stands in every node that enrolled with it, and a map that was refused comes again.
@functools.lru_cache(1024)
def _verifies(key: VerifyKey, signature: bytes, message: bytes) -> bool:
    return key.verifies(signature, message)


def signature_to_json(signature: bytes) -> str:
    """The inverse of `signature_from_json`."""
    return base64.b64encode(signature).decode("ascii")


def signature_from_json(value: Mapping[str, object]) -> bytes:
    """Return the field ``signature`` of a message. Raises WireError."""
    try:
        raw = base64.b64decode(wire.text(value, "signature", SIGNATURE_CHARACTERS).encode(), validate=True)
    except binascii.Error:
        raw = b""
    if len(raw) != _SIGNATURE_BYTES:
        raise WireError(f"signature: must be {_SIGNATURE_BYTES} bytes in base64")
    return raw
