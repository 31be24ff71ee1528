"""The requests and answers of the coordinator's API about passes for its page, as in `meshray.protocol.api`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from meshray.protocol.api import Time
from meshray.protocol.fields import EndpointTexts, Text64

#: A pass lasts at least a minute, and at most a year.
MIN_PASS_TTL_S, MAX_PASS_TTL_S = 60, 366 * 86400
PassName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=64,
        # The dollar sign of a pattern also matches before a final line break.
        pattern="^(?:[A-Za-z0-9][A-Za-z0-9._@+-]*)$(?!\n)",
        description="the recipient; letters, digits and . _ @ + -",
    ),
]
LevelWord = Annotated[
    Literal["read", "use", "admin"],
    Meta(
        description="read: the pages; use: also all methods of the cluster's programs; admin: also tokens, removals "
        "and orders to nodes"
    ),
]
Fingerprint = Annotated[
    str, Meta(pattern="^(?:[0-9a-f]{64})$", description="SHA-256 of the coordinator's certificate, hexadecimal")
]


class NewPass(Struct, frozen=True):
    """A pass for the coordinator's page: one browser opens it with the pass's URL."""

    name: PassName
    ttl_s: Annotated[int, Meta(ge=MIN_PASS_TTL_S, le=MAX_PASS_TTL_S)] = 8 * 3600
    level: LevelWord = "read"


class CreatedPass(Struct, frozen=True):
    """A new pass; only this answer contains its secret."""

    secret: Annotated[str, Meta(min_length=1, max_length=128, extra_json_schema={"format": "password"})]
    id: Text64
    name: Text64
    level: LevelWord
    expires: Time
    endpoints: EndpointTexts
    port: Annotated[int, Meta(ge=1, le=65535)]
    fingerprint: Fingerprint

    def __repr__(self) -> str:
        return f"CreatedPass({self.id!r}, {self.name!r}, …)"


class PassForm(Struct, frozen=True):
    """A pass, without its secret."""

    id: Text64
    name: Text64
    level: LevelWord
    created: Time
    expires: Time
    used: Annotated[
        float | None, Meta(description="when a browser opened the page with it, unix seconds; null: not yet")
    ]
    revoked: bool


class Passes(Struct, frozen=True):
    """All passes that work, and those that ended in the last days."""

    passes: tuple[PassForm, ...]


class CreatedLink(Struct, frozen=True):
    """A secret with which one browser of the calling node opens the coordinator's page, soon and once."""

    secret: Annotated[str, Meta(min_length=1, max_length=128, extra_json_schema={"format": "password"})]
    level: LevelWord
    expires: Annotated[float, Meta(description="the time by which a browser must open it, unix seconds")]
    endpoints: EndpointTexts
    port: Annotated[int, Meta(ge=1, le=65535)]
    fingerprint: Fingerprint

    def __repr__(self) -> str:
        return f"CreatedLink({self.level!r}, …)"
