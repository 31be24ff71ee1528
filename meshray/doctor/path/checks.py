"""Checks of the paths to the hub and to the peers (pure).

udp_in ─► udp_out ─► udp_data ─► transports        one node and its hubs
nat_kind  mapping_lifetime             the behaviour of its router
one_way ─► path_loss ─► path_mtu       each ordered pair;  path_kind shows how the packets travel
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from meshray.defaults import LEAST_MTU
from meshray.doctor.facts import Facts
from meshray.doctor.path.facts import BAD_LOSS, SOME_LOSS, PeerFacts
from meshray.doctor.path.pair_facts import EATEN, RELAYED, SILENT, WORKS, Udp, each, lossy_leg, pairs, udp_ways
from meshray.doctor.report import FAIL, OK, SKIP, WARN, Finding, Spec
from meshray.model.path import PathKind, Transport

#: This many changes of a mapping within `RECENT_S` are not accidental.
REBINDS = 2
RECENT_S = 3 * 3600.0


def _udp_in(facts: Facts) -> Iterable[Finding]:
    for hub, port, ways in _by_hub(facts):
        fine = [way.node for way in ways if way.state in (WORKS, EATEN)]
        lost = [way.node for way in ways if way.state in (SILENT, RELAYED)]
        if fine:
            yield Finding(OK, f"UDP of {_some(fine)} arrives at port {port}", node=hub)
        elif len(lost) > 1:
            carried = all(way.state == RELAYED for way in ways if way.node in lost)
            by = "; the relay carries them all" if carried else ""
            yield Finding(
                WARN if carried else FAIL,
                f"no node's UDP arrives at port {port}: not that of {_some(lost)}{by}",
                f"open UDP port {port} on {hub}: in its firewall, its router's forwarding, its cloud's security group "
                "(UDP and TCP have a rule each)",
                hub,
            )
        elif lost:
            yield Finding(SKIP, f"only {lost[0]} could report this, and its own network may be the cause", node=hub)


def _by_hub(facts: Facts) -> Iterable[tuple[str, int, list[Udp]]]:
    ways = udp_ways(facts)
    for hub in dict.fromkeys(way.hub for way in ways):
        of_hub = [way for way in ways if way.hub == hub]
        yield hub, of_hub[0].port, of_hub


def _udp_out(facts: Facts) -> Iterable[Finding]:
    ways = udp_ways(facts)
    for name, path in each(facts):
        if path.is_hub:
            continue
        mine = [way for way in ways if way.node == name and way.own]
        if path.transport == Transport.WSS:
            yield Finding(SKIP, "--transport wss was asked for", node=name)
        elif any(way.state == WORKS for way in mine):
            yield Finding(OK, f"{_some([way.hub for way in mine if way.state == WORKS])} answers over UDP", node=name)
        elif any(way.state == EATEN for way in mine):
            hubs = _some([way.hub for way in mine if way.state == EATEN])
            yield Finding(OK, f"{hubs} answers handshakes over UDP", node=name)
        elif any(way.state in (SILENT, RELAYED) for way in mine):
            lost = next(way for way in mine if way.state in (SILENT, RELAYED))
            others = [way for way in ways if way.hub == lost.hub and way.node != name]
            yield _no_udp(lost, others, in_pod=_is_in_pod(facts, name))


def _is_in_pod(facts: Facts, name: str) -> bool:
    host = facts.nodes[name].host
    return host is not None and host.pod is not None and host.pod.in_pod


def _no_udp(lost: Udp, others: list[Udp], *, in_pod: bool) -> Finding:
    fine = [way.node for way in others if way.state == WORKS]
    if not fine and any(way.state in (SILENT, RELAYED) for way in others):
        return Finding(SKIP, f"no node's UDP arrives at {lost.hub}", node=lost.node)
    told = f"that of {_some(fine)} is" if fine else f"it, or {lost.hub}'s firewall: no other node can be compared"
    evidence = f"UDP to {lost.hub} ({lost.endpoint}) is not answered; {told}"
    fix = f"let {lost.node}'s network send UDP to port {lost.port}, and allow the answers"
    if in_pod:
        fix = f"in its namespace: kubectl get networkpolicy; one that limits egress must allow UDP port {lost.port}"
    if lost.state == RELAYED:
        return Finding(WARN, f"{evidence}; the relay carries the tunnel (wss)", fix, lost.node)
    return Finding(FAIL, evidence, f"{fix}; or meshray leave there and join with --transport auto", lost.node)


def _udp_data(facts: Facts) -> Iterable[Finding]:
    ways = [way for way in udp_ways(facts) if way.own]
    for name in dict.fromkeys(way.node for way in ways):
        mine = [way for way in ways if way.node == name]
        works, eaten = ([way for way in mine if way.state == state] for state in (WORKS, EATEN))
        if works:
            yield Finding(OK, f"data passes over UDP to and from {_some([way.hub for way in works])}", node=name)
        elif eaten:
            yield _eaten(eaten[0])


def _eaten(way: Udp) -> Finding:
    cause = (
        f"something between {way.node} and {way.hub} lets WireGuard's handshakes pass and drops its data "
        "(DDoS scrubbing, deep packet inspection, a firewall that counts packets)"
    )
    fix = f"ask the operator of that network to allow all UDP between {way.node} and {way.endpoint}"
    if way.seen.transport == Transport.WSS:
        return Finding(WARN, f"{cause}; the relay carries the tunnel (wss)", fix, way.node)
    age_s, silent_s = way.seen.handshake_age_s or 0.0, way.seen.unanswered_s or 0.0
    return Finding(
        FAIL,
        f"the last handshake with {way.hub} ({way.endpoint}) was {age_s:.0f} s ago, and no data came back for "
        f"{silent_s:.0f} s: {cause}",
        f"{fix}; until then on {way.node}: meshray leave --yes, and meshray join with --transport auto, which goes "
        "through TCP where UDP carries no data",
        way.node,
    )


def _transports(facts: Facts) -> Iterable[Finding]:
    ways = udp_ways(facts)
    for name, path in each(facts):
        control = facts.nodes[name].control
        if path.is_hub or control is None or control.decisive is None:
            continue
        udp = any(way.state == WORKS for way in ways if way.node == name)
        wss = control.right is not None and control.upgrade == ""
        works = [word for word, does in ((Transport.UDP, udp), (Transport.WSS, wss)) if does]
        if works:
            yield Finding(OK, f"{' and '.join(works)} (asked for: {path.transport})", node=name)
        else:
            fix = f"let {name}'s network send UDP or TCP to port {path.port} of the hub"
            yield Finding(FAIL, "neither UDP nor a WebSocket reaches the hub", fix, name)


def _nat_kind(facts: Facts) -> Iterable[Finding]:
    for name, path in each(facts):
        seen = {
            other: views.seen[name] for other, views in each(facts) if name in views.seen and _tells(views.seen[name])
        }
        outside = {other: at for other, at in seen.items() if at.rpartition(":")[0] not in path.addresses}
        if not seen:
            yield Finding(SKIP, "no node sees it over UDP", node=name)
        elif not outside:
            yield Finding(OK, f"no NAT: {_some(list(seen))} sees it at its own address", node=name)
        elif len(outside) == 1:
            ((other, at),) = outside.items()
            yield Finding(SKIP, f"one observer only: {other} sees it at {at}", node=name)
        elif len(set(outside.values())) == 1:
            at = next(iter(outside.values()))
            evidence = f"endpoint-independent mapping: {_some(list(outside))} see it at {at}"
            yield Finding(OK, evidence, node=name)
        else:
            views = ", ".join(f"{other}: {at}" for other, at in list(outside.items())[:4])
            yield Finding(OK, f"the mapping varies by destination (symmetric NAT): {views}", node=name)


def _tells(endpoint: str) -> bool:
    """Return whether the endpoint is significant: the relay's packets come from loopback, not from the router."""
    return bool(endpoint) and not endpoint.startswith(("127.", "[::1]"))


