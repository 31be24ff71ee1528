"""The check of TCP to the coordinator: why an address of it does not answer (pure).

The same silence has several causes: the coordinator's own firewall, a network on the path, an address that belongs to
another machine now, a coordinator that has ended. What distinguishes them is who else reaches the coordinator: other
nodes at the same address, this node by UDP or over the overlay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from meshray.doctor.control.facts import (
    ANSWERED,
    CLOSED,
    NO_ANSWER,
    NO_ROUTE,
    NO_SERVER,
    NOT_TLS,
    REFUSED,
    SILENT,
    UNEXPECTED,
    UNRESOLVED,
    ControlFacts,
    EndpointFacts,
)
from meshray.doctor.facts import Facts
from meshray.doctor.hypotheses import Hypothesis, given, weigh
from meshray.doctor.outer.facts import NO_MAC
from meshray.doctor.report import OK, WARN, Finding
from meshray.model.path import PathKind, Transport

#: The observation, by the state of the address.
OBSERVED: Mapping[str, str] = {
    UNRESOLVED: "the name does not resolve",
    REFUSED: "the connection is refused",
    NO_ANSWER: "no answer to TCP",
    NO_ROUTE: "there is no route to it",
    SILENT: "it accepts the connection but sends nothing",
    CLOSED: "it closes the connection at once",
    NOT_TLS: "the server at this address does not use TLS",
    UNEXPECTED: "its answer is not a coordinator's",
}
#: The text of EAI_AGAIN (gai_strerror(3)): the name server that was asked did not answer in time.
_TRY_AGAIN = "Temporary failure in name resolution"
_LOGS = "on the coordinator's machine: meshray logs coordinator"


@dataclass(frozen=True)
class Witnesses:
    """Who else reaches the coordinator at this moment.

    Attributes:
        node: the node that does not.
        endpoint: the address, HOST:PORT.
        detail: what was observed there, in detail.
        others: the nodes that reached the coordinator at this address.
        by_udp: WireGuard's UDP packets to the same host are answered.
        udp_unanswered: they were sent, and not answered.
        over_overlay: the state of the coordinator at its overlay address; empty: not tried.
        peers_reached: the other nodes whose UDP answers this node directly.
        peers_unanswered: those to which it sends UDP directly, and whose answers do not come.
        claimed_by: the MAC addresses that answer for the address on this node's LAN, if there are several.
        routed: the kernel has a route to the address, and hands packets to a machine that exists.
    """

    node: str
    endpoint: str
    detail: str
    others: tuple[str, ...]
    by_udp: bool
    udp_unanswered: bool
    over_overlay: str
    peers_reached: tuple[str, ...] = ()
    peers_unanswered: tuple[str, ...] = ()
    routed: bool = False
    claimed_by: tuple[str, ...] = ()

    @property
    def host(self) -> str:
        """The host of the address."""
        return self.endpoint.rpartition(":")[0]

    @property
    def port(self) -> str:
        """The port of the address."""
        return self.endpoint.rpartition(":")[2]


def coordinator_tcp(facts: Facts) -> Iterable[Finding]:
    """Check that TCP reaches the coordinator at one of its addresses."""
    for name, control, result in each(facts):
        if result.state in OBSERVED:
            observed = "; ".join(f"{one.endpoint}: {_describe(one)}" for one in control.endpoints)
            witnesses = _witnesses(facts, name, control, result)
            yield weigh(
                observed,
                _CAUSES[result.state](witnesses),
                node=name,
                distinguish=f"on {name}: tracepath -n {witnesses.host}; on the coordinator's machine: meshray doctor",
            )
        elif result.state == ANSWERED:
            took = f" in {result.connect_ms:.0f} ms" if result.connect_ms is not None else ""
            yield _silent_name_server(name, control, result) or Finding(
                OK, f"{result.endpoint} answers{took}", node=name
            )


def _silent_name_server(name: str, control: ControlFacts, answered: EndpointFacts) -> Finding | None:
    """Return the finding about a name server that does not answer, while an address of the coordinator does."""
    for one in control.endpoints:
        if one.state == UNRESOLVED and _is_silence(one.detail):
            cause, fix = _name_fault(name, one.detail)
            evidence = f"{one.endpoint}: {_describe(one)}: {cause}; the node uses the address {answered.endpoint}"
            return Finding(WARN, evidence, fix, name)
    return None


def _name_fault(name: str, detail: str) -> tuple[str, str]:
    """Return (cause, fix) of a name that does not resolve, from the resolver's error."""
    if _is_silence(detail):
        return "no name server answers", f"on {name}: is the name server in /etc/resolv.conf right, and reachable?"
    return "no name server knows it", f"on {name}: fix its name server (/etc/resolv.conf), or use another network"


