"""A limit for open connections that is shared fairly between their source addresses (pure).

When there are too many, the source that has most of them loses its oldest one. So a flood from one address or network
costs only the flood's own connections.

>>> limit = FairLimit[str](2, on_evict=print)
>>> limit.add("first", source_of("192.0.2.1"))
>>> limit.add("second", source_of("192.0.2.1"))
>>> limit.add("other", source_of("198.51.100.7"))
first
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from ipaddress import ip_address
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)
#: A wide group, and a source in it: shares are equal between the wide groups first.
Source = tuple[str, ...]


class FairLimit(Generic[T]):
    """A limited set of entries, each with its source.

    Args:
        most: the maximum number of entries; None: any number.
        on_evict: called with the entry that must end, after it was removed.
        most_of_source: the maximum number per source; None: no limit beside ``most``.
    """

    def __init__(self, most: int | None, on_evict: Callable[[T], object], *, most_of_source: int | None = None) -> None:
        self._most = most
        self._on_evict = on_evict
        self._most_of_source = most_of_source
        self._entries: dict[T, Source] = {}
        # A dict keeps insertion order: by wide group, then by source, the oldest first.
        self._groups: dict[str, dict[Source, dict[T, None]]] = {}
        self._sizes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, entry: object) -> bool:
        return entry in self._entries

    def add(self, entry: T, source: Source) -> None:
        """Add the entry as the newest; evict another one if there are now too many."""
        self.discard(entry)
        self._entries[entry] = source
        own = self._groups.setdefault(source[0], {}).setdefault(source, {})
        own[entry] = None
        self._sizes[source[0]] = self._sizes.get(source[0], 0) + 1
        if self._most_of_source is not None and len(own) > self._most_of_source:
            self.evict(next(iter(own)))
        elif self._most is not None and len(self._entries) > self._most:
            self.evict(self.unfairest()[0])

    def discard(self, entry: T) -> None:
        """Remove the entry if it is held."""
        source = self._entries.pop(entry, None)
        if source is None:
            return
        group = self._groups[source[0]]
        del group[source][entry]
        self._sizes[source[0]] -= 1
        if not group[source]:
            del group[source]
        if not group:
            del self._groups[source[0]], self._sizes[source[0]]

    def evict(self, entry: T) -> None:
        """Remove this entry, which must end."""
        self.discard(entry)
        self._on_evict(entry)

    def unfairest(self) -> tuple[T, bool]:
        """Return the oldest entry of the largest source in the largest wide group; of equal ones the oldest.

        And whether this wide group has more than its share of the entries; a single one always has its share. There
        must be an entry.
        """
        name = max(self._sizes, key=self._sizes.__getitem__)
        group = self._groups[name]
        entry = next(iter(group[max(group, key=lambda source: len(group[source]))]))
        # With one entry more or less than their share, groups are equal.
        return entry, len(self._sizes) > 1 and self._sizes[name] > len(self._entries) // len(self._sizes) + 1


@lru_cache(4096)
def source_of(address: str) -> Source:
    """Return the networks with which an address is counted: what one user commonly has.

    For IPv4 they are its /24 and the address itself, for IPv6 its /48 and its /64.
    """
    try:
        ip = ip_address(address)
    except ValueError:
        return ("", address)
    wide, narrow = (24, 32) if ip.version == 4 else (48, 64)
    return tuple(f"{int(ip) >> (ip.max_prefixlen - length):x}/{length}" for length in (wide, narrow))
