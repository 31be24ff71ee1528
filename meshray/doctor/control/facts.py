"""What one node finds out about its connection to the coordinator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: What was found at one address of the coordinator.
RIGHT = "right"
UNRESOLVED = "unresolved"


REFUSED = "refused"
NO_ANSWER = "no answer"


NO_ROUTE = "no route"
SILENT = "silent"


CLOSED = "closed"
NOT_TLS = "not tls"


PLAIN_HTTP = "plain http"
OTHER_CERTIFICATE = "other certificate"


PROXY = "proxy"
#: The right certificate, and then no answer of a coordinator.
ODD = "odd"
#: "Network Authentication Required" (RFC 6585, section 6): a captive portal says so itself.
PORTAL_STATUS = 511


@dataclass(frozen=True)
class EndpointSeen:
    """One address of the coordinator.

    Attributes:
        state: one of the words above.
        proxy: HOST:PORT of the proxy on the way; empty: none.
        detail: what happened there, in words.
        subject: of the certificate that was shown, with issuer and SHA-256.
        connect_ms: until TCP was connected.
    """

    endpoint: str = ""
    state: str = ""
    proxy: str = ""
    detail: str = ""
    subject: str = ""
    issuer: str = ""
    fingerprint: str = ""
    connect_ms: float | None = None


@dataclass(frozen=True)
class PortalSeen:
    """What plain HTTP at port 80 of the coordinator's host answered, where the coordinator itself did not."""

    url: str = ""
    status: int = 0
    location: str = ""


@dataclass(frozen=True)
class TokenSeen:
    """A token as the coordinator lists it. ``left_s`` None: never ends; ``uses_left`` None: any number."""

    id: str = ""
    left_s: float | None = None
    uses_left: int | None = None


@dataclass(frozen=True)
class ControlFacts:
    """Of one node.

    Attributes:
        endpoints: every address of the coordinator, the one that answered at enrolment first.
        expected: SHA-256 of the certificate from the token, hexadecimal.
        portal: None: nothing answered there, or it was not asked.
        upgrade: "" where a WebSocket was opened, what happened instead, None where it could not be tried.
        accepted: the coordinator knows this node's credential; None: it was not asked.
        revision: of this node's map, after waiting for what the coordinator has; None: it has none.
        coordinator_revision: of the coordinator's.
        lag_s: how long the map took to come to that revision.
        tokens: that still let a node in; None: this node does not run the coordinator, or was not told.
        versions: of meshray, of the nodes that are online; ``coordinator_version`` with them.
        unsigned: the names of the nodes whose keys no identity signs, as this node sees it.
    """

    endpoints: tuple[EndpointSeen, ...] = ()
    expected: str = ""
    portal: PortalSeen | None = None
    upgrade: str | None = None
    accepted: bool | None = None
    revision: int | None = None
    coordinator_revision: int | None = None
    lag_s: float | None = None
    tokens: tuple[TokenSeen, ...] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    coordinator_version: str = ""
    unsigned: tuple[str, ...] = ()

    @property
    def right(self) -> EndpointSeen | None:
        """The first address at which the coordinator answered."""
        return next((seen for seen in self.endpoints if seen.state == RIGHT), None)

    @property
    def decisive(self) -> EndpointSeen | None:
        """The address that tells: one that is right, else the one that was right at enrolment."""
        return self.right or next(iter(self.endpoints), None)