def _is_silence(detail: str) -> bool:
    return detail.startswith((NO_SERVER, _TRY_AGAIN))


def each(facts: Facts) -> Iterator[tuple[str, ControlFacts, EndpointFacts]]:
    """Yield the nodes that examined the coordinator, each with its facts and the decisive address."""
    for name, node in facts.nodes.items():
        if node.control is not None and node.control.decisive is not None:
            yield name, node.control, node.control.decisive


def _describe(result: EndpointFacts) -> str:
    text = OBSERVED.get(result.state, result.state)
    return f"{text} ({result.detail})" if result.detail else text


def _witnesses(facts: Facts, name: str, control: ControlFacts, result: EndpointFacts) -> Witnesses:
    host = result.endpoint.rpartition(":")[0]
    path = facts.nodes[name].path
    direct = {
        other: peer
        for other, peer in (path.peers.items() if path is not None else ())
        if peer.transport == Transport.UDP and peer.kind == PathKind.DIRECT and peer.sent
    }
    by_udp = [peer.answers for peer in direct.values() if peer.endpoint.rpartition(":")[0] == host]
    peers = {other: peer.answers for other, peer in direct.items() if peer.endpoint.rpartition(":")[0] != host}
    others = tuple(
        other
        for other, known, _ in each(facts)
        if other != name and any(one.endpoint == result.endpoint and one.state == ANSWERED for one in known.endpoints)
    )
    return Witnesses(
        node=name,
        endpoint=result.endpoint,
        detail=result.detail,
        others=others,
        by_udp=any(by_udp),
        udp_unanswered=bool(by_udp) and not any(by_udp),
        over_overlay=control.over_overlay,
        peers_reached=tuple(other for other, answers in peers.items() if answers),
        peers_unanswered=tuple(other for other, answers in peers.items() if not answers),
        routed=_is_routed(facts, name, host),
        claimed_by=_claimants(facts, name, host),
    )


def _is_routed(facts: Facts, name: str, host: str) -> bool:
    """Return whether packets leave this machine to another one on its way to the address."""
    machine = facts.nodes[name].host
    outer = machine.outer if machine is not None else None
    return any(
        one.host == host and one.interface and not one.into_overlay and one.neighbour != NO_MAC
        for one in (outer.addresses if outer is not None else ())
    )


def _claimants(facts: Facts, name: str, host: str) -> tuple[str, ...]:
    machine = facts.nodes[name].host
    claims = machine.lan.claims if machine is not None and machine.lan is not None else ()
    return next((claim.others for claim in claims if claim.is_coordinator and claim.address == host), ())


def _claimed(seen: Witnesses) -> tuple[Hypothesis, ...]:
    """Return the cause that another machine on this LAN has the coordinator's address, if several answer for it."""
    if not seen.claimed_by:
        return ()
    answering = f"the MAC addresses {' and '.join(seen.claimed_by)} answer for it"
    return (
        Hypothesis(
            f"another machine on {seen.node}'s LAN claims {seen.host} as well",
            f"on {seen.node}: ip neigh show {seen.host} shows which one is used; give one of the two another address",
            supported=(answering, *_silence(seen)),
            against=given((seen.by_udp, f"UDP to {seen.host} is answered")),
        ),
    )


def _no_answer(seen: Witnesses) -> tuple[Hypothesis, ...]:
    reached, answers = _reached(seen)
    return (
        *_claimed(seen),
        Hypothesis(
            "a firewall of the coordinator's machine, or its cloud's rules, drop it",
            f"open TCP port {seen.port} on the coordinator's machine, in its firewall and its cloud's rules",
            supported=given((seen.by_udp, f"UDP to {seen.host} is answered, so that the machine is on")),
            against=reached,
        ),
        Hypothesis(
            f"a network on the path from {seen.node} drops it",
            f"let {seen.node}'s network send TCP to port {seen.port}, and allow the answers",
            supported=(*reached, *answers, *_silence(seen), *_alone(seen)),
        ),
        _off(seen),
    )


def _off(seen: Witnesses) -> Hypothesis:
    reached, answers = _reached(seen)
    return Hypothesis(
        "the coordinator's machine is off, or has another address now",
        f"is it on? If it has another address now: on {seen.node}: meshray up --coordinator HOST:PORT",
        supported=_silence(seen),
        against=(*reached, *answers, *given((seen.by_udp, f"UDP to {seen.host} is answered"))),
    )


def _silence(seen: Witnesses) -> tuple[str, ...]:
    """Return the evidence that nothing at all passes between this node and the coordinator's machine."""
    return given((seen.udp_unanswered, f"UDP to {seen.host} is not answered either"))


def _alone(seen: Witnesses) -> tuple[str, ...]:
    """Return the evidence that this node reaches nobody outside its own network."""
    cut_off = bool(seen.peers_unanswered) and not seen.peers_reached
    return given((cut_off, f"{', '.join(seen.peers_unanswered[:3])} do not answer {seen.node}'s UDP either"))


