"""The results of `meshray web …`: frozen values that `output` shows to users and `envelope` to scripts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshray.cli.results import Result

if TYPE_CHECKING:
    from meshray.protocol.web_answers import PassEntry


@dataclass(frozen=True)
class PageAddress(Result):
    """``web invite`` and ``web open``: the address with which one browser opens the page.

    Attributes:
        url: it contains the secret.
        id, name, port: those of the pass, and the coordinator's port on its machine; empty for ``web open``.
        level: ``read``, ``use`` or ``admin``.
        expires: unix seconds: when the pass and its session end; for a link, by when a browser must have opened it.
        fingerprint: SHA-256 of the coordinator's certificate, as browsers show it.
    """

    url: str = field(repr=False)
    level: str
    expires: float
    fingerprint: str
    id: str = ""
    name: str = ""
    port: int = 0

    def to_json(self) -> dict[str, object]:
        """Return the fields of ``web invite --json`` and ``web open --json``."""
        return {
            **({"id": self.id, "name": self.name, "port": self.port} if self.id else {}),
            "url": self.url,
            "level": self.level,
            "expires": self.expires,
            "fingerprint": self.fingerprint,
        }


@dataclass(frozen=True)
class PassList(Result):
    """``web list``: the coordinator's entries, never their secrets. ``now`` is unix time."""

    passes: tuple[PassEntry, ...]
    now: float = 0.0

    def to_json(self) -> dict[str, object]:
        """Return the fields of ``web list --json``."""
        from meshray.protocol.codec import to_json

        return {"passes": [to_json(entry) for entry in self.passes]}


@dataclass(frozen=True)
class PassRevoked(Result):
    """``web revoke``."""

    id: str
    name: str

    def to_json(self) -> dict[str, object]:
        """Return the fields of ``web revoke --json``."""
        return {"id": self.id, "name": self.name, "revoked": True}
