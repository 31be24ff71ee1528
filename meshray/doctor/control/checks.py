"""Checks of a node's connection to the coordinator (pure).

    proxy_works ─► captive_portal ─► certificate_pin ─► coordinator_tcp ─► websocket_upgrade
                                                              ├► map_current
    credential (needs no agent)                               └► join_tokens  meshray_versions

A server that answers in the coordinator's place is reported before the faults that it causes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from meshray.doctor.control.facts import (
    ANSWERED,
    OTHER_CERTIFICATE,
    PLAIN_HTTP,
    PORTAL_STATUS,
    PROXY,
    UNEXPECTED,
    PortalFacts,
)
from meshray.doctor.control.tcp_causes import coordinator_tcp, each
from meshray.doctor.facts import Facts
from meshray.doctor.report import FAIL, OK, SKIP, WARN, Finding, Spec

#: A token that ends sooner is useless for a user who plans to join a machine, seconds.
ENDS_SOON_S = 3600.0
#: A certificate created by meshray has this subject (`meshray.coordinator.certificate`).
_OWN_SUBJECT = "CN=meshray coordinator"


def _on(node: str) -> str:
    return f"on {node}: "


def _proxy_works(facts: Facts) -> Iterable[Finding]:
    for name, _, result in each(facts):
        if not result.proxy:
            continue
        if result.state != PROXY:
            yield Finding(OK, f"{result.proxy} connects to {result.endpoint}", node=name)
            continue
        host = result.endpoint.rpartition(":")[0]
        fix = (
            f"{_on(name)}is HTTPS_PROXY right, and {result.endpoint} allowed there? Without the proxy: NO_PROXY={host}"
        )
        if "407" in result.detail:
            fix = f"{_on(name)}HTTPS_PROXY=http://USER:PASSWORD@{result.proxy}, then meshray down; meshray up"
        yield Finding(
            FAIL, f"the proxy {result.proxy} does not connect to {result.endpoint}: {result.detail}", fix, name
        )


def _captive_portal(facts: Facts) -> Iterable[Finding]:
    for name, control, result in each(facts):
        fix = f"{_on(name)}open http://{result.endpoint.rpartition(':')[0]}/ in a browser and log in to the network"
        portal = control.portal
        if result.state == PLAIN_HTTP:
            yield Finding(FAIL, f"{result.endpoint} answers in plain HTTP: {result.detail}", fix, name)
        elif portal is not None and portal.status == PORTAL_STATUS:
            yield Finding(FAIL, f"{portal.url} answers {portal.status}: log in first{_redirection(portal)}", fix, name)
        elif portal is not None and portal.location:
            evidence = (
                f"{portal.url} answers {portal.status}{_redirection(portal)}: is it a login page of this network?"
            )
            yield Finding(WARN, evidence, fix, name)
        elif control.reachable is not None:
            yield Finding(OK, f"nothing else answers in place of {result.endpoint}", node=name)


def _redirection(portal: PortalFacts) -> str:
    return f", to {portal.location}" if portal.location else ""


def _certificate_pin(facts: Facts) -> Iterable[Finding]:
    for name, control, result in each(facts):
        if result.state == OTHER_CERTIFICATE:
            certificate = (
                f"{result.endpoint} shows the certificate {result.fingerprint[:16]}… of {result.subject or 'nobody'}"
            )
            if result.subject == _OWN_SUBJECT:
                yield Finding(
                    FAIL,
                    f"{certificate}, another coordinator's than the token's ({control.expected[:16]}…)",
                    f"on the coordinator's machine: restore coordinator.crt and coordinator.key; or on {name}: "
                    "meshray leave, then join with a new token",
                    name,
                )
            else:
                yield Finding(
                    FAIL,
                    f"{certificate}, issued by {result.issuer or 'nobody'}: TLS is intercepted on the path "
                    f"(expected: {control.expected[:16]}…)",
                    f"allow TLS to {result.endpoint} without inspection, or use another network for {name}",
                    name,
                )
        elif result.state in (ANSWERED, UNEXPECTED):
            yield Finding(OK, f"{result.endpoint} shows the token's certificate", node=name)


def _websocket_upgrade(facts: Facts) -> Iterable[Finding]:
    for name, control, result in each(facts):
        if control.upgrade is None:
            yield Finding(SKIP, "the coordinator was not reached", node=name)
        elif control.upgrade == "":
            yield Finding(OK, f"{result.endpoint} upgrades to WebSocket", node=name)
        else:
            through = f"the proxy {result.proxy}" if result.proxy else "a gateway on the path"
            yield Finding(
                FAIL,
                f"{result.endpoint} does not upgrade to WebSocket: {control.upgrade}",
                f"does {through} let WebSockets pass? On the coordinator's machine: meshray logs coordinator",
                name,
            )


def _credential(facts: Facts) -> Iterable[Finding]:
    for name, control, _ in each(facts):
        if control.accepted:
            yield Finding(OK, "the node's credential at the coordinator", node=name)
        elif control.accepted is False and facts.status is not None:
            # A coordinator that knows of the removal ends the node's agent (`meshray.coordinator.restore`).
            yield Finding(
                FAIL,
                f"the coordinator does not know {name}'s credential, but did not stop its agent as after a removal: "
                "its database was lost, or is an older copy",
                "on the coordinator's machine: meshray logs coordinator, and restore its newest coordinator.db; if "
                f"that is lost, on {name}: meshray leave, then meshray join with a new token",
                name,
            )
        elif control.accepted is False:
            # Without an agent this is the reason, and the main result of the report.
            yield Finding(
                FAIL,
                f"the coordinator does not know {name}'s credential: it was removed from the mesh",
                f"{_on(name)}meshray leave, then meshray join with a new token",
            )
        else:
            yield Finding(SKIP, "the coordinator was not reached", node=name)


def _map_current(facts: Facts) -> Iterable[Finding]:
    for name, control, _ in each(facts):
        own_revision, current_revision = control.revision, control.coordinator_revision
        if own_revision is None or current_revision is None:
            yield Finding(SKIP, "there is no revision to compare with", node=name)
        elif own_revision < current_revision:
            yield Finding(
                FAIL,
                f"it has revision {own_revision} of the map, the coordinator {current_revision}: no update arrived in "
                f"{control.lag_s or 0:.1f} s",
                f"{_on(name)}meshray logs agent; meshray down; meshray up",
                name,
            )
        else:
            yield Finding(OK, f"revision {own_revision}, {control.lag_s or 0.0:.1f} s behind", node=name)


def _join_tokens(facts: Facts) -> Iterable[Finding]:
    for name, control, _ in each(facts):
        if control.tokens is None:
            continue
        usable = [token for token in control.tokens if token.left_s is None or token.left_s > ENDS_SOON_S]
        if usable:
            yield Finding(OK, f"{len(usable)} tokens can enrol a node", node=name)
            continue
        soon = max((token.left_s or 0.0 for token in control.tokens), default=None)
        evidence = "no token can enrol a node" if soon is None else f"the last token expires in {soon / 60:.0f} minutes"
        yield Finding(WARN, evidence, f"{_on(name)}meshray token create", name)


def _meshray_versions(facts: Facts) -> Iterable[Finding]:
    reporter = next((control for _, control, _ in each(facts) if control.coordinator_version), None)
    if reporter is None:
        return
    wanted = reporter.coordinator_version
    for name, version in reporter.versions.items():
        if version == wanted:
            yield Finding(OK, version, node=name)
        else:
            fix = f"{_on(name)}pip install meshray=={wanted}, then meshray down; meshray up"
            yield Finding(WARN, f"meshray {version}, the coordinator has {wanted}", fix, name)


def _spec(code: str, title: str, run: Callable[[Facts], Iterable[Finding]], *after: str) -> Spec:
    return Spec(code, title, ("enrolled", *after), run)


#: This comes before ``agent_running``: a removed node has no agent.
CREDENTIAL = _spec("credential", "the node's credential at the coordinator", _credential)
SPECS: tuple[Spec, ...] = (
    _spec("proxy_works", "the proxy to the coordinator", _proxy_works),
    _spec("captive_portal", "login page of the network", _captive_portal, "proxy_works"),
    _spec(
        "certificate_pin", "the coordinator's certificate", _certificate_pin, "proxy_works",
        "captive_portal",
    ),
    _spec("coordinator_tcp", "TCP to the coordinator", coordinator_tcp, "proxy_works", "captive_portal"),
    _spec("websocket_upgrade", "WebSocket connections", _websocket_upgrade, "coordinator_tcp", "certificate_pin"),
    _spec("map_current", "the node's map", _map_current, "credential", "coordinator_tcp"),
    _spec("join_tokens", "tokens for further nodes", _join_tokens, "coordinator_tcp"),
    _spec("meshray_versions", "versions of the agents", _meshray_versions, "coordinator_tcp"),
)  # fmt: skip
