"""A node's observations at the coordinator's addresses, and the doctor's findings."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshray.doctor.control.facts import (
    ANSWERED,
    CLOSED,
    NO_ANSWER,
    NO_ROUTE,
    NO_SERVER,
    NOT_TLS,
    OTHER_CERTIFICATE,
    PLAIN_HTTP,
    PROXY,
    REFUSED,
    SILENT,
    UNEXPECTED,
    UNRESOLVED,
    ControlFacts,
    EndpointFacts,
    PortalFacts,
    TokenFacts,
)
from meshray.doctor.examine import examine
from meshray.doctor.facts import Facts, HostFacts, NodeFacts
from meshray.doctor.outer.facts import OuterAddress, OuterFacts
from meshray.doctor.path.facts import PathFacts, PeerFacts
from meshray.doctor.report import FAIL, OK, SKIP, WARN
from meshray.model.node import NODE_IDENTITY
from meshray.model.path import PathKind, Transport
from meshray.model.problem import Problem
from meshray.protocol.doctor import Check
from tests.unit.doctor.test_checks import HEAD, ME, OTHER, seen_by

AT = "203.0.113.10:51888"
GOOD = ControlFacts(
    endpoints=(EndpointFacts(AT, ANSWERED, connect_ms=2.0),),
    expected="ab" * 32,
    upgrade="",
    accepted=True,
    revision=7,
    coordinator_revision=7,
    lag_s=0.0,
    tokens=(TokenFacts("t1", 7200.0, None),),
    versions={"head": "0.1.0", "gpu-1": "0.1.0"},
    coordinator_version="0.1.0",
)
CODES = {
    "captive_portal", "certificate_pin", "coordinator_tcp", "websocket_upgrade", "credential", "map_current",
    "join_tokens", "meshray_versions",
}  # fmt: skip


def report(control: ControlFacts, *, reachable: bool = False) -> tuple[Check, ...]:
    seen = seen_by("gpu-1", HEAD, ME, OTHER, reachable=reachable)
    return examine(replace(seen, nodes={"gpu-1": NodeFacts("gpu-1", control=control, path=PathFacts())}))


def at(*seen: EndpointFacts, portal: PortalFacts | None = None) -> ControlFacts:
    return ControlFacts(endpoints=seen, expected="ab" * 32, portal=portal)


def first_fail(checks: tuple[Check, ...]) -> Check:
    return next(check for check in checks if check.status == FAIL)


def of(code: str, checks: tuple[Check, ...]) -> Check:
    (found,) = [check for check in checks if check.code == code and check.node in ("gpu-1", None)]
    return found


def test_a_coordinator_that_answers_is_fine_in_every_respect() -> None:
    checks = [check for check in report(GOOD, reachable=True) if check.code in CODES]
    assert {check.code for check in checks} == CODES
    assert {check.status for check in checks} == {OK}


@pytest.mark.parametrize(
    ("seen", "code", "evidence", "fix"),
    [
        (EndpointFacts(AT, UNRESOLVED), "coordinator_tcp", "no name server knows it", "resolv.conf"),
        (
            EndpointFacts(AT, UNRESOLVED, detail=f"{NO_SERVER} in 2.5 s"),
            "coordinator_tcp",
            "no name server answers",
            "is the name server in /etc/resolv.conf right",
        ),
        (EndpointFacts(AT, REFUSED), "coordinator_tcp", "refused", "meshray up"),
        (EndpointFacts(AT, NO_ANSWER), "coordinator_tcp", "no answer to TCP", "TCP port 51888"),
        (EndpointFacts(AT, NO_ROUTE), "coordinator_tcp", "no route", "ip route get 203.0.113.10"),
        (EndpointFacts(AT, SILENT), "coordinator_tcp", "sends nothing", "meshray logs coordinator"),
        (EndpointFacts(AT, CLOSED), "coordinator_tcp", "closes", "meshray logs coordinator"),
        (EndpointFacts(AT, NOT_TLS), "coordinator_tcp", "TLS", "listens"),
        (EndpointFacts(AT, UNEXPECTED, detail="HTTP 502"), "coordinator_tcp", "HTTP 502", "meshray logs coordinator"),
        (EndpointFacts(AT, PLAIN_HTTP, detail="302, to http://in.example/"), "captive_portal", "in.example", "log in"),
        (
            EndpointFacts(AT, OTHER_CERTIFICATE, subject="CN=box", issuer="CN=Corp CA", fingerprint="cd" * 32),
            "certificate_pin", "intercepted", "without inspection",
        ),
        (
            EndpointFacts(AT, OTHER_CERTIFICATE, subject="CN=meshray coordinator", fingerprint="cd" * 32),
            "certificate_pin", "another coordinator's", "restore coordinator.crt",
        ),
        (EndpointFacts(AT, PROXY, "p:8888", "it answered 407"), "proxy_works", "407", "USER:PASSWORD@p:8888"),
        (EndpointFacts(AT, PROXY, "p:8888", "it answered 403"), "proxy_works", "403", "NO_PROXY=203.0.113.10"),
    ],
)  # fmt: skip
def test_a_server_in_the_coordinators_place_is_reported_once(
    seen: EndpointFacts, code: str, evidence: str, fix: str
) -> None:
    checks = report(at(seen))
    failing = [check for check in checks if check.status == FAIL]
    assert [(check.code, check.node) for check in failing] == [(code, "gpu-1")]
    assert evidence in failing[0].evidence
    assert fix in failing[0].fix
    assert of("coordinator_reachable", checks).status == SKIP


def connected(name: str) -> dict[str, NodeFacts]:
    return {name: NodeFacts(name, control=GOOD, path=PathFacts())}


def by_udp(*, answered: bool) -> PathFacts:
    """Return the path of a node whose UDP to the coordinator's machine was tried."""
    hub = PeerFacts(True, True, PathKind.DIRECT, Transport.UDP, AT, sent=5, received=5 if answered else 0)
    return PathFacts(peers={"head": hub})


