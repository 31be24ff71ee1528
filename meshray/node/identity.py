"""This node's identity: an Ed25519 key that signs its WireGuard keys, and the chain that admitted it.

    identity.key     the key, created by init or join; on a node of an earlier release when its agent starts
    identity.json    the counter of the last signature, and the chain from the lock if the mesh has one

>>> identity = Identity.load_or_create(home, "mesh")
>>> identity.sign(private.public()).counter
1
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from ipaddress import IPv4Address

from msgspec import UNSET, Struct, UnsetType

from meshray.errors import MeshrayError, UsageError
from meshray.home import Home
from meshray.linux.files import make_folder, write_atomically
from meshray.model.attestation import Attestation, Chain
from meshray.model.keys import PublicKey, SigningKey, VerifyKey
from meshray.model.node import Node
from meshray.node.enrolment import damaged
from meshray.protocol.codec import WireError, decode, encode, optional
from meshray.protocol.fields import Counter
from meshray.protocol.forms import ChainForm

log = logging.getLogger(__name__)


class _File(Struct):
    counter: Counter
    chain: ChainForm | UnsetType = UNSET


class Identity:
    """The identity of one node.

    Attributes:
        chain: the signatures from the lock to this identity; None without a lock.
    """

    def __init__(self, home: Home, mesh_id: str, key: SigningKey, counter: int = 0, chain: Chain | None = None) -> None:
        self.chain = chain
        self._home = home
        self._mesh_id = mesh_id
        self._key = key
        self._public = key.public()
        self._counter = counter
        self._signed: dict[tuple[PublicKey, IPv4Address], Attestation] = {}

    @classmethod
    def load_or_create(cls, home: Home, mesh_id: str) -> Identity:
        """Return this node's identity, or create one.

        Raises:
            MeshrayError: ``state_damaged`` (the files are kept).
            OSError: the new identity could not be written.
        """
        if not home.identity_key.exists():
            key = SigningKey.generate()
            make_folder(home.state)
            write_atomically(home.identity_key, key.reveal() + "\n")
            return cls(home, mesh_id, key)
        try:
            key = SigningKey.parse(home.identity_key.read_text().strip())
        except (UsageError, OSError, UnicodeDecodeError) as error:
            raise damaged(home.identity_key, _as_meshray_error(error)) from None
        if not home.identity.exists():
            return cls(home, mesh_id, key)
        try:
            kept = decode(home.identity.read_bytes(), _File)
            chain = optional(Chain.of, kept.chain)
        except (UsageError, WireError, OSError) as error:
            raise damaged(home.identity, _as_meshray_error(error)) from None
        return cls(home, mesh_id, key, kept.counter, chain)

    @classmethod
    def of_node(cls, home: Home, mesh_id: str) -> Identity | None:
        """Return the identity of an enrolled node, and create it on a node of an earlier release.

        Return None if the disk cannot be written, because others would pin an identity that this process then loses.

        Raises:
            MeshrayError: ``state_damaged`` (the files are kept).
        """
        try:
            return cls.load_or_create(home, mesh_id)
        except OSError as error:
            log.error("this node has no identity yet: %s cannot be written: %s", home.identity_key, error.strerror)
            return None

    def set_chain(self, endorse: Callable[[VerifyKey], Chain] | None) -> None:
        """Set the chain of this identity; None without a lock. The next signature stores it."""
        self.chain = endorse(self._public) if endorse is not None else None

    def sign(self, key: PublicKey, ip: IPv4Address | None = None) -> Attestation:
        """Return a new signature of this WireGuard key, with a counter above that of every earlier one.

        Args:
            ip: the overlay address that the signature covers; None if the node does not know its address yet.
        """
        self._counter += 1
        # The counter is written before the signature is used, because others refuse a repeated counter.
        self._save()
        signed = Attestation.sign(self._key, self._mesh_id, key, counter=self._counter, ip=ip, chain=self.chain)
        if ip is not None:
            self._signed[key, ip] = signed
        return signed

    def skip(self, count: int) -> None:
        """Leave out this many counters: a copy of this identity may have used them."""
        self._counter += count

    def sign_static(self, key: PublicKey, ip: IPv4Address) -> Attestation:
        """Return the signature of a static peer's key and address. Only the coordinator's node makes these."""
        return Attestation.sign(self._key, self._mesh_id, key, counter=0, ip=ip, static=True)

    def signature_of(self, me: Node) -> Attestation:
        """Return a signature of this node's key and address in the map: the published one if usable, or a new one.

        The key must be this node's own.
        """
        known = self._signed.get((me.public_key, me.ip))
        if known is not None:
            return known
        published = me.attestation
        if published is not None and self._is_signed_by_us(published, me):
            self._counter = max(self._counter, published.counter)
            if published.ip is not None and published.chain == self.chain:
                self._signed[me.public_key, me.ip] = published
                return published
        return self.sign(me.public_key, me.ip)

    def _is_signed_by_us(self, published: Attestation, me: Node) -> bool:
        return published.identity == self._public and published.covers(self._mesh_id, me.public_key, me.ip)

    def _save(self) -> None:
        kept = _File(self._counter, self.chain.form() if self.chain is not None else UNSET)
        try:
            write_atomically(self._home.identity, encode(kept))
        except OSError as error:
            # The disk is full and the node continues. After a restart it finds the counter in the map.
            log.error("%s cannot be written: %s", self._home.identity, error.strerror or error)


def _as_meshray_error(error: Exception) -> MeshrayError:
    return error if isinstance(error, MeshrayError) else MeshrayError("unreadable", str(error))
