"""Find members by name, key, address and credential without looking at all of them (pure).

An index belongs to one mapping of members. The registry that results from a change of one member gets the index of its
predecessor with this member replaced; most changes are of presence, and leave all of it as it is.

>>> index = MemberIndex.of(members).with_member(node_id, None, member)
>>> index.names["gpu-1"]
'5d41402abc4b2a76'
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import TypeVar

from meshray.coordinator.records import Member
from meshray.model.keys import PublicKey
from meshray.model.node import COORDINATOR, HEAD, HUB

K = TypeVar("K")
_SPECIAL = frozenset({COORDINATOR, HEAD, HUB})


@dataclass(frozen=True)
class TakenAddresses:
    """A range of addresses in which members have all addresses but a few.

    Attributes:
        start, end: the numbers of its first address, and of the first one behind it.
        left: the numbers of those that a member had and none has now.
    """

    start: int = 0
    end: int = 0
    left: frozenset[int] = frozenset()

    def after(self, old: IPv4Address | None, new: IPv4Address | None, taken: Container[IPv4Address]) -> TakenAddresses:
        """Return the range after a member's address changed; ``taken``: all addresses of members after it."""
        start, end, left = self.start, self.end, self.left
        if old is not None and start <= int(old) < end and old not in taken:
            left = left | {int(old)}
        if new is not None:
            left = left - {int(new)}
            if start == end:
                start = end = int(new)
            if int(new) == end:
                while IPv4Address(end) in taken:
                    end += 1
        return TakenAddresses(start, end, left)


@dataclass(frozen=True)
class MemberIndex:
    """The ids of all members by what is unique to each.

    Attributes:
        special: the ids of the nodes that have one of the roles of which a mesh has few.
        lowest: the addresses from the lowest one on that members have, without gaps but those of removed members.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[PublicKey, str] = field(default_factory=dict)
    addresses: Mapping[IPv4Address, str] = field(default_factory=dict)
    credentials: Mapping[str, str] = field(default_factory=dict)
    special: frozenset[str] = frozenset()
    lowest: TakenAddresses = TakenAddresses()

    @classmethod
    def of(cls, members: Mapping[str, Member]) -> MemberIndex:
        """Return the index of these members."""
        addresses = {member.node.ip: key for key, member in members.items()}
        return cls(
            {member.node.name: key for key, member in members.items()},
            {member.node.public_key: key for key, member in members.items()},
            addresses,
            {member.credential_hash: key for key, member in members.items() if member.credential_hash},
            frozenset(key for key, member in members.items() if member.node.roles & _SPECIAL),
            TakenAddresses().after(None, min(addresses, default=None), addresses),
        )

    def with_member(self, member_id: str, old: Member | None, new: Member | None) -> MemberIndex:
        """Return the index after a member was replaced; None: there was none, or it was removed."""
        is_special = new is not None and bool(new.node.roles & _SPECIAL)
        if (member_id in self.special) != is_special:
            special = self.special | {member_id} if is_special else self.special - {member_id}
        else:
            special = self.special
        addresses = _moved(self.addresses, old, new, lambda member: member.node.ip)
        if addresses is not self.addresses:
            before, after = (member.node.ip if member is not None else None for member in (old, new))
            lowest = self.lowest.after(before, after, addresses)
        else:
            lowest = self.lowest
        return replace(
            self,
            names=_moved(self.names, old, new, lambda member: member.node.name),
            keys=_moved(self.keys, old, new, lambda member: member.node.public_key),
            addresses=addresses,
            lowest=lowest,
            credentials=_moved(self.credentials, old, new, lambda member: member.credential_hash),
            special=special,
        )


def _moved(
    index: Mapping[K, str], old: Member | None, new: Member | None, key_of: Callable[[Member], K]
) -> Mapping[K, str]:
    before, after = (key_of(member) if member is not None else None for member in (old, new))
    if before == after:
        return index
    moved = dict(index)
    if old is not None and before and moved.get(before) == old.node.id:
        del moved[before]
    if new is not None and after:
        moved[after] = new.node.id
    return moved
