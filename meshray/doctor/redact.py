"""Takes out of a text what must not leave this machine: secrets always, public addresses unless they are wanted (pure).

    >>> redactor = Redactor(secrets=["s3cret-credential"])
    >>> redactor.text("Bearer s3cret-credential from 8.8.8.8, then 10.0.0.1 and 8.8.8.8 again")
    'Bearer [removed] from public-1, then 10.0.0.1 and public-1 again'

What is known to be secret is taken out wherever it stands; what only looks like a secret (a token, a key, a password in
a URL) as well. An address keeps its name through all texts of one redactor, so that they can be read together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

REMOVED = "[removed]"
#: Shorter ones are no secrets of ours, and would tear words apart.
SHORTEST_SECRET = 8

_TOKEN = re.compile(r"meshray1_[A-Za-z0-9_=-]*")
#: RFC 3986, section 3.2.1: what stands before the @ of a URL. A password may hold an @ of its own.
_USER_INFO = re.compile(r"(://)[^/\s\"'<>]+@")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}")
#: WireGuard's keys: 32 bytes in base64.
_KEY = re.compile(r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{43}=")
_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_IPV4 = re.compile(r"(?<![0-9])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![0-9])")
#: A run of what IPv6 addresses are made of; which part of it is one is found out by trying.
_IPV6_RUN = re.compile(r"(?<![0-9A-Fa-f:])[0-9A-Fa-f]*(?::[0-9A-Fa-f]*){2,}(?:(?:\.[0-9]{1,3}){3})?")
#: An IPv6 address has at most so many groups, and an empty one at each end.
_GROUPS = 10


class Redactor:
    """Redacts any number of texts of one bundle.

    Args:
        secrets: as they stand in files, in any order; of one with several lines each line is one.
        public_keys: keys that are no secret.
        names: of hosts that are reached from outside; they are treated as public addresses.
        with_addresses: leave public addresses and names as they are.
    """

    def __init__(
        self,
        secrets: Iterable[str] = (),
        *,
        public_keys: Iterable[str] = (),
        names: Iterable[str] = (),
        with_addresses: bool = False,
    ) -> None:
        lines = {line.strip() for secret in secrets for line in secret.splitlines()}
        # The longest first: one may be the beginning of another.
        self._secrets = _any_of(line for line in lines if len(line) >= SHORTEST_SECRET)
        self._public_keys = frozenset(public_keys)
        self._host_names = _any_of(names, re.IGNORECASE)
        self._with_addresses = with_addresses
        self._aliases: dict[str, str] = {}

    def text(self, text: str) -> str:
        """The text without what must not be in it."""
        text = _PEM.sub(REMOVED, text)
        text = self._secrets.sub(REMOVED, text)
        text = _TOKEN.sub(REMOVED, text)
        text = _USER_INFO.sub(rf"\1{REMOVED}@", text)
        text = _BEARER.sub(rf"\1 {REMOVED}", text)
        text = _KEY.sub(lambda found: found[0] if found[0] in self._public_keys else REMOVED, text)
        if not self._with_addresses:
            text = self._host_names.sub(lambda found: self._alias(found[0].lower()), text)
            text = _IPV6_RUN.sub(lambda found: self._of_run(found[0]), text)
            text = _IPV4.sub(lambda found: self._of_address(found[0]), text)
        # Taking something out may have brought the ends of a secret together.
        return self._secrets.sub(REMOVED, text)

    def _of_run(self, run: str) -> str:
        """The run with its first and longest address replaced, and what is left of it looked at again."""
        groups = run.split(":")
        for start, end in _parts(len(groups)):
            address = _parsed(":".join(groups[start:end]))
            if isinstance(address, IPv6Address):
                named = self._of_address(":".join(groups[start:end]))
                before, after = ":".join(groups[:start]), ":".join(groups[end:])
                # What stands before holds no address of this length, but may hold a shorter one.
                before, after = (_IPV6_RUN.sub(lambda found: self._of_run(found[0]), side) for side in (before, after))
                return ":".join([*([before] if start else []), named, *([after] if end < len(groups) else [])])
        return run

    def _of_address(self, text: str) -> str:
        address = _parsed(text)
        return self._alias(str(address)) if address is not None and _is_public(address) else text

    def _alias(self, public: str) -> str:
        return self._aliases.setdefault(public, f"public-{len(self._aliases) + 1}")


def _any_of(texts: Iterable[str], flags: int = 0) -> re.Pattern[str]:
    """Matches any of them; nothing where there are none."""
    longest_first = sorted((text for text in set(texts) if text), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)", flags)


def _parts(count: int) -> Iterator[tuple[int, int]]:
    """Every stretch of that many groups, the longest first."""
    for length in range(min(count, _GROUPS), 2, -1):
        for start in range(count - length + 1):
            yield start, start + length


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether it is somebody's on the internet. Python follows IANA's registry of special addresses (RFC 6890)."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is not None:
            return _is_public(inner)
    return address.is_global and not address.is_multicast
