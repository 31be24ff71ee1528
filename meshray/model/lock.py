"""Decide whether a node of the map may become a WireGuard peer, and with which roles (pure).

    no identity                   accepted, if the mesh has no lock and none was known
    an identity, on first use     pinned, as ssh does with a host's key; with a lock: only at the end of its chain
    the same key and address      as pinned: nothing to verify
    another key or address        the pinned identity must have signed it, with a higher counter; else the pin stays
    a role that was not pinned    removed: with a lock the chain names the roles, else the first map does

>>> judge(node, None, Rules("mesh")).roles == node.roles
True
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from meshray.model.address import overlay_address
from meshray.model.attestation import PRIVILEGED, Attestation
from meshray.model.keys import PublicKey, VerifyKey
from meshray.model.node import STATIC, Node
from meshray.protocol.forms import PinForm


@dataclass(frozen=True)
class Rules:
    """The mesh's keys and removals that the decision uses.

    Attributes:
        lock: the lock's key; None: the mesh has none.
        removed: identities that the lock removed.
        epoch: of these removals.
        coordinator: the identity of the coordinator's node, which signs static peers in a mesh without a lock.
    """

    mesh_id: str
    lock: VerifyKey | None = None
    removed: frozenset[VerifyKey] = frozenset()
    epoch: int = 0
    coordinator: VerifyKey | None = None


@dataclass(frozen=True)
class Pin:
    """The last accepted state of a node, stored on disk.

    Attributes:
        counter: the highest counter so far.
        roles: the roles of `PRIVILEGED` that the node may have.
    """

    identity: VerifyKey
    key: PublicKey
    ip: IPv4Address
    counter: int
    roles: frozenset[str]

    def form(self) -> PinForm:
        """Return the form on disk."""
        return PinForm(str(self.identity), str(self.key), str(self.ip), self.counter, tuple(sorted(self.roles)))

    @classmethod
    def of(cls, form: PinForm) -> Pin:
        """Return the value of this form. Raises UsageError or WireError."""
        return cls(
            VerifyKey.parse(form.identity),
            PublicKey.parse(form.key),
            overlay_address(form.ip),
            form.counter,
            frozenset(form.roles),
        )


@dataclass(frozen=True)
class Judgement:
    """The decision about a node.

    Attributes:
        roles: the roles with which it is accepted; None: it is refused.
        pin: the pin to keep from now on; None: none. An accepted node has this key and address.
        fault: what was refused; empty: nothing.
    """

    roles: frozenset[str] | None
    pin: Pin | None = None
    fault: str = ""

    def applied(self, node: Node) -> Node | None:
        """Return the node in its accepted form; None if it is refused."""
        if self.roles is None:
            return None
        key, ip = (node.public_key, node.ip) if self.pin is None else (self.pin.key, self.pin.ip)
        if (node.roles, node.public_key, node.ip) == (self.roles, key, ip):
            return node
        return replace(node, roles=self.roles, public_key=key, ip=ip)


def removal_key(node: Node) -> VerifyKey:
    """Return the key by which the lock removes a node: its identity, or without one, its WireGuard key."""
    if STATIC in node.roles or node.attestation is None:
        return VerifyKey(node.public_key.raw)
    return node.attestation.identity


def judge(node: Node, pin: Pin | None, rules: Rules) -> Judgement:
    """Judge one node.

    Args:
        pin: the node's pin from an earlier map; None: the node is new.
    """
    attestation = node.attestation
    if rules.removed & _removal_keys(node, pin):
        return Judgement(None, pin, "the lock removed it")
    if fault := _identity_fault(node, pin, rules):
        return _as_pinned(node, pin, fault)
    if pin is not None and _is_as_pinned(node, pin):
        return _limited(node, _with_counter(pin, attestation, node, rules))
    if attestation is None:
        return Judgement(node.roles)
    check = _static_fault if STATIC in node.roles else _signature_fault
    if fault := check(node, attestation, pin, rules):
        return _as_pinned(node, pin, fault)
    if pin is not None:
        roles = pin.roles
    elif rules.lock is not None:
        roles = attestation.chain.grant.roles & PRIVILEGED if attestation.chain is not None else frozenset()
    else:
        roles = node.roles & PRIVILEGED
    return _limited(node, Pin(attestation.identity, node.public_key, node.ip, attestation.counter, roles))


def _removal_keys(node: Node, pin: Pin | None) -> set[VerifyKey]:
    """Return the keys by which the lock may have removed the node. A static peer has only its WireGuard key."""
    known = (one.identity for one in (pin, node.attestation) if one is not None)
    return {VerifyKey(node.public_key.raw), *known}


def _as_pinned(node: Node, pin: Pin | None, fault: str) -> Judgement:
    """Return the node as pinned, so that another key without a valid signature does not even disconnect it."""
    return Judgement(node.roles - (PRIVILEGED - pin.roles) if pin is not None else None, pin, fault)


def _is_as_pinned(node: Node, pin: Pin) -> bool:
    return (node.public_key, node.ip) == (pin.key, pin.ip)


def _identity_fault(node: Node, pin: Pin | None, rules: Rules) -> str:
    """Return why the node is not the known one, or may not be used; before any signature is verified."""
    attestation = node.attestation
    if attestation is not None:
        return "it has another identity than before" if pin is not None and attestation.identity != pin.identity else ""
    if pin is not None:
        return "" if _is_as_pinned(node, pin) else "its key or address was changed without its identity's signature"
    return "nothing signs its key, and this mesh has a lock" if rules.lock is not None else ""


def _signature_fault(node: Node, attestation: Attestation, pin: Pin | None, rules: Rules) -> str:
    """Return the fault of a new signature."""
    if pin is not None and attestation.counter <= pin.counter:
        return "an older key or address of it came back"
    if pin is not None and attestation.ip is None and node.ip != pin.ip:
        return "its address was changed without its identity's signature"
    if not attestation.covers(rules.mesh_id, node.public_key, node.ip):
        return "the signature of its key is wrong"
    return _chain_fault(attestation, rules.lock, rules) if rules.lock is not None and pin is None else ""


def _chain_fault(attestation: Attestation, lock: VerifyKey, rules: Rules) -> str:
    if attestation.chain is None or not attestation.chain.leads(lock, rules.mesh_id, attestation.identity):
        return "it did not enrol with a token that the lock signed"
    if attestation.chain.grant.epoch > rules.epoch:
        return "its token is newer than the list of removed nodes that the coordinator shows"
    return ""


def _with_counter(pin: Pin, attestation: Attestation | None, node: Node, rules: Rules) -> Pin:
    if (
        attestation is None
        or attestation.counter <= pin.counter
        or not attestation.covers(rules.mesh_id, node.public_key, node.ip)
    ):
        return pin
    return replace(pin, counter=attestation.counter)


def _limited(node: Node, pin: Pin) -> Judgement:
    refused_roles = node.roles & PRIVILEGED - pin.roles
    fault = (
        f"the coordinator calls it a {' and '.join(sorted(refused_roles))}, which it is not" if refused_roles else ""
    )
    return Judgement(node.roles - refused_roles, pin, fault)


def _static_fault(node: Node, attestation: Attestation, pin: Pin | None, rules: Rules) -> str:
    """Check a device without an agent, which has no identity: the lock or the coordinator's node signs its key."""
    issuer = rules.lock or rules.coordinator
    if pin is not None:
        return "the key of a static peer never changes"
    if issuer is not None and attestation.identity != issuer:
        return "its key is not signed by the lock" if rules.lock is not None else "its key is not signed"
    if not attestation.covers(rules.mesh_id, node.public_key, node.ip, static=True):
        return "the signature of its key is wrong"
    return ""
