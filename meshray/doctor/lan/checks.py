"""The check that no other machine on the LAN claims an address which a node needs (pure).

Packets to such an address reach one of the two machines, and which one changes with every ARP packet. It is a failure
if the node does not reach the coordinator, or a peer to which it sends directly; otherwise it is a warning. Two owners
of the coordinator's address are evidence for `coordinator_tcp`, since they may be two interfaces of one machine.
"""

from __future__ import annotations

from collections.abc import Iterable

from meshray.doctor.control.facts import ANSWERED
from meshray.doctor.facts import Facts
from meshray.doctor.lan.facts import Claim
from meshray.doctor.report import FAIL, OK, WARN, Finding, Spec, fix_on
from meshray.model.path import PathKind


def _one_address(facts: Facts) -> Iterable[Finding]:
    for name, node in facts.nodes.items():
        lan = node.host.lan if node.host is not None else None
        if lan is None:
            continue
        judged = (_judge(facts, name, claim) for claim in lan.claims if not claim.is_coordinator)
        found = [finding for finding in judged if finding is not None]
        yield from found
        if lan.asked and not found:
            yield Finding(OK, f"no other machine answers for {', '.join(lan.asked)}", node=name)


def _judge(facts: Facts, name: str, claim: Claim) -> Finding | None:
    """Return the finding; None if a second gateway harms nothing: there are protocols for such pairs."""
    is_harmed = _is_harmed(facts, name, claim)
    others = " and ".join(claim.others)
    if claim.is_gateway:
        evidence = (
            f"two machines claim {claim.address}, the address of {name}'s gateway on {claim.interface}: the MAC "
            f"addresses {others} answer for it"
        )
        fix = f"ip neigh show {claim.address} shows which one is used; give the one that is not the gateway another IP"
        return Finding(FAIL, evidence, fix_on(name, f"{fix} address", facts.here), name) if is_harmed else None
    status = FAIL if is_harmed else WARN
    again = "then meshray doctor again"
    if not claim.others:
        evidence = f"another machine has {claim.address}, so that {claim.interface} does not use it (dadfailed)"
        fix = f"ip -6 address show dev {claim.interface} dadfailed; give one of the two another address; {again}"
        return Finding(status, evidence, fix_on(name, fix, facts.here), name)
    evidence = (
        f"another machine claims {name}'s address {claim.address} on {claim.interface}: the MAC address {others} "
        f"answers for it, that of {claim.interface} is {claim.mac}"
    )
    fix = (
        f"give one of the two another address: on the machine with {claim.others[0]}, or by a reservation for "
        f"{claim.mac} in the DHCP server of that network; {again} (on a third machine there, ip neigh show "
        f"{claim.address} shows which one gets the packets)"
    )
    return Finding(status, evidence, fix_on(name, fix, facts.here), name)


def _is_harmed(facts: Facts, name: str, claim: Claim) -> bool:
    """Return whether the node does not reach the coordinator, or a peer to which it sends directly."""
    node = facts.nodes[name]
    endpoints = node.control.endpoints if node.control is not None else ()
    peers = node.path.peers.values() if node.path is not None else ()
    silent = [peer.endpoint for peer in peers if peer.kind == PathKind.DIRECT and peer.sent and not peer.answers]
    if endpoints and all(one.state != ANSWERED for one in endpoints):
        silent += [one.endpoint for one in endpoints]
    return any(_is_ipv6(endpoint) == _is_ipv6(claim.address) for endpoint in silent)


def _is_ipv6(text: str) -> bool:
    """Return whether an address, or HOST:PORT, is one of IPv6."""
    return text.count(":") > 1


SPEC = Spec("one_address", "the node's addresses on the LAN, used by one machine", ("enrolled",), _one_address)
