"""Marks and tickets, which nodes keep for the coordinator: they prove to it what it may have lost.

Both are sealed (HMAC-SHA256) with a key derived from the certificate's key file, not from the database: the owner of
the key file is the coordinator to every node anyway, and the file is still valid after a database restore.

>>> seal = Seal.from_pem(home.certificate_key.read_text())
>>> ticket = Ticket.of(member, mark)
>>> open_ticket(seal, sealed_ticket(seal, ticket)) == ticket
True
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from msgspec import Struct

from meshray.coordinator.records import Member
from meshray.coordinator.restore.lineage import Mark
from meshray.errors import MeshrayError
from meshray.model.address import NodeName, overlay_address
from meshray.model.keys import PublicKey
from meshray.model.node import ROLES
from meshray.model.printable import printable_map
from meshray.protocol.codec import convert, decode_object, to_json
from meshray.protocol.fields import FIRST_EPOCH, Address, Epoch, Items, Key, OwnName, Revision, Text64, TextMap

_LABEL = b"meshray seal v1"
_MAC_BYTES = 32
#: The maximum number of characters; more would not fit into a header, and the node itself reports these labels of Ray.
_LONGEST_LABELS = 2000


class Seal:
    """The seal that distinguishes this coordinator's texts from others. Contains a secret."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def from_pem(cls, certificate_key: str) -> Seal:
        """Return the seal of the coordinator with this private key. Raises ValueError if the text is not PEM."""
        lines = [line.strip() for line in certificate_key.strip().splitlines()]
        if len(lines) < 3 or not lines[0].startswith("-----BEGIN"):
            raise ValueError("not a PEM file")
        # HKDF's extract step (RFC 5869, section 2.2): the key itself must sign nothing but TLS.
        return cls(hmac.digest(_LABEL, base64.b64decode("".join(lines[1:-1])), "sha256"))

    def close(self, kind: str, value: Mapping[str, object]) -> str:
        """Return the value as text that can be read but not changed."""
        payload = json.dumps({"kind": kind, **value}, separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(self._mac(payload) + payload).rstrip(b"=").decode()

    def open(self, kind: str, text: str) -> Mapping[str, object] | None:
        """Return the value that was sealed under this kind; None for anything else."""
        try:
            raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except (binascii.Error, ValueError):
            return None
        mac, payload = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(payload)):
            return None
        value = decode_object(payload)
        return value if value.get("kind") == kind else None

    def _mac(self, payload: bytes) -> bytes:
        return hmac.digest(self._key, payload, hashlib.sha256)


@dataclass(frozen=True)
class Ticket:
    """The proof that a node is enrolled, with its state at one moment.

    Attributes:
        credential_hash: the hash of the node's credential: the ticket is useless without it.
    """

    node_id: str
    name: NodeName
    ip: IPv4Address
    public_key: PublicKey
    roles: frozenset[str]
    ephemeral: bool
    labels: Mapping[str, str]
    credential_hash: str = field(repr=False)
    mark: Mark = field(compare=False)

    @classmethod
    def of(cls, member: Member, mark: Mark) -> Ticket:
        """Return the member's current ticket."""
        node = member.node
        labels = node.labels if len(json.dumps(dict(node.labels))) <= _LONGEST_LABELS else {}
        return cls(
            node.id,
            node.name,
            node.ip,
            node.public_key,
            node.roles,
            node.ephemeral,
            labels,
            member.credential_hash,
            mark,
        )


def sealed_mark(seal: Seal, mark: Mark) -> str:
    """Return the sealed text that travels with the map."""
    return seal.close("mark", to_json(_mark_form(mark)))


def open_mark(seal: Seal, text: str) -> Mark | None:
    """Return the mark in the text; None if this coordinator did not seal it."""
    value = seal.open("mark", text)
    return None if value is None else _mark(convert(value, _MarkForm))


def sealed_ticket(seal: Seal, ticket: Ticket) -> str:
    """Return the sealed text that a node keeps."""
    form = _TicketForm(
        node=ticket.node_id,
        name=ticket.name,
        ip=str(ticket.ip),
        public_key=str(ticket.public_key),
        roles=tuple(sorted(ticket.roles)),
        ephemeral=ticket.ephemeral,
        labels=dict(ticket.labels),
        credential_hash=ticket.credential_hash,
    )
    return seal.close("ticket", {**to_json(form), **to_json(_mark_form(ticket.mark))})


def open_ticket(seal: Seal, text: str) -> Ticket | None:
    """Return the ticket in the text; None if this coordinator did not seal it."""
    value = seal.open("ticket", text)
    if value is None:
        return None
    try:
        form, mark = convert(value, _TicketForm), convert(value, _MarkForm)
        return Ticket(
            node_id=form.node,
            name=NodeName.parse(form.name),
            ip=overlay_address(form.ip),
            public_key=PublicKey.parse(form.public_key),
            roles=ROLES.intersection(form.roles),
            ephemeral=form.ephemeral,
            labels=printable_map(form.labels),
            credential_hash=form.credential_hash,
            mark=_mark(mark),
        )
    except MeshrayError:
        # It was sealed by another version of this program, whose form is unknown here.
        return None


class _TicketForm(Struct):
    node: Text64
    name: OwnName
    ip: Address
    public_key: Key
    credential_hash: Text64
    roles: Items = ()
    ephemeral: bool = False
    labels: TextMap = {}


class _MarkForm(Struct):
    timeline: Text64
    serial: Revision
    revision: Revision
    epoch: Epoch = FIRST_EPOCH


def _mark_form(mark: Mark) -> _MarkForm:
    return _MarkForm(mark.timeline, mark.serial, mark.revision, mark.epoch)


def _mark(form: _MarkForm) -> Mark:
    return Mark(form.timeline, form.serial, form.revision, form.epoch)
