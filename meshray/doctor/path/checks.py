"""Checks of the paths to the hub and to the peers (pure).

udp_in ─► udp_out ─► udp_data ─► transports        one node and its hubs
nat_kind  mapping_lifetime  udp_limit              the behaviour of its router
one_way ─► path_loss ─► path_rate ─► path_mtu      each ordered pair; path_kind shows how the packets travel
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from meshray.defaults import LEAST_MTU
from meshray.doctor.facts import Facts
from meshray.doctor.path.facts import BAD_LOSS, SOME_LOSS, PeerFacts
from meshray.doctor.path.pair_facts import (
    ONLY_HANDSHAKES,
    RELAYED,
    WORKS,
    UdpPath,
    find_udp_paths,
    find_witnesses,
    lossy_leg,
    nodes_with_paths,
    pairs,
)
from meshray.doctor.path.rate_checks import path_rate, udp_limit
from meshray.doctor.report import FAIL, OK, SKIP, WARN, Finding, Spec
from meshray.model.path import PathKind, Transport

#: This many changes of a mapping within `RECENT_S` are not accidental.
REBINDS = 2
RECENT_S = 3 * 3600.0


def _udp_in(facts: Facts) -> Iterable[Finding]:
    for hub, port, udp_paths in _by_hub(facts):
        passing = [udp for udp in udp_paths if udp.passes]
        lost = [udp for udp in udp_paths if udp.is_lost]
        names = _list_names([udp.node for udp in lost])
        before = f"{hub} saw UDP of {_list_names([udp.node for udp in passing])} at port {port}{_when(passing)}"
        if passing and (find_witnesses(udp_paths) or not lost):
            yield Finding(OK, f"UDP of {_list_names([udp.node for udp in passing])} arrives at port {port}", node=hub)
        elif len([udp for udp in lost if udp.age_s == 0]) > 1 or (len(lost) > 1 and not passing):
            carried = all(udp.state == RELAYED for udp in lost)
            by = "; the relay carries them all" if carried else ""
            seen = f"; {before}" if passing else ""
            yield Finding(
                WARN if carried else FAIL,
                f"no node's UDP arrives at port {port}: not that of {names}{by}{seen}",
                f"open UDP port {port} on {hub}: in its firewall, its router's forwarding, its cloud's security group "
                "(UDP and TCP have a rule each)",
                hub,
            )
        elif passing:
            yield Finding(SKIP, f"{before}; {names} gets no answer", node=hub)
        elif lost:
            yield Finding(SKIP, f"only {names} could report this, and its own network may be the cause", node=hub)


def _when(passing: Sequence[UdpPath]) -> str:
    """Return when the latest of these observations was made."""
    ages = [udp.age_s for udp in passing if udp.age_s is not None]
    return f" {min(ages):.0f} s ago" if ages else ", but it is not known when"


def _by_hub(facts: Facts) -> Iterable[tuple[str, int, list[UdpPath]]]:
    udp_paths = find_udp_paths(facts)
    for hub in dict.fromkeys(udp.hub for udp in udp_paths):
        paths_of_hub = [udp for udp in udp_paths if udp.hub == hub]
        yield hub, paths_of_hub[0].port, paths_of_hub


def _udp_out(facts: Facts) -> Iterable[Finding]:
    udp_paths = find_udp_paths(facts)
    for name, path in nodes_with_paths(facts):
        if path.is_hub:
            continue
        own_paths = [udp for udp in udp_paths if udp.node == name and udp.own]
        if path.transport == Transport.WSS:
            yield Finding(SKIP, "--transport wss was chosen", node=name)
        elif any(udp.state == WORKS for udp in own_paths):
            yield Finding(
                OK,
                f"{_list_names([udp.hub for udp in own_paths if udp.state == WORKS])} answers over UDP",
                node=name,
            )
        elif any(udp.state == ONLY_HANDSHAKES for udp in own_paths):
            hubs = _list_names([udp.hub for udp in own_paths if udp.state == ONLY_HANDSHAKES])
            yield Finding(OK, f"{hubs} answers handshakes over UDP", node=name)
        elif any(udp.is_lost for udp in own_paths):
            lost = next(udp for udp in own_paths if udp.is_lost)
            others = [udp for udp in udp_paths if udp.hub == lost.hub and udp.node != name]
            yield _no_udp(lost, others, path.transport, in_pod=_is_in_pod(facts, name))


def _is_in_pod(facts: Facts, name: str) -> bool:
    host = facts.nodes[name].host
    return host is not None and host.pod is not None and host.pod.in_pod


def _no_udp(lost: UdpPath, others: list[UdpPath], chosen: str, *, in_pod: bool) -> Finding:
    working = [udp.node for udp in find_witnesses([lost, *others])]
    seen = [udp for udp in others if udp.passes and udp.node not in working]
    if not working and any(udp.is_lost and (udp.age_s == 0 or not seen) for udp in others):
        return Finding(SKIP, f"no node's UDP arrives at {lost.hub}", node=lost.node)
    comparison = (
        f"that of {_list_names(working)} is"
        if working
        else f"it, or {lost.hub} itself: {lost.hub} saw that of {_list_names([udp.node for udp in seen])}{_when(seen)}"
        if seen
        else f"it, or {lost.hub}'s firewall: no other node can be compared"
    )
    evidence = f"UDP to {lost.hub} ({lost.endpoint}) is not answered; {comparison}"
    fix = f"let {lost.node}'s network send UDP to port {lost.port}, and allow the answers"
    if in_pod:
        fix = f"in its namespace: kubectl get networkpolicy; one that limits egress must allow UDP port {lost.port}"
    if lost.state == RELAYED:
        return Finding(WARN, f"{evidence}; the relay carries the tunnel (wss)", fix, lost.node)
    if not working:
        # The hub itself may be the cause, and another transport of this node would not help.
        fix = f"on {lost.hub}: meshray doctor; {fix}"
    elif chosen == Transport.UDP:
        fix = f"{fix}; or on {lost.node}: meshray leave, and meshray join with --transport auto"
    return Finding(FAIL, evidence, fix, lost.node)


def _udp_data(facts: Facts) -> Iterable[Finding]:
    udp_paths = [udp for udp in find_udp_paths(facts) if udp.own]
    for name in dict.fromkeys(udp.node for udp in udp_paths):
        own_paths = [udp for udp in udp_paths if udp.node == name]
        works, handshakes_only = (
            [udp for udp in own_paths if udp.state == state] for state in (WORKS, ONLY_HANDSHAKES)
        )
        if works:
            yield Finding(OK, f"data passes over UDP to and from {_list_names([udp.hub for udp in works])}", node=name)
        elif handshakes_only:
            path = facts.nodes[name].path
            yield _only_handshakes(handshakes_only[0], path.transport if path is not None else "")


def _only_handshakes(udp: UdpPath, chosen: str) -> Finding:
    cause = (
        f"something between {udp.node} and {udp.hub} lets WireGuard's handshakes pass and drops its data "
        "(DDoS scrubbing, deep packet inspection, a firewall that counts packets)"
    )
    fix = f"ask the operator of that network to allow all UDP between {udp.node} and {udp.endpoint}"
    if udp.observed.transport == Transport.WSS:
        return Finding(WARN, f"{cause}; the relay carries the tunnel (wss)", fix, udp.node)
    if chosen == Transport.UDP:
        fix = (
            f"{fix}; or on {udp.node}: meshray leave, and meshray join with --transport auto, which goes through TCP "
            "where UDP carries no data"
        )
    age_s, silent_s = udp.observed.handshake_age_s or 0.0, udp.observed.unanswered_s or 0.0
    return Finding(
        FAIL,
        f"the last handshake with {udp.hub} ({udp.endpoint}) was {age_s:.0f} s ago, and no data came back for "
        f"{silent_s:.0f} s: {cause}",
        fix,
        udp.node,
    )


def _transports(facts: Facts) -> Iterable[Finding]:
    udp_paths = find_udp_paths(facts)
    for name, path in nodes_with_paths(facts):
        control = facts.nodes[name].control
        if path.is_hub or control is None or control.decisive is None:
            continue
        has_udp = any(udp.state == WORKS for udp in udp_paths if udp.node == name)
        has_wss = control.reachable is not None and control.upgrade == ""
        works = [
            transport for transport, works_now in ((Transport.UDP, has_udp), (Transport.WSS, has_wss)) if works_now
        ]
        if works:
            limited = (
                f"; UDP is limited to about {path.udp_limit_kbit_s / 1000:.0f} Mbit/s, so wss is used"
                if path.udp_limit_kbit_s is not None
                else ""
            )
            yield Finding(OK, f"{' and '.join(works)} (chosen: {path.transport}){limited}", node=name)
        else:
            fix = f"let {name}'s network send UDP or TCP to port {path.port} of the hub"
            yield Finding(FAIL, "neither UDP nor a WebSocket reaches the hub", fix, name)


def _nat_kind(facts: Facts) -> Iterable[Finding]:
    for name, path in nodes_with_paths(facts):
        endpoints = {
            other: peer.seen[name]
            for other, peer in nodes_with_paths(facts)
            if name in peer.seen and _is_significant(peer.seen[name])
        }
        outside = {other: at for other, at in endpoints.items() if at.rpartition(":")[0] not in path.addresses}
        if not endpoints:
            yield Finding(SKIP, "no node sees it over UDP", node=name)
        elif not outside:
            yield Finding(OK, f"no NAT: {_list_names(list(endpoints))} sees it at its own address", node=name)
        elif len(outside) == 1:
            ((other, at),) = outside.items()
            yield Finding(SKIP, f"one observer only: {other} sees it at {at}", node=name)
        elif len(set(outside.values())) == 1:
            at = next(iter(outside.values()))
            evidence = f"endpoint-independent mapping: {_list_names(list(outside))} see it at {at}"
            yield Finding(OK, evidence, node=name)
        else:
            mappings = ", ".join(f"{other}: {at}" for other, at in list(outside.items())[:4])
            yield Finding(OK, f"the mapping varies by destination (symmetric NAT): {mappings}", node=name)


def _is_significant(endpoint: str) -> bool:
    """Return whether the endpoint is significant: the relay's packets come from loopback, not from the router."""
    return bool(endpoint) and not endpoint.startswith(("127.", "[::1]"))


