"""Drawn faults of the layers rule and NAT: what machines and routers do with packets by their rules."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import product

from tests.lab.drawn_fault import DrawnFault, Step
from tests.lab.drawn_stage import FAR, FAR_NAT, HEAD, NEAR, NEAR_NAT, PORT
from tests.lab.drawn_verdict import Truth

#: Conditions for `DrawnFault.effect`.
NO_TCP = f"! timeout 1 bash -c 'exec 3<>/dev/tcp/{HEAD}/{PORT}'"
NO_PING = "! ping -nqc1 -W1 {}"
#: A cause in the coordinator's machine or before it; and one on the path from a node, or in its own network.
AT_THE_HEAD = (
    r"coordinator's machine|head's (own )?(firewall|rules|network)|on head: |firewall of (the )?(head|coordin)"
)
ON_THE_PATH = r"on the path|own network|network of|'s network|router|gateway"

_WORKERS = {"near": (NEAR, NEAR_NAT), "far": (FAR, FAR_NAT)}
#: The connections that exist pass by a nat rule; the machine must forget them (see `tests.lab.trouble.forget`).
FORGET = (
    f"{sys.executable} -c 'from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket\n"
    "with NFCTSocket() as kernel: kernel.flush()'"
)


def _effect(host: str, protocol: str) -> Step:
    return Step(host, NO_TCP if protocol == "tcp" else NO_PING.format("{head}"))


def _table(family: str, chain: str, *rules: str) -> str:
    text = "\n".join(rules)
    return (
        f"nft -f - <<'RULES'\ntable {family} drawn {{ chain c {{\ntype {chain}; policy accept;\n{text}\n}}; }}\nRULES"
    )


def _ruled(place: str, family: str, chain: str, *rules: str, forget: bool = False) -> tuple[Step, Step]:
    """Return the steps that add a table to this machine and remove it."""
    inject, heal = _table(family, chain, *rules), f"nft delete table {family} drawn"
    if forget:
        inject, heal = f"{inject}\n{FORGET}", f"{heal}\n{FORGET}"
    return Step(place, inject), Step(place, heal)


def _truth(codes: str, nodes: str, says: str = "", never: str = "") -> Truth:
    return Truth(frozenset(codes.split()), frozenset(nodes.split()), says, never)


def at_the_head() -> Iterator[DrawnFault]:
    """Yield what the head's own rules do to all nodes."""
    chains = {
        "input": ("inet", "filter hook input priority 5", ("drop", "reject")),
        "raw": ("ip", "filter hook prerouting priority -300", ("drop",)),
        "card": ("netdev", 'filter hook ingress device "eth0" priority -500', ("drop",)),
    }
    for (hook, (family, chain, verdicts)), protocol in product(chains.items(), ("tcp", "udp")):
        for verdict in verdicts:
            inject, heal = _ruled("head", family, chain, f"{protocol} dport {PORT} {verdict}")
            for asked in ("head", "near"):
                own = f"{protocol}_port_open" if asked == "head" else "coordinator_tcp udp_out udp_in"
                yield DrawnFault(
                    *("rule", "head", f"{hook}-{verdict}s-{protocol}", (inject,), (heal,)),
                    _effect("near", protocol),
                    asked,
                    _truth(own, "head" if asked == "head" else "near head", "" if asked == "head" else AT_THE_HEAD),
                )


def bans_at_the_head() -> Iterator[DrawnFault]:
    """Yield rules of the head that concern one node's outer address."""
    matches = {"all": "", "tcp": f"tcp dport {PORT}", "udp": f"udp dport {PORT}"}
    for (worker, (_, outer)), (protocol, match), verdict in product(
        _WORKERS.items(), matches.items(), ("drop", "reject")
    ):
        inject, heal = _ruled("head", "ip", "filter hook input priority -1", f"ip saddr {outer} {match} {verdict}")
        yield DrawnFault(
            *("rule", "head", f"{verdict}s-{protocol}-of-{worker}", (inject,), (heal,)),
            _effect(worker, "udp" if protocol == "udp" else "tcp"),
            "head",
            _truth("outer_addresses coordinator_tcp", worker, r"rules of this machine|the head's rules|on head: "),
        )


