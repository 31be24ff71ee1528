"""Which node reaches which, and the doctor's findings."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from meshray.doctor.control.facts import ANSWERED, ControlFacts, EndpointFacts
from meshray.doctor.examine import examine
from meshray.doctor.facts import Facts, HostFacts, NodeFacts, decode, encode
from meshray.doctor.path.facts import PathFacts, PeerFacts
from meshray.doctor.pod.facts import PodFacts
from meshray.doctor.report import FAIL, OK, SKIP, WARN
from meshray.model.path import PathKind, Transport
from meshray.protocol.doctor import Check
from meshray.protocol.status import PathStatus
from tests.unit.doctor.test_checks import node, seen_by

HUB_AT = "203.0.113.10:51888"
UP = PeerFacts(
    online=True, kind=PathKind.DIRECT, transport="udp", endpoint="198.51.100.7:51888", handshake_age_s=9.0,
    promised_mtu=1420,
    sent=10, received=10, rtt_ms=4.0, took_s=0.5, full_passes=True, small_passes=True,
)  # fmt: skip
TO_HUB = replace(UP, is_hub=True, endpoint=HUB_AT)
THROUGH = replace(UP, kind=PathKind.HUB, endpoint=HUB_AT)
DEAF = {"received": 0, "rtt_ms": None, "took_s": 1.7, "full_passes": None, "small_passes": None}
CONTROL = ControlFacts(endpoints=(EndpointFacts(HUB_AT, ANSWERED, connect_ms=2.0),), upgrade="", accepted=True)
PATH = {"head", "gpu-1", "gpu-2"}


def way(name: str, **peers: PeerFacts) -> NodeFacts:
    is_hub = name == "head"
    path = PathFacts(
        transport="auto", is_hub=is_hub, port=51888, addresses=("192.168.7.10",), keepalive_s=20,
        dialled={} if is_hub else {"head": HUB_AT},
        peers={peer.replace("_", "-"): seen for peer, seen in peers.items()},
    )  # fmt: skip
    return NodeFacts(name, path=path, control=CONTROL)


HEAD = way("head", gpu_1=UP, gpu_2=UP)
ONE = way("gpu-1", head=TO_HUB, gpu_2=THROUGH)
TWO = way("gpu-2", head=TO_HUB, gpu_1=THROUGH)


def facts(*nodes: NodeFacts, me: str = "head", **changes: object) -> Facts:
    statuses = [node("head", 1, "head"), node("gpu-1", 2), node("gpu-2", 3)]
    statuses = [
        msgspec.structs.replace(one, path=PathStatus(PathKind.SELF)) if one.name == me else one for one in statuses
    ]
    return replace(seen_by(me, *statuses), nodes={one.name: one for one in nodes}, **changes)  # type: ignore[arg-type]


def with_path(one: NodeFacts, **changes: object) -> NodeFacts:
    assert one.path is not None
    return replace(one, path=replace(one.path, **changes))  # type: ignore[arg-type]


def with_peer(one: NodeFacts, peer: str, **changes: object) -> NodeFacts:
    assert one.path is not None
    seen = replace(one.path.peers[peer], **changes)  # type: ignore[arg-type]
    return with_path(one, peers={**one.path.peers, peer: seen})


def failing(report: tuple[Check, ...]) -> list[tuple[str, str, str]]:
    return [(check.code, check.node or "", check.peer or "") for check in report if check.status == FAIL]


def of(code: str, report: tuple[Check, ...], name: str = "gpu-1") -> Check:
    (found,) = [check for check in report if check.code == code and check.node == name]
    return found


def test_a_healthy_mesh_passes_in_every_respect() -> None:
    report = examine(facts(HEAD, ONE, TWO))
    assert failing(report) == []
    codes = {"udp_in", "udp_out", "udp_data", "transports", "one_way", "path_loss", "path_mtu", "path_kind"}
    assert {check.status for check in report if check.code in codes} == {OK}
    pairs = {(check.node, check.peer) for check in report if check.code == "path_mtu"}
    assert pairs == {(one, other) for one in PATH for other in PATH if one != other}


def test_facts_survive_encoding() -> None:
    there = with_path(with_peer(HEAD, "gpu-1", heard_ago_s=0.1), rebinds={"gpu-1": (3.0, 1.0)}, seen={"gpu-1": HUB_AT})
    assert decode(NodeFacts, encode(there)) == there


def test_one_node_whose_udp_is_not_answered() -> None:
    for silent in (
        with_peer(ONE, "head", **DEAF),
        with_peer(ONE, "head", kind=PathKind.NONE, transport="", sent=0, received=0),
    ):
        report = examine(facts(with_peer(HEAD, "gpu-1", **DEAF), silent, TWO))
        assert failing(report) == [("udp_out", "gpu-1", "")]
        assert "that of gpu-2 is" in of("udp_out", report).evidence
        assert "port 51888" in of("udp_out", report).fix


def test_another_transport_is_offered_last_and_only_where_it_can_help() -> None:
    by_udp = with_path(with_peer(ONE, "head", **DEAF), transport="udp")
    fix = of("udp_out", examine(facts(with_peer(HEAD, "gpu-1", **DEAF), by_udp, TWO))).fix
    assert fix.endswith("; or on gpu-1: meshray leave, and meshray join with --transport auto")
    auto = with_path(by_udp, transport="auto")
    assert "leave" not in of("udp_out", examine(facts(with_peer(HEAD, "gpu-1", **DEAF), auto, TWO))).fix
    # No other node can be compared, so the hub may be what is broken.
    check = of("udp_out", examine(facts(with_path(by_udp, seen_by_hubs={}), me="gpu-1")))
    assert "no other node can be compared" in check.evidence
    assert (check.fix.startswith("on head: meshray doctor; "), "leave" in check.fix) == (True, False)


def test_in_a_pod_a_network_policy_is_suspected() -> None:
    host = HostFacts(pod=PodFacts(in_pod=True))
    silent = replace(with_peer(ONE, "head", **DEAF), host=host)
    report = examine(facts(with_peer(HEAD, "gpu-1", **DEAF), silent, TWO))
    assert of("udp_out", report).fix.startswith("in its namespace: kubectl get networkpolicy; one that limits egress")


def test_received_data_may_be_the_peers_own_probes() -> None:
    silent = with_peer(ONE, "head", **DEAF, sent_on=True, came_in=True, heard_ago_s=0.2)
    deaf = with_peer(HEAD, "gpu-1", **DEAF, sent_on=True, came_in=False)
    assert failing(examine(facts(deaf, silent, TWO))) == [("udp_out", "gpu-1", "")]


def test_a_single_node_is_judged_by_the_hubs_observations() -> None:
    alone = with_path(with_peer(ONE, "head", **DEAF), seen_by_hubs={"gpu-1": HUB_AT, "gpu-2": "198.51.100.9:1"})
    assert failing(examine(facts(alone, me="gpu-1"))) == [("udp_out", "gpu-1", "")]
    check = of("udp_out", examine(facts(alone, me="gpu-1")))
    # The hub may have died since it saw the other one.
    assert "head saw that of gpu-2, but it is not known when" in check.evidence
    assert check.fix.startswith("on head: meshray doctor; ")
    assert of("udp_in", examine(facts(alone, me="gpu-1")), "head").status == SKIP
    nobody = with_path(alone, seen_by_hubs={"gpu-1": "", "gpu-2": ""})
    assert failing(examine(facts(nobody, me="gpu-1"))) == [("udp_in", "head", "")]


def test_udp_that_worked_before_the_others_lost_theirs_proves_nothing() -> None:
    dead = {**DEAF, "unanswered_s": 30.0, "handshake_age_s": 60.0}
    relayed = with_peer(TWO, "head", transport=Transport.WSS)
    deaf_hub = with_peer(HEAD, "gpu-1", **DEAF)
    # gpu-2 left UDP because it is limited; its UDP was measured when the hub still answered gpu-1.
    for age_s in (600.0, None):
        before = with_path(relayed, udp_limit_kbit_s=8000.0, udp_limit_age_s=age_s)
        check = of("udp_out", examine(facts(deaf_hub, with_peer(ONE, "head", **dead), before)))
        assert (check.status, check.fix.startswith("on head: meshray doctor; ")) == (FAIL, True)
        assert ("600 s ago" if age_s else "it is not known when") in check.evidence
    after = with_path(relayed, udp_limit_kbit_s=8000.0, udp_limit_age_s=10.0)
    assert "that of gpu-2 is" in of("udp_out", examine(facts(deaf_hub, with_peer(ONE, "head", **dead), after))).evidence
    # A node that left UDP because only handshakes passed does not know whether they pass now.
    before = with_path(relayed, only_handshakes=True)
    check = of("udp_out", examine(facts(deaf_hub, with_peer(ONE, "head", **dead), before)))
    assert "that of gpu-2, but it is not known when" in check.evidence


def test_two_silent_nodes_are_not_outvoted_by_a_third_ones_past() -> None:
    one, two = ({**DEAF, "handshake_age_s": 60.0, "unanswered_s": silent_s} for silent_s in (30.0, 20.0))
    silent = with_peer(ONE, "head", **one), with_peer(TWO, "head", **two)
    third = with_path(with_peer(TWO, "head", transport=Transport.WSS), udp_limit_kbit_s=8000.0, udp_limit_age_s=25.0)
    found = facts(HEAD, *silent, replace(third, name="gpu-3"))
    assert found.status is not None
    status = msgspec.structs.replace(found.status, nodes=(*found.status.nodes, node("gpu-3", 4)))
    report = examine(replace(found, status=status))
    assert failing(report) == [("udp_in", "head", "")]
    assert (
        "not that of gpu-1, gpu-2; head saw UDP of gpu-3 at port 51888 25 s ago"
        in of("udp_in", report, "head").evidence
    )


def test_an_unreachable_hub_is_reported() -> None:
    nodes = HEAD, with_peer(ONE, "head", **DEAF), with_peer(TWO, "head", **DEAF)
    report = examine(facts(*nodes))
    assert failing(report) == [("udp_in", "head", "")]
    assert "security group" in of("udp_in", report, "head").fix


def test_with_a_working_relay_it_is_a_warning() -> None:
    report = examine(facts(HEAD, with_peer(ONE, "head", transport=Transport.WSS), TWO))
    assert failing(report) == []
    assert of("udp_out", report).status == WARN
    report = examine(
        facts(HEAD, with_peer(ONE, "head", transport=Transport.WSS), with_peer(TWO, "head", transport=Transport.WSS))
    )
    assert failing(report) == []
    assert of("udp_in", report, "head").status == WARN


def test_handshakes_that_pass_without_data_are_named_and_no_port_is_blamed() -> None:
    eaten = {**DEAF, "handshake_age_s": 4.0, "unanswered_s": 30.0}
    nodes = (
        with_peer(HEAD, "gpu-1", **DEAF),
        with_path(with_peer(with_peer(ONE, "head", **eaten), "gpu-2", **DEAF), transport="udp"),
        with_peer(TWO, "gpu-1", **DEAF),
    )
    report = examine(facts(*nodes))
    assert failing(report) == [("udp_data", "gpu-1", "")]
    assert "4 s ago" in of("udp_data", report).evidence
    assert "--transport auto" in of("udp_data", report).fix
    # It is the same for all nodes: the hub's port is not the cause.
    both = (HEAD, with_peer(ONE, "head", **eaten), with_peer(TWO, "head", **eaten))
    report = examine(facts(*both))
    assert failing(report) == [("udp_data", "gpu-1", ""), ("udp_data", "gpu-2", "")]
    assert of("udp_in", report, "head").status == OK


def test_a_handshake_before_the_failure_does_not_show_that_handshakes_pass() -> None:
    dead = {**DEAF, "handshake_age_s": 60.0, "unanswered_s": 30.0}
    report = examine(facts(with_peer(HEAD, "gpu-1", **DEAF), with_peer(ONE, "head", **dead), TWO))
    assert failing(report) == [("udp_out", "gpu-1", "")]
    between = {**DEAF, "handshake_age_s": 28.0, "unanswered_s": 30.0}
    report = examine(facts(with_peer(HEAD, "gpu-1", **DEAF), with_peer(ONE, "head", **between), TWO))
    assert failing(report) == [("udp_out", "gpu-1", "")]


def test_dropped_data_is_only_a_warning_if_the_relay_works() -> None:
    relayed = with_path(with_peer(ONE, "head", transport=Transport.WSS), only_handshakes=True)
    report = examine(facts(HEAD, relayed, TWO))
    assert failing(report) == []
    assert of("udp_data", report).status == WARN
    assert of("udp_out", report).status == OK
    alone = examine(
        facts(HEAD, relayed, with_path(with_peer(TWO, "head", transport=Transport.WSS), only_handshakes=True))
    )
    assert of("udp_in", alone, "head").status == OK


def test_a_requested_relay_gives_no_udp_warning() -> None:
    report = examine(facts(HEAD, with_path(with_peer(ONE, "head", transport=Transport.WSS), transport="wss"), TWO))
    assert of("udp_out", report).status == SKIP
    assert "gpu-1" not in of("udp_in", report, "head").evidence


def test_a_frozen_agent_of_the_hub_is_not_taken_for_blocked_udp() -> None:
    report = examine(facts(with_peer(ONE, "head", **DEAF, machine_answers=True), me="gpu-1"))
    assert not [code for code, _, _ in failing(report) if code.startswith("udp")]


def test_neither_transport() -> None:
    silent = replace(with_peer(ONE, "head", **DEAF), control=replace(CONTROL, upgrade="HTTP 403"))
    report = examine(facts(HEAD, silent, TWO))
    assert failing(report)[0] == ("websocket_upgrade", "gpu-1", "")
    assert of("transports", report).status == SKIP


def test_a_peer_that_sends_but_does_not_receive_is_detected() -> None:
    report = examine(facts(with_peer(HEAD, "gpu-1", **DEAF, heard_ago_s=0.4), ONE, TWO))
    assert failing(report) == [("one_way", "head", "gpu-1")]


@pytest.mark.parametrize(
    ("inside", "words"), [({"sent_on": False}, "before WireGuard"), ({"sent_on": True, "came_in": True}, "behind")]
)
def test_local_loss_is_not_taken_for_blocked_udp(inside: dict[str, bool], words: str) -> None:
    near = with_peer(ONE, "head", **DEAF, sent_on=True, came_in=False)
    report = examine(facts(with_peer(HEAD, "gpu-1", **DEAF, **inside), near, TWO))
    assert failing(report) == [("one_way", "head", "gpu-1")]
    assert [words in check.evidence for check in report if check.code == "one_way" and check.status == FAIL] == [True]


@pytest.mark.parametrize("heard_ago_s", [None, 30.0])
def test_a_peer_that_fell_silent_is_not_one_way(heard_ago_s: float | None) -> None:
    report = examine(facts(with_peer(HEAD, "gpu-1", **DEAF, heard_ago_s=heard_ago_s), ONE, TWO))
    assert failing(report) == []


@pytest.mark.parametrize(("received", "sent", "status"), [(10, 10, OK), (29, 30, OK), (27, 30, WARN), (20, 30, FAIL)])
def test_loss(received: int, sent: int, status: str) -> None:
    report = examine(facts(with_peer(HEAD, "gpu-1", received=received, sent=sent), ONE, TWO))
    (check,) = [one for one in report if one.code == "path_loss" and (one.node, one.peer) == ("head", "gpu-1")]
    assert check.status == status


def test_loss_to_the_hub_is_not_reported_again_for_nodes_behind_it() -> None:
    lossy = {"received": 15, "sent": 30}
    nodes = (
        with_peer(HEAD, "gpu-1", **lossy),
        with_peer(with_peer(ONE, "head", **lossy), "gpu-2", **lossy),
        with_peer(TWO, "gpu-1", **lossy),
    )
    failed = failing(examine(facts(*nodes)))
    assert failed == [("path_loss", "head", "gpu-1"), ("path_loss", "gpu-1", "head")]


def test_large_packets_in_one_direction() -> None:
    for seen in ({"small_passes": True, "mtu_measured": True}, {"small_passes": False}):
        report = examine(facts(HEAD, with_peer(ONE, "gpu-2", full_passes=False, **seen), TWO))
        assert failing(report) == [("path_mtu", "gpu-1", "gpu-2")]
    assert failing(examine(facts(HEAD, with_peer(ONE, "gpu-2", full_passes=False), TWO))) == []


@pytest.mark.parametrize(("rate", "status"), [(None, OK), (5000.0, OK), (800.0, WARN), (64.0, FAIL)])
def test_a_slow_line_is_not_called_a_fault_of_the_size(rate: float | None, status: str) -> None:
    slow = with_peer(ONE, "head", rate_kbit_s=rate)
    report = examine(facts(HEAD, with_peer(slow, "gpu-2", rate_kbit_s=rate), TWO))
    found = {check.peer: check for check in report if (check.code, check.node) == ("path_rate", "gpu-1")}
    assert found["head"].status == status
    # The path to gpu-2 leads through the same line.
    assert found["gpu-2"].status == (OK if status == OK else SKIP)
    assert {check.code for check in report if check.status == FAIL} <= {"path_rate"}


def test_a_slow_line_hides_what_its_delay_causes() -> None:
    slow = with_peer(ONE, "head", rate_kbit_s=64.0)
    assert failing(examine(facts(HEAD, slow, TWO))) == [("path_rate", "gpu-1", "head")]
    assert "64 kbit/s" in next(check.evidence for check in examine(facts(HEAD, slow, TWO)) if check.status == FAIL)


def test_a_limit_of_udp_is_a_warning_with_the_rate() -> None:
    train = {"train_sent": 128, "train_received": 60, "train_kbit_s": 9800.0, "policed": True}
    report = examine(facts(HEAD, with_peer(ONE, "head", **train), TWO))
    (check,) = [one for one in report if one.code == "udp_limit"]
    assert (check.status, check.node, check.peer) == (WARN, "gpu-1", "head")
    assert "about 10 Mbit/s: 68 of 128 packets" in check.evidence
    assert check.fix.endswith("join with --transport wss, which uses TCP")
    passed = with_peer(ONE, "head", **{**train, "train_received": 127, "policed": False})
    assert [one.status for one in examine(facts(HEAD, passed, TWO)) if one.code == "udp_limit"] == [OK]


def test_a_node_that_left_limited_udp_is_warned_about_and_its_udp_is_not_called_blocked() -> None:
    relayed = with_peer(ONE, "head", transport="wss")
    assert relayed.path is not None
    limited = replace(relayed, path=replace(relayed.path, udp_limit_kbit_s=8000.0, relay_kbit_s=93_000.0))
    report = examine(facts(HEAD, limited, TWO))
    assert [check for check in report if check.status == FAIL] == []
    (warning,) = [check for check in report if check.status == WARN]
    assert (warning.code, warning.node) == ("udp_limit", "gpu-1")
    assert "about 8 Mbit/s" in warning.evidence
    assert "93 Mbit/s" in warning.evidence
    (transports,) = [check for check in report if check.code == "transports" and check.node == "gpu-1"]
    assert (transports.status, "UDP is limited to about 8 Mbit/s" in transports.evidence) == (OK, True)
    assert next(check.status for check in examine(facts(HEAD, relayed, TWO)) if check.code == "udp_out") == WARN


@pytest.mark.parametrize(
    ("views", "status", "words"),
    [
        ({}, SKIP, "no node"),
        ({"head": "127.0.0.1:4000"}, SKIP, "no node"),
        ({"head": "192.168.7.10:51888"}, OK, "no NAT"),
        ({"head": "198.51.100.7:1000"}, SKIP, "one observer"),
        ({"head": "198.51.100.7:1000", "gpu-2": "192.168.7.10:51888"}, SKIP, "one observer"),
        ({"head": "198.51.100.7:1000", "gpu-2": "198.51.100.7:1000"}, OK, "endpoint-independent"),
        ({"head": "198.51.100.7:1000", "gpu-2": "198.51.100.7:2000"}, OK, "varies"),
    ],
)
def test_observations_of_several_hubs(views: dict[str, str], status: str, words: str) -> None:
    nodes = [with_path(one, seen={"gpu-1": views[one.name]} if one.name in views else {}) for one in (HEAD, ONE, TWO)]
    check = of("nat_kind", examine(facts(*nodes)))
    assert (check.status, words in check.evidence) == (status, True)


@pytest.mark.parametrize(("ages", "status"), [((), OK), ((60.0,), OK), ((20_000.0, 60.0), OK), ((300.0, 60.0), WARN)])
def test_a_mapping_that_changes_again_and_again(ages: tuple[float, ...], status: str) -> None:
    check = of("mapping_lifetime", examine(facts(with_path(HEAD, rebinds={"gpu-1": ages}), ONE, TWO)))
    assert check.status == status


def test_the_path_is_reported_with_its_reason() -> None:
    report = examine(facts(HEAD, with_peer(ONE, "gpu-2", reason="symmetric NAT on the side of gpu-2"), TWO))
    (check,) = [one for one in report if one.code == "path_kind" and (one.node, one.peer) == ("gpu-1", "gpu-2")]
    assert check.status == OK
    assert "symmetric NAT" in check.evidence
