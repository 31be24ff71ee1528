"""Checks of the coordinator as a node reaches it, with the facts that they look at (pure).

    proxy_works ─► captive_portal ─► certificate_pin ─► coordinator_tcp ─► websocket_upgrade
                                                              ├► map_current
    credential (needs no agent)                               └► join_tokens  meshray_versions

Whatever answers in the coordinator's place is told before what it breaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshray.doctor.report import FAIL, OK, SKIP, WARN, Finding, Spec

if TYPE_CHECKING:
    from meshray.doctor.facts import Facts

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

#: A token that ends sooner is as good as none for whoever plans to join a machine, seconds.
ENDS_SOON_S = 3600.0
#: A certificate of meshray's own has this subject (`meshray.coordinator.identity`).
_OWN_SUBJECT = "CN=meshray coordinator"
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


def _each(facts: Facts) -> Iterator[tuple[str, ControlFacts, EndpointSeen]]:
    for name, node in facts.nodes.items():
        if node.control is not None and node.control.decisive is not None:
            yield name, node.control, node.control.decisive


def _at(node: str) -> str:
    return f"on {node}: "


def _proxy_works(facts: Facts) -> Iterable[Finding]:
    for name, _, seen in _each(facts):
        if not seen.proxy:
            continue
        if seen.state != PROXY:
            yield Finding(OK, f"{seen.proxy} connects to {seen.endpoint}", node=name)
            continue
        host = seen.endpoint.rpartition(":")[0]
        fix = f"{_at(name)}is HTTPS_PROXY right, and {seen.endpoint} allowed there? Without the proxy: NO_PROXY={host}"
        if "407" in seen.detail:
            fix = f"{_at(name)}HTTPS_PROXY=http://USER:PASSWORD@{seen.proxy}, then meshray down; meshray up"
        yield Finding(FAIL, f"the proxy {seen.proxy} does not connect to {seen.endpoint}: {seen.detail}", fix, name)


def _captive_portal(facts: Facts) -> Iterable[Finding]:
    for name, control, seen in _each(facts):
        fix = f"{_at(name)}open http://{seen.endpoint.rpartition(':')[0]}/ in a browser and log in to the network"
        portal = control.portal
        if seen.state == PLAIN_HTTP:
            yield Finding(FAIL, f"{seen.endpoint} answers in plain HTTP: {seen.detail}", fix, name)
        elif portal is not None and portal.status == PORTAL_STATUS:
            yield Finding(FAIL, f"{portal.url} answers {portal.status}: log in first{_to(portal)}", fix, name)
        elif portal is not None and portal.location:
            evidence = f"{portal.url} answers {portal.status}{_to(portal)}: is it a login page of this network?"
            yield Finding(WARN, evidence, fix, name)
        elif control.right is not None:
            yield Finding(OK, f"nobody answers in the place of {seen.endpoint}", node=name)


def _to(portal: PortalSeen) -> str:
    return f", to {portal.location}" if portal.location else ""


def _certificate_pin(facts: Facts) -> Iterable[Finding]:
    for name, control, seen in _each(facts):
        if seen.state == OTHER_CERTIFICATE:
            shown = f"{seen.endpoint} shows the certificate {seen.fingerprint[:16]}… of {seen.subject or 'nobody'}"
            if seen.subject == _OWN_SUBJECT:
                yield Finding(
                    FAIL,
                    f"{shown}, another coordinator's than the token's ({control.expected[:16]}…)",
                    f"on the coordinator's machine: restore coordinator.crt and coordinator.key; or on {name}: "
                    "meshray leave, then join with a new token",
                    name,
                )
            else:
                yield Finding(
                    FAIL,
                    f"{shown}, issued by {seen.issuer or 'nobody'}: TLS is intercepted on the way "
                    f"(expected: {control.expected[:16]}…)",
                    f"let TLS to {seen.endpoint} pass uninspected, or take another network for {name}",
                    name,
                )
        elif seen.state in (RIGHT, ODD):
            yield Finding(OK, f"{seen.endpoint} shows the token's certificate", node=name)


#: What is wrong and what helps, by the state of the address.
_TCP: Mapping[str, tuple[str, str]] = {
    UNRESOLVED: ("the name does not resolve", "{at}mend its name server (/etc/resolv.conf), or use another network"),
    REFUSED: ("the connection is refused: nobody listens", "on the coordinator's machine: meshray up"),
    NO_ANSWER: (
        "no answer to TCP",
        "let TCP port {port} into the coordinator's machine: its firewall, its cloud's rules; where that machine has "
        "another address now: {at}meshray up --coordinator HOST:PORT",
    ),
    NO_ROUTE: (
        "there is no way to it",
        "{at}ip route get {host}; has it a network at all? Where the coordinator's machine has another address now: "
        "{at}meshray up --coordinator HOST:PORT",
    ),
    SILENT: (
        "it accepts the connection and says nothing",
        "on the coordinator's machine: meshray logs coordinator; meshray down; meshray up",
    ),
    CLOSED: ("it closes the connection at once", "on the coordinator's machine: meshray logs coordinator"),
    NOT_TLS: (
        "what answers does not speak TLS",
        "what listens at {endpoint}? On the coordinator's machine: meshray up",
    ),
    ODD: ("its answer is no coordinator's", "on the coordinator's machine: meshray logs coordinator"),
}


def _coordinator_tcp(facts: Facts) -> Iterable[Finding]:
    for name, control, seen in _each(facts):
        if seen.state in _TCP:
            _, fix = _TCP[seen.state]
            host, _, port = seen.endpoint.rpartition(":")
            tried = "; ".join(f"{one.endpoint}: {_words(one)}" for one in control.endpoints)
            yield Finding(FAIL, tried, fix.format(at=_at(name), host=host, port=port, endpoint=seen.endpoint), name)
        elif seen.state == RIGHT:
            took = f" in {seen.connect_ms:.0f} ms" if seen.connect_ms is not None else ""
            yield Finding(OK, f"{seen.endpoint} answers{took}", node=name)


def _words(seen: EndpointSeen) -> str:
    words = _TCP[seen.state][0] if seen.state in _TCP else seen.state
    return f"{words} ({seen.detail})" if seen.detail else words


def _websocket_upgrade(facts: Facts) -> Iterable[Finding]:
    for name, control, seen in _each(facts):
        if control.upgrade is None:
            yield Finding(SKIP, "the coordinator was not reached", node=name)
        elif control.upgrade == "":
            yield Finding(OK, f"{seen.endpoint} upgrades to WebSocket", node=name)
        else:
            through = f"the proxy {seen.proxy}" if seen.proxy else "a gateway on the way"
            yield Finding(
                FAIL,
                f"{seen.endpoint} does not upgrade to WebSocket: {control.upgrade}",
                f"does {through} let WebSockets pass? On the coordinator's machine: meshray logs coordinator",
                name,
            )


def _credential(facts: Facts) -> Iterable[Finding]:
    for name, control, _ in _each(facts):
        if control.accepted:
            yield Finding(OK, "the node's credential at the coordinator", node=name)
        elif control.accepted is False:
            # Without an agent that is why there is none, and what the whole report comes down to.
            yield Finding(
                FAIL,
                f"the coordinator does not know {name}'s credential: it was removed from the mesh",
                f"{_at(name)}meshray leave, then meshray join with a new token",
                name if facts.status is not None else "",
            )
        else:
            yield Finding(SKIP, "the coordinator was not reached", node=name)


def _map_current(facts: Facts) -> Iterable[Finding]:
    for name, control, _ in _each(facts):
        mine, theirs = control.revision, control.coordinator_revision
        if mine is None or theirs is None:
            yield Finding(SKIP, "there is no revision to compare with", node=name)
        elif mine < theirs:
            yield Finding(
                FAIL,
                f"it has revision {mine} of the map, the coordinator {theirs}: none came in {control.lag_s or 0:.1f} s",
                f"{_at(name)}meshray logs agent; meshray down; meshray up",
                name,
            )
        else:
            yield Finding(OK, f"revision {mine}, {control.lag_s or 0.0:.1f} s behind", node=name)


def _join_tokens(facts: Facts) -> Iterable[Finding]:
    for name, control, _ in _each(facts):
        if control.tokens is None:
            continue
        lasting = [token for token in control.tokens if token.left_s is None or token.left_s > ENDS_SOON_S]
        if lasting:
            yield Finding(OK, f"{len(lasting)} tokens let a node in", node=name)
            continue
        soon = max((token.left_s or 0.0 for token in control.tokens), default=None)
        evidence = "no token lets a node in" if soon is None else f"the last token ends in {soon / 60:.0f} minutes"
        yield Finding(WARN, evidence, f"{_at(name)}meshray token create", name)


def _meshray_versions(facts: Facts) -> Iterable[Finding]:
    teller = next((control for _, control, _ in _each(facts) if control.coordinator_version), None)
    if teller is None:
        return
    wanted = teller.coordinator_version
    for name, version in teller.versions.items():
        if version == wanted:
            yield Finding(OK, version, node=name)
        else:
            fix = f"{_at(name)}pip install meshray=={wanted}, then meshray down; meshray up"
            yield Finding(WARN, f"meshray {version}, the coordinator has {wanted}", fix, name)


def _spec(code: str, title: str, look: Callable[[Facts], Iterable[Finding]], *after: str) -> Spec:
    return Spec(code, title, ("enrolled", *after), look)


#: Before ``agent_running``: a node that was removed has no agent any more.
CREDENTIAL = _spec("credential", "the node's credential at the coordinator", _credential)
SPECS: tuple[Spec, ...] = (
    _spec("proxy_works", "the proxy to the coordinator", _proxy_works),
    _spec("captive_portal", "login page of the network", _captive_portal, "proxy_works"),
    _spec(
        "certificate_pin", "the coordinator's certificate", _certificate_pin, "proxy_works",
        "captive_portal",
    ),
    _spec("coordinator_tcp", "TCP to the coordinator", _coordinator_tcp, "proxy_works", "captive_portal"),
    _spec("websocket_upgrade", "WebSocket connections", _websocket_upgrade, "coordinator_tcp", "certificate_pin"),
    _spec("map_current", "the node's map", _map_current, "credential", "coordinator_tcp"),
    _spec("join_tokens", "tokens for further nodes", _join_tokens, "coordinator_tcp"),
    _spec("meshray_versions", "versions of the agents", _meshray_versions, "coordinator_tcp"),
)  # fmt: skip
