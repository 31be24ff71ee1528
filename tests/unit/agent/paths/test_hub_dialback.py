from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from itertools import pairwise

import pytest

from meshray.agent.paths.hub_dialback import DIAL_AFTER_S, FIRST_PAUSE_S, LONGEST_PAUSE_S, HubDialback
from meshray.agent.paths.hubs import PATIENCE_S
from meshray.linux.clock import BootSeconds
from meshray.model.address import Endpoint, NodeName, OverlayNetwork
from meshray.model.keys import PublicKey
from meshray.model.meshmap import MeshInfo, MeshMap
from meshray.model.node import HUB, STATIC, WORKER, Node
from meshray.wireguard.config import REJECT_AFTER_S

A, B = Endpoint("192.0.2.7", 51888), Endpoint("10.0.0.7", 51888)
NOW = 1_000_000.0


def mesh(*endpoints: Endpoint, role: str = WORKER) -> MeshMap:
    hub = Node("hub", NodeName("hub"), IPv4Address("10.99.0.1"), PublicKey(bytes(32)), frozenset({HUB}), (A,))
    node = Node(
        "n2", NodeName("gpu"), IPv4Address("10.99.0.2"), PublicKey(b"1" * 32), frozenset({role}), tuple(endpoints)
    )
    info = MeshInfo("00112233aabbccdd", "lab", OverlayNetwork.parse("10.99.0.0/16"))
    return MeshMap(info, 1, {"hub": hub, "n2": node})


def dialled(dialback: HubDialback, mesh_map: MeshMap, now: float, received: float | None = None) -> Endpoint | None:
    last = BootSeconds(received) if received is not None else None
    return dialback.step(mesh_map, "hub", {"n2": last}, BootSeconds(now)).get("n2")


def test_a_silent_node_is_tried_at_each_of_its_endpoints() -> None:
    dialback, both = HubDialback(), mesh(A, B)
    assert dialled(dialback, both, NOW) is None
    assert dialled(dialback, both, NOW + DIAL_AFTER_S - 0.1) is None
    begun = NOW + DIAL_AFTER_S
    assert dialled(dialback, both, begun) == A
    assert dialled(dialback, both, begun + PATIENCE_S) == B
    assert dialled(dialback, both, begun + 2 * PATIENCE_S) is None


def test_an_answering_node_is_not_dialled_until_it_is_silent_again() -> None:
    dialback, one = HubDialback(), mesh(A)
    dialled(dialback, one, NOW)
    assert dialled(dialback, one, NOW + 5) == A
    received = NOW + 5.2
    assert dialled(dialback, one, NOW + 6, received) is None
    assert dialled(dialback, one, received + REJECT_AFTER_S, received) is None
    assert dialled(dialback, one, received + REJECT_AFTER_S + DIAL_AFTER_S, received) == A


def test_a_machine_that_is_off_is_tried_less_and_less() -> None:
    dialback, one = HubDialback(), mesh(A)
    tries = [n for n in range(3600) if dialled(dialback, one, NOW + n) is not None]
    gaps = [after - before for before, after in pairwise(tries) if after - before > 1]
    assert gaps[0] == pytest.approx(FIRST_PAUSE_S, abs=2)
    assert max(gaps) <= LONGEST_PAUSE_S + 2
    assert gaps == sorted(gaps)
    assert len(tries) < 3600 / 15


def test_a_node_that_moved_is_tried_at_once() -> None:
    dialback = HubDialback()
    for second in range(60):
        dialled(dialback, mesh(A), NOW + second)
    assert dialled(dialback, mesh(B), NOW + 60) == B


@pytest.mark.parametrize("others", [mesh(), mesh(A, role=HUB), mesh(A, role=STATIC)])
def test_these_nodes_are_never_dialled(others: MeshMap) -> None:
    dialback = HubDialback()
    assert [dialled(dialback, others, NOW + second) for second in range(30)] == [None] * 30


def test_a_node_that_left_is_forgotten() -> None:
    dialback, both = HubDialback(), mesh(A)
    dialled(dialback, both, NOW)
    gone = replace(both, nodes={"hub": both.nodes["hub"]})
    assert dialback.step(gone, "hub", {}, BootSeconds(NOW + 10)) == {}
    assert dialled(dialback, both, NOW + 11) is None
