"""The checks of the rate of paths: slow lines, and networks that limit UDP (pure)."""

from __future__ import annotations

from collections.abc import Iterable

from meshray.doctor.facts import Facts
from meshray.doctor.path.facts import LEAST_KBIT_S, LIMITED_LOSS, SLOW_KBIT_S
from meshray.doctor.path.pair_facts import legs, nodes_with_paths, pairs
from meshray.doctor.report import FAIL, OK, SKIP, WARN, Finding
from meshray.model.path import PathKind, Transport


def path_rate(facts: Facts) -> Iterable[Finding]:
    """Check that each direction of a path is not so slow that Ray's transfers fail."""
    for name, peer, pair in pairs(facts):
        rate = pair.rate_kbit_s
        if pair.full_passes is None:
            continue
        if not pair.full_passes:
            yield Finding(SKIP, "packets of full size are not answered", node=name, peer=peer)
        elif rate is None or rate >= SLOW_KBIT_S:
            yield Finding(OK, f"faster than {SLOW_KBIT_S / 1000:g} Mbit/s", node=name, peer=peer)
        elif pair.kind == PathKind.HUB and (leg := _slow_leg(facts, name, peer)):
            yield Finding(SKIP, f"{rate:.0f} kbit/s; its path leads through {leg}", node=name, peer=peer)
        else:
            yield Finding(
                FAIL if rate < LEAST_KBIT_S else WARN,
                f"the path from {name} to {peer} carries about {rate:.0f} kbit/s: one packet of "
                f"{pair.promised_mtu} bytes takes {(pair.promised_mtu or 0) * 8 / rate:.0f} ms, {pair.rtt_ms or 0:.0f} "
                "ms is the round trip of a small one",
                f"on {name}: does something else use its line (a backup, a video)? ip -s link; tc qdisc show; "
                "otherwise a faster line",
                name,
                peer,
            )


def _slow_leg(facts: Facts, name: str, peer: str) -> str:
    """Return a path between one end and a hub that is as slow."""
    for end in (name, peer):
        for hub, observed in legs(facts, end):
            if observed.rate_kbit_s is not None and observed.rate_kbit_s < SLOW_KBIT_S:
                return f"{end}–{hub}, which is slow"
    return ""


def udp_limit(facts: Facts) -> Iterable[Finding]:
    """Check that no network on the path to a hub drops UDP above a rate."""
    for name, path in nodes_with_paths(facts):
        if path.udp_limit_kbit_s is not None:
            yield Finding(
                WARN,
                f"UDP from {name} is limited to about {path.udp_limit_kbit_s / 1000:.0f} Mbit/s on the path to the "
                f"coordinator's hub; TCP carried {(path.relay_kbit_s or 0.0) / 1000:.0f} Mbit/s, so the tunnel uses "
                "the relay (wss)",
                f"ask the operator of {name}'s network whether UDP is limited there, and for an exception",
                name,
            )
        for hub, pair in path.peers.items():
            if not pair.train_sent:
                continue
            lost = pair.train_sent - pair.train_received
            sent = f"{pair.train_sent} packets of {pair.promised_mtu} bytes"
            if not pair.policed or lost < LIMITED_LOSS * pair.train_sent:
                yield Finding(OK, f"{pair.train_received} of {sent} in one go were answered", node=name, peer=hub)
                continue
            fix = (
                f"ask the operator of the network between {name} and {hub} ({pair.endpoint}) whether UDP is limited "
                "there, and for an exception"
            )
            if path.transport != Transport.UDP:
                fix += f"; or on {name}: meshray leave, and meshray join with --transport wss, which uses TCP"
            yield Finding(
                WARN,
                f"UDP from {name} to {hub} is limited to about {pair.train_kbit_s / 1000:.0f} Mbit/s: {lost} of {sent} "
                "in one go were lost, and those that arrived were not delayed, as a full line would have",
                fix,
                name,
                hub,
            )