@pytest.mark.parametrize(
    ("state", "others", "over_overlay", "path", "cause", "not_the_cause"),
    [
        (NO_ANSWER, connected("gpu-2"), "", PathFacts(), "a network on the path from gpu-1", "a firewall of the coord"),
        (NO_ANSWER, {}, ANSWERED, by_udp(answered=True), "drop it, or a network on the path", "is off, or has another"),
        (NO_ANSWER, {}, "", by_udp(answered=True), "a firewall of the coordinator's machine", "is off, or has another"),
        (NO_ANSWER, {}, NO_ANSWER, by_udp(answered=False), "is off, or has another address now", ""),
        (REFUSED, connected("gpu-2"), ANSWERED, PathFacts(), "a firewall on the path, or on gpu-1", "nothing listens"),
        (REFUSED, {}, ANSWERED, by_udp(answered=True), "a firewall on the path, or on gpu-1", "nothing listens"),
        (REFUSED, {}, REFUSED, by_udp(answered=True), "nothing listens there", "another machine has that address"),
        (SILENT, connected("gpu-2"), "", PathFacts(), "a gateway on the path from gpu-1", "the coordinator hangs"),
        (SILENT, {}, SILENT, PathFacts(), "the coordinator hangs", "a gateway on the path"),
    ],
)
def test_witnesses_decide_why_the_coordinator_does_not_answer(
    state: str, others: dict[str, NodeFacts], over_overlay: str, path: PathFacts, cause: str, not_the_cause: str
) -> None:
    silent = replace(at(EndpointFacts(AT, state)), over_overlay=over_overlay)
    seen = seen_by("gpu-1", HEAD, ME, OTHER, reachable=False)
    checks = examine(replace(seen, nodes={"gpu-1": NodeFacts("gpu-1", control=silent, path=path), **others}))
    failed = first_fail(checks)
    assert (failed.code, failed.node) == ("coordinator_tcp", "gpu-1")
    assert cause in failed.evidence
    assert not not_the_cause or not_the_cause not in failed.evidence