def _mapping_lifetime(facts: Facts) -> Iterable[Finding]:
    for hub, path in nodes_with_paths(facts):
        for name, ages in path.rebinds.items():
            recent = [age for age in ages if age < RECENT_S]
            if len(recent) < REBINDS:
                evidence = f"{hub} saw its mapping change {len(recent)} times in {RECENT_S / 3600:.0f} h"
                yield Finding(OK, evidence, node=name)
                continue
            yield Finding(
                WARN,
                f"{hub} saw its mapping change {len(recent)} times in {RECENT_S / 3600:.0f} h, the last time "
                f"{min(recent):.0f} s ago, while its own address stayed: the router forgets in less than the "
                f"keepalive's {path.keepalive_s} s, or restarts",
                f"raise the UDP timeout of {name}'s router above {2 * path.keepalive_s} s",
                name,
            )


def _one_way(facts: Facts) -> Iterable[Finding]:
    for name, peer, pair in pairs(facts):
        if not pair.sent or pair.machine_answers:
            continue
        leg = _silent_leg(facts, name, peer, pair)
        if pair.received:
            yield Finding(OK, "probes come back", node=name, peer=peer)
        elif leg:
            yield Finding(SKIP, f"its path leads through {leg}, which does not answer either", node=name, peer=peer)
        elif pair.lost_locally:
            yield Finding(
                FAIL,
                f"none of {pair.sent} probes to {peer} was answered: lost on {name} itself, {pair.lost_locally}",
                f"on {name}: nft list ruleset; ip rule; what drops or redirects packets of the overlay interface?",
                name,
                peer,
            )
        # Packets that arrived while our probes got no answer prove that the other side lives, and the path from there.
        elif pair.received_probe:
            yield Finding(
                FAIL,
                f"packets of {peer} arrive at {name} ({pair.heard_ago_s or 0:.1f} s ago), and none of {pair.sent} "
                f"probes to {peer} was answered",
                f"on {peer}: nft list ruleset (does something drop what comes from {name} by the overlay?)",
                name,
                peer,
            )


