"""What a node reports about its paths, and when."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address

import msgspec
import pytest

from meshray.agent.status.path_report import AT_LEAST_S, CHECK_S, Sent, is_due, ports_from_overlay, report_of, sent_now
from meshray.agent.status.status_builder import Snapshot, path_in
from meshray.agent.status.used_paths import MOST_RELAYED, UsedPath, UsedPaths
from meshray.defaults import METRICS_PORT
from meshray.model.keys import PrivateKey
from meshray.model.path import PathKind, Transport
from meshray.protocol.connection import PathReport, ReportedPath
from meshray.raynode.listeners import ListeningSocket
from tests.unit.agent.sample import HEAD_NODE, MAP, WORKER_A, WORKER_B, node
from tests.unit.agent.status.test_status_builder import snapshot

DIRECT = ReportedPath(PathKind.DIRECT, Transport.UDP, 10.0, 0.0, 1420)
LAST = Sent(PathReport(paths={"n0": DIRECT}), at=100.0)


def look(used: UsedPaths, now: Snapshot) -> list[UsedPath]:
    others = [other for other in now.mesh_map.nodes.values() if other.id != now.me.id]
    return used.current(others, now.device, partial(path_in, now))


def changed(**changes: object) -> PathReport:
    return PathReport(paths={"n0": msgspec.structs.replace(DIRECT, **changes)})


@pytest.mark.parametrize(
    ("report", "after_s", "due"),
    [
        (changed(), 0.5, False),
        (changed(), CHECK_S, False),
        (changed(), AT_LEAST_S, True),
        (changed(kind=PathKind.HUB), 0.5, True),
        (changed(transport=Transport.WSS), 0.5, True),
        (PathReport(), 0.5, True),
        (changed(rtt_ms=20.0), 0.5, False),
        (changed(rtt_ms=20.0), CHECK_S, True),
        (changed(rtt_ms=10.3), CHECK_S, False),
        (changed(rtt_ms=None), CHECK_S, True),
        (changed(loss=0.1), CHECK_S, True),
        (changed(loss=0.01), CHECK_S, False),
        (changed(mtu=1280), CHECK_S, True),
        (changed(reason="a firewall"), 0.5, False),
        (changed(reason="a firewall"), CHECK_S, True),
        (msgspec.structs.replace(changed(), listens=(8000,)), 0.5, True),
        (msgspec.structs.replace(changed(), listens=(10002,)), 0.5, False),
        (msgspec.structs.replace(changed(), listens=(10002,)), CHECK_S, True),
        (msgspec.structs.replace(changed(), rx_bytes=10_000_000), 0.5, False),
        (msgspec.structs.replace(changed(), rx_bytes=10_000_000), CHECK_S, True),
        (msgspec.structs.replace(changed(), rx_bytes=100), CHECK_S, False),
        (msgspec.structs.replace(changed(), site="lab-2"), 0.5, True),
    ],
)
def test_when_a_report_is_due(report: PathReport, after_s: float, due: bool) -> None:
    assert is_due(report, LAST, LAST.at + after_s, range(10002, 20000)) is due


def test_a_new_connection_gets_a_report_at_once_and_a_steady_stream_none() -> None:
    assert is_due(changed(), None, 0.0)
    sent = sent_now(msgspec.structs.replace(changed(), rx_bytes=5_000_000), LAST, LAST.at + 5)
    assert sent.bytes_s == 1_000_000
    steady = msgspec.structs.replace(changed(), rx_bytes=10_500_000)
    assert not is_due(steady, sent, sent.at + 5)
    assert is_due(msgspec.structs.replace(changed(), rx_bytes=5_000_100), sent, sent.at + 5)


def test_ports_are_those_that_members_reach() -> None:
    own = IPv4Address("10.99.0.2")
    received = [
        ListeningSocket(8000, "0.0.0.0", True),
        ListeningSocket(8001, "127.0.0.1", True),
        ListeningSocket(8002, str(own), True),
        ListeningSocket(8003, "::", True),
        ListeningSocket(8004, "::", True, only_ipv6=True),
        ListeningSocket(22, "0.0.0.0", False),
        ListeningSocket(5432, "0.0.0.0", None),
        ListeningSocket(METRICS_PORT, str(own), True),
        *(ListeningSocket(port, "0.0.0.0", True) for port in range(10002, 10102)),
    ]
    ports = ports_from_overlay(received, own, range(10002, 20000))
    assert len(ports) == 64
    assert ports[:4] == (8000, 8002, 8003, 10002)


def test_used_paths_are_the_peers_and_some_relayed_ones() -> None:
    used = look(UsedPaths(), snapshot(WORKER_A))
    assert [(other.name, path.kind) for other, path in used] == [("head", "direct"), ("gpu-b", "hub")]
    used = look(UsedPaths(), snapshot(WORKER_A, handshake=None))
    assert used == []
    used = look(UsedPaths(), snapshot(HEAD_NODE))
    assert {(other.name, path.kind) for other, path in used} == {("gpu-a", "direct"), ("gpu-b", "direct")}


def test_relayed_pairs_are_limited_and_lost_direct_paths_come_first() -> None:
    others = {}
    for number in range(10, 10 + 2 * MOST_RELAYED):
        other = replace(
            node(1, f"far-{number}"),
            id=f"n{number}",
            ip=IPv4Address(f"10.99.1.{number}"),
            public_key=PrivateKey.generate().public(),
        )
        others[other.id] = other
    now = snapshot(WORKER_A)
    now = replace(now, mesh_map=replace(MAP, nodes={**MAP.nodes, **others}))
    used = UsedPaths()
    assert len(look(used, now)) == 1 + MOST_RELAYED
    assert "gpu-b" in [other.name for other, _ in look(used, now)]
    last = list(others.values())[-1]
    assert last.name not in [other.name for other, _ in look(used, now)]
    used._were_direct.add(last.id)
    assert look(used, now)[1][0].name == last.name
    # A removed node is forgotten.
    look(used, snapshot(WORKER_A))
    assert last.id not in used._were_direct


def test_the_report_has_ids_and_no_endpoints() -> None:
    used = look(UsedPaths(), snapshot(WORKER_A))
    report = report_of(used, site="lab", key_since=1.0, listens=(8000,), counters=(7, 8))
    assert report.paths.keys() == {HEAD_NODE.id, WORKER_B.id}
    assert (report.site, report.key_since, report.listens, report.rx_bytes, report.tx_bytes) == (
        "lab", 1.0, (8000,), 7, 8,
    )  # fmt: skip
