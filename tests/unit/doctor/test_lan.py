"""Another machine on the LAN claims the address of a node, or of its gateway."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from meshray.doctor.control.facts import ANSWERED, NO_ANSWER, NO_ROUTE, REFUSED, ControlFacts, EndpointFacts
from meshray.doctor.examine import examine
from meshray.doctor.facts import HostFacts, NodeFacts, decode, encode
from meshray.doctor.lan.facts import Claim, LanFacts
from meshray.doctor.lan.probe import Asked, claims
from meshray.doctor.path.facts import PathFacts, PeerFacts
from meshray.doctor.report import FAIL, OK, SKIP, WARN
from meshray.linux.arp import Link
from meshray.model.path import PathKind, Transport
from meshray.protocol.doctor import Check
from tests.unit.doctor.test_checks import HEAD, ME, OTHER, seen_by

AT = "203.0.113.10:51888"
OWN, TWIN, ROUTER = (bytes.fromhex(f"0200000000{last:02x}") for last in (1, 2, 3))
MAC, TWINS_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
ETH0 = Link("eth0", OWN)
ADDRESS, GATEWAY = IPv4Address("192.168.7.10"), IPv4Address("192.168.7.1")
ASKED = (Asked(ETH0, ADDRESS), Asked(ETH0, GATEWAY, is_gateway=True))
TAKEN = Claim("192.168.7.10", "eth0", MAC, (TWINS_MAC,))
GATEWAY_TAKEN = Claim("192.168.7.1", "eth0", MAC, (TWINS_MAC, "02:00:00:00:00:03"), is_gateway=True)
NOT_USED = Claim("2001:db8::7", "eth0", MAC)


def report(*found: Claim, state: str = ANSWERED, endpoint: str = AT, answers: bool = True) -> tuple[Check, ...]:
    """Return the report of gpu-1, whose TCP and UDP to the head is as given."""
    peer = PeerFacts(True, True, PathKind.DIRECT, Transport.UDP, AT, sent=5, received=5 if answers else 0)
    mine = NodeFacts(
        "gpu-1",
        HostFacts(lan=LanFacts(asked=("192.168.7.10",), claims=found)),
        PathFacts(peers={"head": peer}),
        ControlFacts(endpoints=(EndpointFacts(endpoint, state),)),
    )
    return examine(replace(seen_by("gpu-1", HEAD, ME, OTHER), nodes={"gpu-1": mine}))


def judged(checks: tuple[Check, ...], code: str = "one_address") -> Check:
    (found,) = [check for check in checks if check.code == code and check.node == "gpu-1"]
    return found


def test_a_claimed_address_explains_the_coordinators_silence() -> None:
    checks = report(TAKEN, state=NO_ANSWER, answers=False)
    assert [check.code for check in checks if check.status == FAIL] == ["one_address"]
    assert judged(checks, "coordinator_tcp").status == SKIP
    found = judged(checks)
    assert found.evidence == (
        "another machine claims gpu-1's address 192.168.7.10 on eth0: the MAC address 02:00:00:00:00:02 answers for "
        "it, that of eth0 is 02:00:00:00:00:01"
    )
    assert f"reservation for {MAC} in the DHCP server" in found.fix
    assert "meshray doctor" in found.fix and "ip neigh show 192.168.7.10" in found.fix
    assert found.fix_grade == "harmless"


def test_it_is_a_failure_if_only_a_peer_is_silent_and_a_warning_if_all_answer() -> None:
    assert judged(report(TAKEN, answers=False)).status == FAIL
    assert judged(report(TAKEN)).status == WARN


def test_a_second_gateway_is_a_failure_only_if_it_harms() -> None:
    found = judged(report(GATEWAY_TAKEN, state=NO_ANSWER))
    assert found.status == FAIL
    assert "two machines claim 192.168.7.1, the address of gpu-1's gateway on eth0" in found.evidence
    assert found.fix.startswith("ip neigh show 192.168.7.1 ")
    assert judged(report(GATEWAY_TAKEN)).status == OK


@pytest.mark.parametrize("state", [NO_ANSWER, REFUSED, NO_ROUTE])
def test_two_owners_of_the_coordinators_address_are_weighed(state: str) -> None:
    both = Claim("203.0.113.10", "eth0", MAC, (TWINS_MAC, "02:00:00:00:00:03"), is_coordinator=True)
    found = judged(report(both, state=state, answers=False), "coordinator_tcp")
    assert found.status == FAIL
    assert "another machine on gpu-1's LAN claims 203.0.113.10 as well" in found.evidence
    assert f"the MAC addresses {TWINS_MAC} and 02:00:00:00:00:03 answer for it" in found.evidence
    assert "on gpu-1: ip neigh show 203.0.113.10" in found.fix


def test_two_interfaces_of_the_coordinators_machine_are_not_the_cause_while_udp_is_answered() -> None:
    both = Claim("203.0.113.10", "eth0", MAC, (TWINS_MAC, "02:00:00:00:00:03"), is_coordinator=True)
    found = judged(report(both, state=NO_ANSWER), "coordinator_tcp")
    assert "a firewall of the coordinator's machine" in found.evidence
    assert any(line.startswith("not: another machine on gpu-1's LAN") for line in found.explanation)
    assert judged(report(both)).status == OK


def test_an_ipv6_address_that_is_not_used_harms_only_ipv6() -> None:
    assert judged(report(NOT_USED, state=NO_ANSWER)).status == WARN
    found = judged(report(NOT_USED, state=NO_ANSWER, endpoint="[2001:db8::1]:51888"))
    assert found.status == FAIL
    assert "dadfailed" in found.evidence and found.fix.startswith("ip -6 address show dev eth0 dadfailed;")


def test_an_address_that_nobody_else_claims_is_fine() -> None:
    assert judged(report()).status == OK


def test_nothing_is_said_where_the_lan_could_not_be_asked() -> None:
    mine = NodeFacts("gpu-1", HostFacts(lan=LanFacts("only root can ask the LAN")))
    checks = examine(replace(seen_by("gpu-1", HEAD, ME, OTHER), nodes={"gpu-1": mine}))
    assert "one_address" not in {check.code for check in checks}


def test_the_facts_travel() -> None:
    facts = LanFacts("", ("192.168.7.10",), (TAKEN, GATEWAY_TAKEN))
    assert decode(LanFacts, encode(facts)) == facts


@pytest.mark.parametrize(
    ("owners", "expected"),
    [
        ({ADDRESS: (TWIN,), GATEWAY: (ROUTER,)}, (TAKEN,)),
        ({ADDRESS: (), GATEWAY: (TWIN, ROUTER)}, (GATEWAY_TAKEN,)),
        ({ADDRESS: (), GATEWAY: (ROUTER,)}, ()),
        ({ADDRESS: (TWIN,), GATEWAY: ()}, (TAKEN,)),
        ({}, ()),
        # Another interface of this machine on the same network, and a router that answers for all addresses.
        ({ADDRESS: (OWN,), GATEWAY: (OWN, ROUTER)}, ()),
        ({ADDRESS: (ROUTER,), GATEWAY: (ROUTER,)}, ()),
    ],
)
def test_who_claims_an_address_of_this_machine_or_its_gateway(
    owners: dict[IPv4Address, tuple[bytes, ...]], expected: tuple[Claim, ...]
) -> None:
    assert tuple(claims(ASKED, owners, {OWN})) == expected


@pytest.mark.parametrize(
    ("macs", "is_claimed"), [((), False), ((TWIN,), False), ((OWN, TWIN), False), ((TWIN, ROUTER), True)]
)
def test_the_coordinators_address_has_one_owner(macs: tuple[bytes, ...], is_claimed: bool) -> None:
    coordinator = IPv4Address("192.168.7.20")
    found = tuple(claims((Asked(ETH0, coordinator, is_coordinator=True),), {coordinator: macs}, {OWN}))
    assert [claim.is_coordinator for claim in found] == ([True] if is_claimed else [])