def _silent_leg(facts: Facts, name: str, peer: str, pair: PeerFacts) -> str:
    """Return the hub on the path if it is what does not answer."""
    path = facts.nodes[name].path
    if pair.kind != PathKind.HUB or path is None:
        return ""
    silent = (hub for hub, leg in path.peers.items() if leg.is_hub and hub != peer and leg.sent and not leg.received)
    return next(silent, "")


def _path_loss(facts: Facts) -> Iterable[Finding]:
    for name, peer, pair in pairs(facts):
        if not pair.sent or not pair.received:
            continue
        leg = lossy_leg(facts, name, peer, SOME_LOSS)
        if pair.loss < SOME_LOSS:
            evidence = f"{pair.received} of {pair.sent} probes answered, {pair.rtt_ms or 0.0:.1f} ms"
            yield Finding(OK, evidence, node=name, peer=peer)
        elif leg:
            evidence = f"{pair.loss:.0%} are lost; its path leads through {leg}"
            yield Finding(SKIP, evidence, node=name, peer=peer)
        else:
            yield Finding(
                FAIL if pair.loss >= BAD_LOSS else WARN,
                f"{pair.sent - pair.received} of {pair.sent} probes were lost ({pair.loss:.0%}) over "
                f"{_path_text(pair)}",
                f"on both: a wireless link, a saturated connection? meshray ping --count 50 {peer}; mtr -u "
                f"{_host(pair.endpoint)}",
                name,
                peer,
            )


