"""Routes and rules that single out another node's address outside the overlay."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshray.doctor.control.facts import ANSWERED, NO_ANSWER, ControlFacts, EndpointFacts
from meshray.doctor.examine import examine
from meshray.doctor.facts import Facts, HostFacts, NodeFacts
from meshray.doctor.firewall.facts import Drop
from meshray.doctor.outer.facts import NO_MAC, OuterAddress, OuterFacts
from meshray.doctor.path.facts import PathFacts, PeerFacts
from meshray.doctor.report import FAIL, OK
from meshray.doctor.routes.lookup import NO_ROUTE
from meshray.model.path import PathKind, Transport
from meshray.protocol.doctor import Check
from tests.unit.doctor.test_checks import HEAD, ME, OTHER, seen_by

AT = "203.0.113.10:51888"
TCP = OuterAddress("head", AT, "tcp", "eth0", network="0.0.0.0/0", table=254)
UDP = replace(TCP, protocol="udp")
TUNNEL = {"interface": "meshray0", "into_overlay": True, "network": "203.0.113.10/32"}
BLACKHOLE = {"interface": "", "refused": "blackhole", "network": "203.0.113.0/24"}
BAN = {"drops": (Drop("nft ip f2b c", "the rule with handle 4", ("nft insert rule ip f2b c ip saddr 1 accept",)),)}
NO_ROUTES = {"interface": "", "refused": NO_ROUTE, "network": ""}
GATEWAY = {"next_hop": "192.168.7.99", "neighbour": NO_MAC}
BY_HAND = {"next_hop": "192.168.7.1", "neighbour": "02:00:00:00:00:99"}
DIVERTED = {"diverted": ("nft ip proxy c: ip daddr 203.0.113.10 tcp dport 51888 redirect to :9",)}


def report(*addresses: OuterAddress, state: str = NO_ANSWER, udp_answers: bool = False) -> tuple[Check, ...]:
    """Return the report of gpu-1, whose TCP and UDP to the head is as given."""
    peer = PeerFacts(True, True, PathKind.DIRECT, Transport.UDP, AT, sent=5, received=5 if udp_answers else 0)
    mine = NodeFacts(
        "gpu-1",
        HostFacts(outer=OuterFacts(addresses=addresses, down=("eth0",))),
        PathFacts(peers={"head": peer}),
        ControlFacts(endpoints=(EndpointFacts(AT, state),)),
    )
    facts: Facts = replace(seen_by("gpu-1", HEAD, ME, OTHER, reachable=False), nodes={"gpu-1": mine})
    return examine(facts)


@pytest.mark.parametrize(
    ("change", "evidence", "fix"),
    [
        (TUNNEL, "into the tunnel that they should carry", "ip route del 203.0.113.10/32 dev meshray0"),
        ({**TUNNEL, "network": "0.0.0.0/0"}, "into the tunnel", "ip -details route show table all 0.0.0.0/0"),
        (BLACKHOLE, "blackhole", "ip -details route show table all 203.0.113.0/24"),
        ({**BLACKHOLE, "network": "203.0.113.10/32"}, "blackhole", "show table all 203.0.113.10/32"),
        ({**BLACKHOLE, "network": ""}, "a policy rule", "ip rule"),
        ({**BLACKHOLE, "network": "", "refused": NO_ROUTE}, "no route for", "default route"),
        (BAN, "nft ip f2b c: the rule with handle 4", "nft insert rule ip f2b c"),
        (DIVERTED, "redirect to :9", "nft -a list ruleset"),
        (NO_ROUTES, "has no route for packets to head's outer address 203.0.113.10; eth0 is down", "ip link"),
        (
            GATEWAY,
            "handed to 192.168.7.99 on eth0, by the route 0.0.0.0/0, which does not answer",
            "is 192.168.7.99 on",
        ),
        (BY_HAND, "whose MAC address 02:00:00:00:00:99 was set by hand", "ip neigh show 192.168.7.1"),
    ],
)
def test_what_singles_out_an_address_that_does_not_work_is_the_cause(
    change: dict[str, object], evidence: str, fix: str
) -> None:
    checks = report(replace(TCP, **change))  # type: ignore[arg-type]
    (failed,) = [check for check in checks if check.status == FAIL]
    assert (failed.code, failed.node, failed.peer) == ("outer_addresses", "gpu-1", "head")
    assert evidence in failed.evidence
    assert fix in failed.fix


@pytest.mark.parametrize("change", [TUNNEL, BLACKHOLE, BAN, DIVERTED, GATEWAY, BY_HAND])
def test_it_is_not_a_fault_while_the_address_works(change: dict[str, object]) -> None:
    tcp, udp = replace(TCP, **change), replace(UDP, **change)  # type: ignore[arg-type]
    (found,) = [
        check
        for check in report(tcp, udp, state=ANSWERED, udp_answers=True)
        if check.code == "outer_addresses" and check.node == "gpu-1"
    ]
    assert found.status == OK


def test_an_unused_address_without_a_route_is_not_a_fault() -> None:
    elsewhere = replace(TCP, endpoint="192.168.77.1:51888", interface="", refused=NO_ROUTE, network="")
    # Here the coordinator answers at another address, there nothing answers for another reason.
    for state in (ANSWERED, NO_ANSWER):
        assert "outer_addresses" not in [
            check.code for check in report(elsewhere, TCP, state=state) if check.status == FAIL
        ]
    blocked = replace(elsewhere, refused="unreachable")
    assert "outer_addresses" not in [
        check.code for check in report(blocked, TCP, state=ANSWERED) if check.status == FAIL
    ]


def test_an_address_that_nothing_singles_out_is_fine() -> None:
    checks = report(TCP, UDP)
    assert [check.code for check in checks if check.status == FAIL] == ["coordinator_tcp"]


@pytest.mark.parametrize("silent", [True, False])
def test_a_rule_of_the_coordinators_machine_is_the_cause_of_a_node_that_does_not_answer(silent: bool) -> None:
    banned = replace(TCP, node="gpu-1", endpoint="203.0.113.20:51888", inbound=True, **BAN)  # type: ignore[arg-type]
    head = NodeFacts("head", HostFacts(outer=OuterFacts(addresses=(banned,))))
    seen = seen_by("head", HEAD, ME, OTHER)
    reasons = {"gpu-1": "it does not answer"} if silent else {}
    failing = [check for check in examine(replace(seen, nodes={"head": head}, silent=reasons)) if check.status == FAIL]
    assert [(check.code, check.peer) for check in failing] == ([("outer_addresses", "gpu-1")] if silent else [])
