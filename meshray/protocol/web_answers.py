"""The answers of `meshray web …` with ``--json``, as in `meshray.protocol.answers`."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from meshray.protocol.passes import PassForm


class WebOpen(Struct, frozen=True, kw_only=True):
    """``web open``.

    Attributes:
        url: the address for one browser; it contains the secret.
        level: ``read``, ``use`` or ``admin``.
        expires: unix seconds: when the session ends; for a node's link, by when it must be opened.
        fingerprint: SHA-256 of the coordinator's certificate, as browsers show it.
    """

    url: str
    level: str
    expires: float
    fingerprint: str


class WebInvite(Struct, frozen=True, kw_only=True):
    """``web invite``.

    Attributes:
        id: the pass's id, for ``web revoke``.
        name: the pass's name.
        url: the address for one browser; it contains the secret.
        level: ``read``, ``use`` or ``admin``.
        expires: unix seconds: when the pass and its session end.
        fingerprint: SHA-256 of the coordinator's certificate, as browsers show it.
        port: the coordinator's TCP port on its own machine.
    """

    id: str
    name: str
    url: str
    level: str
    expires: float
    fingerprint: str
    port: int


class PassEntry(PassForm, frozen=True):
    """One pass, never its secret.

    Attributes:
        id: the pass's id.
        name: the pass's name.
        level: ``read``, ``use`` or ``admin``.
        created: unix seconds.
        expires: unix seconds.
        used: when a browser opened the page with it, unix seconds; None: not yet.
        revoked: it was revoked.
    """


class WebList(Struct, frozen=True):
    """``web list``.

    Attributes:
        passes: those that work, and those that ended in the last week.
    """

    passes: tuple[PassEntry, ...]


class WebRevoke(Struct, frozen=True):
    """``web revoke``.

    Attributes:
        id: the pass's id.
        name: the pass's name.
        revoked: always true.
    """

    id: str
    name: str
    revoked: bool


WEB_EXAMPLES: Mapping[str, Struct] = {
    "web invite": WebInvite(
        id="5d0c9e1b",
        name="ana",
        url="https://203.0.113.7:51888/enter#…",
        level="read",
        expires=1767254400.0,
        fingerprint="8F:3A:…",
        port=51888,
    ),
    "web list": WebList(
        (
            PassEntry(
                id="5d0c9e1b",
                name="ana",
                level="read",
                created=1767225600.0,
                expires=1767254400.0,
                used=1767225660.0,
                revoked=False,
            ),
        )
    ),
    "web revoke": WebRevoke("5d0c9e1b", "ana", revoked=True),
    "web open": WebOpen(
        url="https://203.0.113.7:51888/enter#…", level="use", expires=1767225720.0, fingerprint="8F:3A:…"
    ),
}