def of_a_worker() -> Iterator[DrawnFault]:
    """Yield what a worker's own rules do to its packets to the head, and to the answers."""
    own_rules = r"rules of this machine|nft list ruleset|on (near|far) itself"
    for worker, protocol, verdict, whole in product(_WORKERS, ("tcp", "udp"), ("drop", "reject"), (True, False)):
        to = f"ip daddr {HEAD} {protocol} dport {PORT}" if whole else f"{protocol} dport {PORT}"
        inject, heal = _ruled(worker, "ip", "filter hook output priority 5", f"{to} {verdict}")
        what = f"{verdict}s-{protocol}-to-{'head' if whole else 'the-port'}"
        codes = "outer_addresses coordinator_tcp udp_out udp_data"
        truth = _truth(codes, worker, own_rules)
        yield DrawnFault("rule", worker, what, (inject,), (heal,), _effect(worker, protocol), worker, truth)
    for worker, protocol in product(_WORKERS, ("tcp", "udp")):
        inject, heal = _ruled(
            worker, "ip", "filter hook input priority -5", f"ip saddr {HEAD} {protocol} sport {PORT} drop"
        )
        what, truth = f"drops-answers-{protocol}", _truth("outer_addresses coordinator_tcp udp_out", worker, own_rules)
        yield DrawnFault("rule", worker, what, (inject,), (heal,), _effect(worker, protocol), worker, truth)


def of_the_overlay() -> Iterator[DrawnFault]:
    """Yield rules that drop what comes in by the overlay's interface, or goes to one peer by it.

    The agent itself admits members in the tables that it may change, so none of these is an input chain.
    """
    chains = {
        "card": ("netdev", 'filter hook ingress device "meshray0" priority -500', "tcp dport 1-65535 drop"),
        "raw": ("ip", "filter hook prerouting priority -300", 'iifname "meshray0" meta l4proto tcp drop'),
    }
    for place, (hook, (family, chain, rule)) in product(("head", "near", "far"), chains.items()):
        inject, heal = _ruled(place, family, chain, rule)
        other = "near" if place != "near" else "head"
        effect = Step(other, f"! timeout 1 bash -c 'exec 3<>/dev/tcp/{{{place}}}/20190'")
        truth = _truth("overlay_admitted metrics_port", place)
        yield DrawnFault("rule", place, f"{hook}-drops-the-overlay", (inject,), (heal,), effect, place, truth)
    for place, peer in (("head", "near"), ("head", "far"), ("near", "head"), ("near", "far"), ("far", "head")):
        inject, heal = _ruled(
            place, "ip", "filter hook output priority -300", f'oifname "meshray0" ip daddr {{{peer}}} drop'
        )
        effect = Step(place, NO_PING.format(f"{{{peer}}}"))
        truth = _truth("one_way overlay_admitted", f"{place} {peer}", rf"on {place}|this machine")
        yield DrawnFault("rule", place, f"drops-what-goes-to-{peer}", (inject,), (heal,), effect, place, truth)