def _mapping_lifetime(facts: Facts) -> Iterable[Finding]:
    for hub, path in each(facts):
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
    for name, peer, seen in pairs(facts):
        if not seen.sent or seen.machine_answers:
            continue
        leg = _silent_leg(facts, name, peer, seen)
        if seen.received:
            yield Finding(OK, "probes come back", node=name, peer=peer)
        elif leg:
            yield Finding(SKIP, f"its path leads through {leg}, which does not answer either", node=name, peer=peer)
        elif seen.lost_inside:
            yield Finding(
                FAIL,
                f"none of {seen.sent} probes to {peer} was answered: lost on {name} itself, {seen.lost_inside}",
                f"on {name}: nft list ruleset; ip rule; what drops or redirects packets of the overlay interface?",
                name,
                peer,
            )
        # Packets that arrived while our probes got no answer prove that the other side lives, and the path from there.
        elif seen.heard:
            yield Finding(
                FAIL,
                f"packets of {peer} arrive at {name} ({seen.heard_ago_s or 0:.1f} s ago), and none of {seen.sent} "
                f"probes to {peer} was answered",
                f"on {peer}: nft list ruleset (does something drop what comes from {name} by the overlay?)",
                name,
                peer,
            )


def _silent_leg(facts: Facts, name: str, peer: str, seen: PeerFacts) -> str:
    """Return the hub on the path if it is what does not answer."""
    path = facts.nodes[name].path
    if seen.kind != PathKind.HUB or path is None:
        return ""
    silent = (hub for hub, way in path.peers.items() if way.is_hub and hub != peer and way.sent and not way.received)
    return next(silent, "")