def _no_route(seen: Witnesses) -> tuple[Hypothesis, ...]:
    reached, _ = _reached(seen)
    routed = given((seen.routed, f"{seen.node} has a route to it"))
    unrouted = given((not seen.routed, "no packet leaves this machine for it"))
    return (
        *_claimed(seen),
        Hypothesis(
            "this machine has no network, or none that leads there",
            f"on {seen.node}: ip link; ip route get {seen.host}",
            supported=unrouted,
            against=routed,
        ),
        Hypothesis(
            f"a router on the path from {seen.node} reports that it cannot reach it",
            f"on {seen.node}: tracepath -n {seen.host} shows the router that reports it",
            supported=(*routed, *reached, *_alone(seen)),
            against=unrouted,
        ),
        Hypothesis(
            "the coordinator's machine is off, or has another address now",
            f"if it has another address now: on {seen.node}: meshray up --coordinator HOST:PORT",
            supported=routed,
            against=(*reached, *unrouted),
        ),
    )


def _refused(seen: Witnesses) -> tuple[Hypothesis, ...]:
    reached, answers = _reached(seen)
    both_refuse = given((seen.over_overlay == REFUSED, "the overlay address, which no firewall sees, refuses too"))
    return (
        *_claimed(seen),
        Hypothesis(
            "nothing listens there: the coordinator has ended",
            "on the coordinator's machine: meshray up; meshray logs coordinator",
            supported=given(
                (seen.over_overlay == REFUSED, "its overlay address refuses as well"),
            ),
            against=(*reached, *answers),
        ),
        Hypothesis(
            f"a firewall on the path, or on {seen.node} itself, rejects it",
            f"on {seen.node}: nft list ruleset; let its network send TCP to port {seen.port}",
            supported=(*reached, *answers),
            against=both_refuse,
        ),
        Hypothesis(
            "a firewall of the coordinator's machine rejects it",
            "on the coordinator's machine: meshray doctor; nft list ruleset",
            supported=answers,
            against=(*reached, *both_refuse),
        ),
        Hypothesis(
            "another machine has that address now",
            f"on {seen.node}: meshray up --coordinator HOST:PORT",
            supported=given((seen.udp_unanswered, f"UDP to {seen.host} is not answered")),
            against=(*reached, *given((seen.by_udp, f"UDP to {seen.host} is answered"))),
        ),
    )


def _silent(seen: Witnesses) -> tuple[Hypothesis, ...]:
    reached, answers = _reached(seen)
    return (
        Hypothesis(
            "the coordinator hangs",
            "on the coordinator's machine: meshray logs coordinator; meshray down; meshray up",
            supported=given((seen.over_overlay in (SILENT, NO_ANSWER), "it is silent over the overlay as well")),
            against=(*reached, *answers),
        ),
        Hypothesis(
            f"a gateway on the path from {seen.node} accepts connections and passes nothing on",
            f"let {seen.node}'s network pass TLS to {seen.endpoint}",
            supported=(*reached, *answers),
            against=given((seen.over_overlay in (SILENT, NO_ANSWER), "it is silent over the overlay as well")),
        ),
        Hypothesis(
            f"{seen.node} or the coordinator's machine is too busy to answer in time",
            "meshray doctor once more, when they are less busy",
            supported=answers,
            against=reached,
        ),
    )


def _reached(seen: Witnesses) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the evidence that the address works for others, and that the coordinator itself works."""
    names = ", ".join(seen.others[:3])
    return (
        given((bool(seen.others), f"{names} reached it there just now")),
        given((seen.over_overlay == ANSWERED, "the coordinator answers over the overlay")),
    )


def _one(cause: str, fix: str) -> Callable[[Witnesses], tuple[Hypothesis, ...]]:
    def causes(seen: Witnesses) -> tuple[Hypothesis, ...]:
        text = fix.format(at=f"on {seen.node}: ", host=seen.host, port=seen.port, endpoint=seen.endpoint)
        return (Hypothesis(cause, text),)

    return causes


_CAUSES: Mapping[str, Callable[[Witnesses], tuple[Hypothesis, ...]]] = {
    UNRESOLVED: lambda seen: (Hypothesis(*_name_fault(seen.node, seen.detail)),),
    REFUSED: _refused,
    NO_ANSWER: _no_answer,
    NO_ROUTE: _no_route,
    SILENT: _silent,
    CLOSED: _one("the coordinator, or a gateway on the path, closes it", _LOGS),
    NOT_TLS: _one(
        "another program has the port", "what listens at {endpoint}? On the coordinator's machine: meshray up"
    ),
    UNEXPECTED: _one("another program has the port, or the coordinator fails", _LOGS),
}