def test_causes_that_cannot_be_distinguished_are_both_reported() -> None:
    failed = first_fail(report(at(EndpointFacts(AT, REFUSED))))
    assert "nothing listens there: the coordinator has ended, or a firewall on the path" in failed.evidence
    assert failed.fix.startswith("on gpu-1: tracepath -n 203.0.113.10")
    assert len(failed.explanation) == 4


def with_peer(hub: PathFacts, *, answered: bool) -> PathFacts:
    """Return the paths of a node that sends UDP to another worker directly as well."""
    peer = PeerFacts(False, True, PathKind.DIRECT, Transport.UDP, "203.0.113.77:51888", sent=5, received=5 * answered)
    return PathFacts(peers={**hub.peers, "gpu-2": peer})


def routed(*, neighbour: str = "", interface: str = "eth0") -> HostFacts:
    address = OuterAddress("head", AT, "tcp", interface, network="0.0.0.0/0", table=254, neighbour=neighbour)
    return HostFacts(outer=OuterFacts(addresses=(address,)))


def test_a_node_that_reaches_nobody_suspects_its_own_network_and_not_the_coordinators_machine() -> None:
    silent = at(EndpointFacts(AT, NO_ANSWER))
    for answered, cause in ((False, "a network on the path from gpu-1 drops it (UDP"), (True, "or the coordinator's")):
        node = NodeFacts("gpu-1", path=with_peer(by_udp(answered=False), answered=answered), control=silent)
        seen = seen_by("gpu-1", HEAD, ME, OTHER, reachable=False)
        assert cause in first_fail(examine(replace(seen, nodes={"gpu-1": node}))).evidence


@pytest.mark.parametrize(
    ("host", "cause", "not_the_cause"),
    [
        (routed(), "a router on the path from gpu-1 reports", "this machine has no network"),
        (routed(interface=""), "this machine has no network, or none that leads there", "a router on the path"),
        (HostFacts(), "this machine has no network", "a router on the path"),
    ],
)
def test_an_address_that_cannot_be_reached_is_reported_by_this_machine_or_by_a_router(
    host: HostFacts, cause: str, not_the_cause: str
) -> None:
    seen = seen_by("gpu-1", HEAD, ME, OTHER, reachable=False)
    node = NodeFacts("gpu-1", host, PathFacts(), at(EndpointFacts(AT, NO_ROUTE, detail="No route to host")))
    failed = first_fail(examine(replace(seen, nodes={"gpu-1": node})))
    assert (failed.code, failed.node) == ("coordinator_tcp", "gpu-1")
    assert cause in failed.evidence
    assert not_the_cause not in failed.evidence


def test_a_firewall_of_the_coordinators_machine_may_reject_as_well() -> None:
    refused = replace(at(EndpointFacts(AT, REFUSED)), over_overlay=ANSWERED)
    evidence = first_fail(report(refused)).evidence
    assert "a firewall on the path, or on gpu-1 itself" in evidence
    assert "or a firewall of the coordinator's machine rejects it" in evidence


def test_one_good_address_is_enough() -> None:
    seen = EndpointFacts("192.168.1.10:51888", REFUSED), EndpointFacts(AT, ANSWERED, connect_ms=3.0)
    assert of("coordinator_tcp", report(replace(GOOD, endpoints=seen), reachable=True)).status == OK


@pytest.mark.parametrize(
    ("portal", "status"),
    [
        (PortalFacts("http://203.0.113.10/", 511, "http://login.example/"), FAIL),
        (PortalFacts("http://203.0.113.10/", 302, "http://login.example/"), WARN),
    ],
)
def test_a_captive_portal_is_detected_at_the_url_that_browsers_probe(portal: PortalFacts, status: str) -> None:
    check = of("captive_portal", report(at(EndpointFacts(AT, NO_ANSWER), portal=portal)))
    assert check.status == status
    assert "login.example" in check.evidence