def _path_mtu(facts: Facts) -> Iterable[Finding]:
    for name, peer, pair in pairs(facts):
        if pair.full_passes is None or pair.promised_mtu is None:
            continue
        if pair.full_passes:
            yield Finding(
                OK, f"packets of {pair.promised_mtu} bytes pass over {_path_text(pair)}", node=name, peer=peer
            )
            continue
        if pair.small_passes and not pair.mtu_measured:
            yield Finding(SKIP, "the largest size is still being measured", node=name, peer=peer)
            continue
        least = f"those of {LEAST_MTU} do" if pair.small_passes else f"not even those of {LEAST_MTU}"
        yield Finding(
            FAIL,
            f"packets of {pair.promised_mtu} bytes, the MTU of the route, do not pass over {_path_text(pair)}; {least}",
            f'a router between {name} and {peer} drops them: let ICMP "fragmentation needed" through, or raise '
            f"the link's MTU; then on {name}: meshray down; meshray up measures again",
            name,
            peer,
        )


def _path_kind(facts: Facts) -> Iterable[Finding]:
    for name, path in nodes_with_paths(facts):
        for peer, pair in path.peers.items():
            why = f": {pair.reason}" if pair.reason else ""
            status = WARN if path.transport == Transport.UDP and pair.transport == Transport.WSS else OK
            fix = f"on {name}: meshray logs agent" if status == WARN else ""
            if pair.kind:
                yield Finding(status, f"{_path_text(pair)}{why}", fix, name, peer)


def _path_text(pair: PeerFacts) -> str:
    over = "the hub" if pair.kind == PathKind.HUB else "the direct path"
    return f"{over} ({pair.transport or Transport.UDP}, {pair.endpoint})"


def _host(endpoint: str) -> str:
    return endpoint.rpartition(":")[0]


def _list_names(names: list[str]) -> str:
    """Return at most three of them, by name."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _spec(code: str, title: str, run: Callable[[Facts], Iterable[Finding]], *after: str) -> Spec:
    return Spec(code, title, ("agent_running", *after), run)


_CONTROL = ("proxy_works", "captive_portal", "certificate_pin", "coordinator_tcp", "websocket_upgrade")
_UDP = ("udp_in", "udp_out", "udp_data")
SPECS: tuple[Spec, ...] = (
    _spec("udp_in", "UDP to the hub", _udp_in, "coordinator_tcp"),
    _spec("udp_out", "UDP out of the node's network", _udp_out, "coordinator_tcp"),
    _spec("udp_data", "data over UDP", _udp_data, "coordinator_tcp", "udp_in", "udp_out"),
    _spec("transports", "transports of the tunnel", _transports, *_CONTROL, *_UDP),
    _spec("nat_kind", "kind of NAT", _nat_kind),
    _spec("mapping_lifetime", "lifetime of the NAT mapping", _mapping_lifetime),
    _spec("one_way", "packets in both directions", _one_way, *_UDP, "transports"),
    _spec("path_loss", "packet loss", _path_loss, *_UDP, "transports", "one_way"),
    _spec("path_rate", "rate of the path", path_rate, *_UDP, "transports", "one_way", "path_loss"),
    _spec("udp_limit", "limits of UDP", udp_limit, *_UDP, "transports", "one_way", "path_loss", "path_rate"),
    _spec("path_mtu", "path MTU", _path_mtu, *_UDP, "transports", "one_way", "path_loss", "path_rate"),
    _spec("path_kind", "kind of path", _path_kind),
)
