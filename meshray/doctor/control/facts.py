"""The facts about one node's connection to the coordinator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: The result at one address of the coordinator.
ANSWERED = "right"
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
#: The right certificate, but then no answer of a coordinator.
UNEXPECTED = "odd"
#: The beginning of the details if no name server answered in time.
NO_SERVER = "no name server answered"
#: "Network Authentication Required" (RFC 6585, section 6): a captive portal declares itself.
PORTAL_STATUS = 511


@dataclass(frozen=True)
class EndpointFacts:
    """One address of the coordinator.

    Attributes:
        state: one of the states above.
        proxy: HOST:PORT of the proxy in between; empty: none.
        detail: a description of the result.
        subject: the subject of the server's certificate, with issuer and SHA-256.
        connect_ms: milliseconds until TCP was connected.
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
class PortalFacts:
    """The answer of plain HTTP at port 80 of the coordinator's host, if the coordinator itself did not answer."""

    url: str = ""
    status: int = 0
    location: str = ""


@dataclass(frozen=True)
class TokenFacts:
    """A token in the coordinator's list. ``left_s`` None: it does not expire; ``uses_left`` None: any number."""

    id: str = ""
    left_s: float | None = None
    uses_left: int | None = None


@dataclass(frozen=True)
class ControlFacts:
    """The control facts of one node.

    Attributes:
        endpoints: every address of the coordinator, the one that answered at enrolment first.
        expected: SHA-256 of the certificate from the token, hexadecimal.
        portal: None: no server answered there, or it was not asked.
        upgrade: "" if a WebSocket was opened; otherwise the failure; None if it could not be tried.
        over_overlay: the state of the coordinator at its overlay address; empty: not tried, because another answered.
        accepted: whether the coordinator knows this node's credential; None: it was not asked.
        revision: of this node's map, after waiting for the coordinator's; None: it has no map.
        coordinator_revision: of the coordinator's map.
        lag_s: seconds until the map reached that revision.
        tokens: the tokens that are still valid; None: this node does not run the coordinator, or got no list.
        versions: meshray's versions on the nodes that are online, with ``coordinator_version``.
        unsigned: the names of the nodes whose keys no identity signs, according to this node.
    """

    endpoints: tuple[EndpointFacts, ...] = ()
    expected: str = ""
    portal: PortalFacts | None = None
    over_overlay: str = ""
    upgrade: str | None = None
    accepted: bool | None = None
    revision: int | None = None
    coordinator_revision: int | None = None
    lag_s: float | None = None
    tokens: tuple[TokenFacts, ...] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    coordinator_version: str = ""
    unsigned: tuple[str, ...] = ()

    @property
    def reachable(self) -> EndpointFacts | None:
        """The first address at which the coordinator answered."""
        return next((result for result in self.endpoints if result.state == ANSWERED), None)

    @property
    def decisive(self) -> EndpointFacts | None:
        """The decisive address: one at which the coordinator answered, else the one that worked at enrolment."""
        return self.reachable or next(iter(self.endpoints), None)