def test_a_web_server_beside_the_coordinator_is_not_a_portal() -> None:
    checks = report(at(EndpointFacts(AT, REFUSED), portal=PortalFacts("http://203.0.113.10/", 200)))
    assert first_fail(checks).code == "coordinator_tcp"
    assert not [check for check in checks if check.code == "captive_portal"]


@pytest.mark.parametrize(
    ("change", "code", "status"),
    [
        ({"upgrade": "HTTP 403"}, "websocket_upgrade", FAIL),
        ({"accepted": False}, "credential", FAIL),
        ({"revision": 5, "lag_s": 1.5}, "map_current", FAIL),
        ({"revision": 9}, "map_current", OK),
        ({"tokens": ()}, "join_tokens", WARN),
        ({"tokens": (TokenFacts("t1", 600.0, 1),)}, "join_tokens", WARN),
        ({"tokens": (TokenFacts("t1", None, 1),)}, "join_tokens", OK),
        ({"versions": {"gpu-1": "0.0.9"}}, "meshray_versions", WARN),
        ({"accepted": None}, "credential", SKIP),
    ],
)
def test_the_coordinators_messages(change: dict[str, object], code: str, status: str) -> None:
    checks = report(replace(GOOD, **change), reachable=True)  # type: ignore[arg-type]
    assert of(code, checks).status == status
    assert [check.code for check in checks if check.status == FAIL] == ([code] if status == FAIL else [])


def test_a_silent_name_server_is_a_warning_while_an_address_answers() -> None:
    named = EndpointFacts("head.example.org:51888", UNRESOLVED, detail=f"{NO_SERVER} in 2.5 s")
    checks = report(replace(GOOD, endpoints=(named, *GOOD.endpoints)), reachable=True)
    found = of("coordinator_tcp", checks)
    assert (found.status, AT in found.evidence) == (WARN, True)
    assert "no name server answers; the node uses the address" in found.evidence
    assert [check.code for check in checks if check.status == FAIL] == []
    # The name may be known in another network only.
    unknown = replace(named, detail="Name or service not known")
    checks = report(replace(GOOD, endpoints=(unknown, *GOOD.endpoints)), reachable=True)
    assert of("coordinator_tcp", checks).status == OK


def test_an_unsigned_node_is_a_warning_and_a_refused_one_a_failure() -> None:
    def about_other(facts: Facts) -> Check:
        (found,) = [check for check in examine(facts) if (check.code, check.node) == (NODE_IDENTITY, "gpu-2")]
        return found

    seen = seen_by("gpu-1", HEAD, ME, OTHER)
    mine = NodeFacts("gpu-1", control=ControlFacts(unsigned=("gpu-2",)), path=PathFacts())
    warned = about_other(replace(seen, nodes={"gpu-1": mine}))
    assert (warned.status, "earlier release" in warned.evidence) == (WARN, True)
    refused = Problem(NODE_IDENTITY, "gpu-2: the signature of its key is wrong", "gpu-2", "meshray node rm gpu-2")
    failed = about_other(replace(seen, nodes={"gpu-1": replace(mine, complaints=(refused,))}))
    assert (failed.status, failed.fix) == (FAIL, "meshray node rm gpu-2")


def test_a_refused_node_whose_agent_still_runs_was_not_removed() -> None:
    found = of("credential", report(replace(GOOD, accepted=False), reachable=True))
    assert "its database was lost, or is an older copy" in found.evidence
    assert found.fix.startswith("on the coordinator's machine: ")
    assert found.fix.index("restore its newest coordinator.db") < found.fix.index("meshray leave")


def test_a_removed_node_has_no_agent_and_gets_the_reason() -> None:
    nodes = {"gpu-1": NodeFacts("gpu-1", control=replace(GOOD, accepted=False))}
    checks = examine(Facts(agent_error="no agent runs on this machine", nodes=nodes))
    assert [check.code for check in checks if check.status == FAIL] == ["credential"]
    assert "meshray leave" in first_fail(checks).fix