def _path_loss(facts: Facts) -> Iterable[Finding]:
    for name, peer, seen in pairs(facts):
        if not seen.sent or not seen.received:
            continue
        leg = lossy_leg(facts, name, peer, SOME_LOSS)
        if seen.loss < SOME_LOSS:
            evidence = f"{seen.received} of {seen.sent} probes answered, {seen.rtt_ms or 0.0:.1f} ms"
            yield Finding(OK, evidence, node=name, peer=peer)
        elif leg:
            evidence = f"{seen.loss:.0%} are lost; its path leads through {leg}"
            yield Finding(SKIP, evidence, node=name, peer=peer)
        else:
            yield Finding(
                FAIL if seen.loss >= BAD_LOSS else WARN,
                f"{seen.sent - seen.received} of {seen.sent} probes were lost ({seen.loss:.0%}) over {_way(seen)}",
                f"on both: a wireless link, a saturated line? meshray ping --count 50 {peer}; mtr -u "
                f"{_host(seen.endpoint)}",
                name,
                peer,
            )


def _path_mtu(facts: Facts) -> Iterable[Finding]:
    for name, peer, seen in pairs(facts):
        if seen.full_passes is None or seen.promised_mtu is None:
            continue
        if seen.full_passes:
            yield Finding(OK, f"packets of {seen.promised_mtu} bytes pass over {_way(seen)}", node=name, peer=peer)
            continue
        if seen.small_passes and not seen.mtu_measured:
            yield Finding(SKIP, "the largest size is still being measured", node=name, peer=peer)
            continue
        least = f"those of {LEAST_MTU} do" if seen.small_passes else f"not even those of {LEAST_MTU}"
        yield Finding(
            FAIL,
            f"packets of {seen.promised_mtu} bytes, as the route promises, do not pass over {_way(seen)}; {least}",
            f'a router between {name} and {peer} drops them: let ICMP "fragmentation needed" through, or raise '
            f"the link's MTU; then on {name}: meshray down; meshray up measures again",
            name,
            peer,
        )


def _path_kind(facts: Facts) -> Iterable[Finding]:
    for name, path in each(facts):
        for peer, seen in path.peers.items():
            why = f": {seen.reason}" if seen.reason else ""
            status = WARN if path.transport == Transport.UDP and seen.transport == Transport.WSS else OK
            fix = f"on {name}: meshray logs agent" if status == WARN else ""
            if seen.kind:
                yield Finding(status, f"{_way(seen)}{why}", fix, name, peer)


def _way(seen: PeerFacts) -> str:
    over = "the hub" if seen.kind == PathKind.HUB else "the direct path"
    return f"{over} ({seen.transport or Transport.UDP}, {seen.endpoint})"


def _host(endpoint: str) -> str:
    return endpoint.rpartition(":")[0]


def _some(names: list[str]) -> str:
    """Return at most three of them, by name."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _spec(code: str, title: str, look: Callable[[Facts], Iterable[Finding]], *after: str) -> Spec:
    return Spec(code, title, ("agent_running", *after), look)


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
    _spec("path_mtu", "path MTU", _path_mtu, *_UDP, "transports", "one_way", "path_loss"),
    _spec("path_kind", "kind of path", _path_kind),
)