def of_routers() -> Iterator[DrawnFault]:
    """Yield what the routers of the workers and of the head's provider drop or reject, by direction."""
    rejects = {"tcp": "reject with tcp reset", "udp": "reject"}
    for worker, protocol, outward, rejected in product(_WORKERS, ("tcp", "udp"), (True, False), (True, False)):
        match = f'iifname "lan" {protocol} dport {PORT}' if outward else f'iifname "wan" {protocol} sport {PORT}'
        verdict = rejects[protocol] if rejected else "drop"
        inject, heal = _ruled(f"{worker}-nat", "ip", "filter hook forward priority -10", f"{match} {verdict}")
        what = f"{'rejects' if rejected else 'drops'}-{protocol}-{'out' if outward else 'in'}"
        truth = _truth("coordinator_tcp" if protocol == "tcp" else "udp_out", worker, ON_THE_PATH)
        for asked in (worker, *(["head"] if protocol == "udp" else [])):
            yield DrawnFault("rule", f"{worker}-nat", what, (inject,), (heal,), _effect(worker, protocol), asked, truth)
    for protocol, inward, rejected in product(("tcp", "udp"), (True, False), (True, False)):
        match = f'oifname "lan" {protocol} dport {PORT}' if inward else f'iifname "lan" {protocol} sport {PORT}'
        verdict = rejects[protocol] if rejected else "drop"
        inject, heal = _ruled("isp", "ip", "filter hook forward priority -10", f"{match} {verdict}")
        what = f"{'rejects' if rejected else 'drops'}-{protocol}-{'in' if inward else 'out'}"
        if protocol == "tcp":
            truth, asked = _truth("coordinator_tcp", "near far", rf"{AT_THE_HEAD}|on the path"), "near"
        else:
            truth, asked = _truth("udp_in", "head"), "head"
        yield DrawnFault("rule", "isp", what, (inject,), (heal,), _effect("near", protocol), asked, truth)


def nats() -> Iterator[DrawnFault]:
    """Yield translations that are missing, or that lead elsewhere, on routers and on the nodes themselves."""
    for worker in _WORKERS:
        router = f"{worker}-nat"
        keep = "nft list table ip router_nat > /tmp/router_nat; nft delete table ip router_nat"
        yield DrawnFault(
            *("NAT", router, "no-masquerade"),
            (Step(router, f"{keep}\n{FORGET}"),),
            (Step(router, f"nft -f /tmp/router_nat\n{FORGET}"),),
            _effect(worker, "tcp"),
            worker,
            _truth("coordinator_tcp udp_out", worker, ON_THE_PATH),
        )
    targets = {"itself": "redirect to :9", "nowhere": "dnat to 203.0.113.99"}
    for worker, protocol, (where, target) in product(_WORKERS, ("tcp", "udp"), targets.items()):
        match = f'iifname "lan" ip daddr {HEAD} {protocol} dport {PORT}'
        inject, heal = _ruled(
            f"{worker}-nat", "ip", "nat hook prerouting priority -101", f"{match} {target}", forget=True
        )
        truth = _truth("coordinator_tcp" if protocol == "tcp" else "udp_out", worker, ON_THE_PATH)
        what = f"sends-{protocol}-to-{where}"
        yield DrawnFault("NAT", f"{worker}-nat", what, (inject,), (heal,), _effect(worker, protocol), worker, truth)
        if protocol == "udp":
            # The head's own packets open a connection, whose answers no nat rule sees: the fault has no lasting effect.
            continue
        match = f"ip daddr {HEAD} {protocol} dport {PORT}"
        inject, heal = _ruled(worker, "ip", "nat hook output priority -101", f"{match} {target}", forget=True)
        truth = _truth("outer_addresses", worker, "sent elsewhere on this machine")
        yield DrawnFault("NAT", worker, what, (inject,), (heal,), _effect(worker, protocol), worker, truth)
    for protocol, source in product(("tcp", "udp"), ("", f"ip saddr {NEAR_NAT} ")):
        rule = f'iifname "eth0" {source}{protocol} dport {PORT} redirect to :9'
        inject, heal = _ruled("head", "ip", "nat hook prerouting priority -101", rule, forget=True)
        what = f"sends-{protocol}-{'of-near-' if source else ''}to-another-port"
        truth = _truth(f"{protocol}_port_open outer_addresses", "head", "redirect|sent elsewhere|divert")
        yield DrawnFault("NAT", "head", what, (inject,), (heal,), _effect("near", protocol), "head", truth)


RULES: tuple[DrawnFault, ...] = (
    *at_the_head(),
    *bans_at_the_head(),
    *of_a_worker(),
    *of_the_overlay(),
    *of_routers(),
    *nats(),
)
