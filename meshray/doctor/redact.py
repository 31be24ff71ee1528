"""Remove from a text what must not leave this machine: secrets always, public addresses unless requested (pure).

    >>> redactor = Redactor(secrets=["s3cret-credential"])
    >>> redactor.text("Bearer s3cret-credential from 8.8.8.8, then 10.0.0.1 and 8.8.8.8 again")
    'Bearer [removed] from public-1, then 10.0.0.1 and public-1 again'

Known secrets are removed wherever they occur, and so are texts that look like secrets (a token, a key, a password in a
URL). An address keeps its replacement in all texts of one redactor, so that they can be read together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

REMOVED = "[removed]"
#: Shorter texts are not secrets of ours, and removing them would break words.
SHORTEST_SECRET = 8

_TOKEN = re.compile(r"meshray1_[A-Za-z0-9_=-]*")
#: RFC 3986, section 3.2.1: the part before the @ of a URL. A password may contain an @ itself.
_USER_INFO = re.compile(r"(://)[^/\s\"'<>]+@")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}")
#: WireGuard's keys: 32 bytes in base64.
_KEY = re.compile(r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{43}=")
_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_IPV4 = re.compile(r"(?<![0-9])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![0-9])")
#: A run of characters of IPv6 addresses; parsing finds out which part of it is an address.
_IPV6_RUN = re.compile(r"(?<![0-9A-Fa-f:])[0-9A-Fa-f]*(?::[0-9A-Fa-f]*){2,}(?:(?:\.[0-9]{1,3}){3})?")
#: An IPv6 address has at most this many groups, and an empty one at each end.
_GROUPS = 10


class Redactor:
    """A redactor for all texts of one bundle.

    Args:
        secrets: as they occur in files, in any order; each line of a secret with several lines counts as one.
        public_keys: keys that are not secret.
        names: host names that are reachable from outside; they are treated like public addresses.
        with_addresses: keep public addresses and names.
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
        # The longest first: one may be a prefix of another.
        self._secrets = _any_of(line for line in lines if len(line) >= SHORTEST_SECRET)
        self._public_keys = frozenset(public_keys)
        self._host_names = _any_of(names, re.IGNORECASE)
        self._with_addresses = with_addresses
        self._aliases: dict[str, str] = {}

    def text(self, text: str) -> str:
        """Return the text without secrets."""
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
        # A removal may have joined the two ends of a secret.
        return self._secrets.sub(REMOVED, text)

    def _of_run(self, run: str) -> str:
        """Return the run with its first and longest address replaced; the rest is searched again."""
        groups = run.split(":")
        for start, end in _parts(len(groups)):
            address = _parsed(":".join(groups[start:end]))
            if isinstance(address, IPv6Address):
                named = self._of_address(":".join(groups[start:end]))
                before, after = ":".join(groups[:start]), ":".join(groups[end:])
                # The preceding part contains no address of this length, but may contain a shorter one.
                before, after = (_IPV6_RUN.sub(lambda found: self._of_run(found[0]), side) for side in (before, after))
                return ":".join([*([before] if start else []), named, *([after] if end < len(groups) else [])])
        return run

    def _of_address(self, text: str) -> str:
        address = _parsed(text)
        return self._alias(str(address)) if address is not None and _is_public(address) else text

    def _alias(self, public: str) -> str:
        return self._aliases.setdefault(public, f"public-{len(self._aliases) + 1}")


def _any_of(texts: Iterable[str], flags: int = 0) -> re.Pattern[str]:
    """Return a pattern that matches any of them; without any, one that matches nothing."""
    longest_first = sorted((text for text in set(texts) if text), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)", flags)


def _parts(count: int) -> Iterator[tuple[int, int]]:
    """Yield every stretch of that many groups, the longest first."""
    for length in range(min(count, _GROUPS), 2, -1):
        for start in range(count - length + 1):
            yield start, start + length


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    """Return whether it is a public internet address. Python follows IANA's special address registry (RFC 6890)."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is not None:
            return _is_public(inner)
    return address.is_global and not address.is_multicast
