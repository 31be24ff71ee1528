"""Examine the paths to the hub and to the peers: a short burst of probes to each, then packets of full size."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address
from statistics import median

from meshray.defaults import KEEPALIVE_S
from meshray.doctor.context import Context, Counters
from meshray.doctor.path.facts import SOME_LOSS, PathFacts, PeerFacts
from meshray.doctor.path.trains import measure_limit, measure_size
from meshray.linux import overlay_netns
from meshray.model.node import STATIC
from meshray.model.path import PathKind, Transport
from meshray.protocol.status import NodeStatus

#: The number of first probes; if one is lost, that many again, to distinguish chance from loss.
_BURST, _EXTRA = 10, 20
_APART_S = 0.05
_EXTRA_APART_S = 0.03
#: An answer later than this, in addition to twice the usual round trip, counts as lost; a busy machine may take a
#: second.
_ANSWER_S = 1.5
_SLOWEST_S = 2.0
#: A probe as WireGuard counts it has 80 bytes; half of them must be counted if none was lost.
_COUNTED_BYTES = 40
#: A mesh may have many nodes: the maximum that is examined.
_PEERS = 64


async def measure(context: Context) -> PathFacts:
    """Return the facts of this node within a few seconds; unknown values keep their defaults."""
    if context.status is None or context.mesh_map is None:
        return PathFacts()
    nodes = context.mesh_map.nodes.values()
    me = context.mesh_map.find(context.name)
    peers = [node for node in context.status.nodes if node.path.kind != PathKind.SELF and node.role != STATIC][:_PEERS]
    hubs = {str(hub.name) for hub in context.mesh_map.hubs}
    before = await context.counters()
    results = await asyncio.gather(*(_peer(context, node, node.name in hubs, before) for node in peers))
    return PathFacts(
        transport=context.transport,
        is_hub=context.is_hub,
        port=context.mesh_port,
        addresses=tuple(endpoint.host for endpoint in me.endpoints) if me is not None else (),
        seen=context.peer_endpoints,
        seen_by_hubs={
            str(node.name): str(node.seen) if node.seen else ""
            for node in nodes
            if node.online and STATIC not in node.roles and str(node.name) not in hubs
        },
        dialled=context.dialled,
        rebinds=context.rebinds,
        keepalive_s=KEEPALIVE_S,
        only_handshakes=context.only_handshakes,
        udp_limit_kbit_s=context.udp_limit_kbit_s,
        udp_limit_age_s=context.udp_limit_age_s,
        relay_kbit_s=context.relay_kbit_s,
        peers={node.name: facts for node, facts in zip(peers, results, strict=True)},
    )


async def _peer(context: Context, node: NodeStatus, is_hub: bool, before: Mapping[str, Counters]) -> PeerFacts:
    path, ip = node.path, IPv4Address(node.ip)
    facts = PeerFacts(
        is_hub=is_hub,
        online=node.online,
        kind=path.kind,
        transport=str(path.transport or ""),
        endpoint=path.endpoint or "",
        reason=path.reason,
        handshake_age_s=path.handshake_age_s,
        promised_mtu=path.mtu,
        unanswered_s=context.unanswered(ip),
    )
    if context.echo is None or path.kind == PathKind.NONE or not node.online:
        return facts
    began = time.monotonic()
    answer_s = min(_SLOWEST_S, _ANSWER_S + 2 * (path.rtt_ms or 0.0) / 1000)
    # A peer that answered no probe of the survey will hardly answer now: its machine is asked at the same time.
    answers, answers_tcp = await asyncio.gather(
        _burst(context, ip, _BURST, _APART_S, answer_s),
        overlay_netns.machine_answers(ip, answer_s) if path.loss == 1.0 else _not_asked(),
    )
    if None in answers and any(answers):
        answers += await _burst(context, ip, _EXTRA, _EXTRA_APART_S, answer_s)
    times_ms = [answer for answer in answers if answer is not None]
    facts = replace(
        facts,
        sent=len(answers),
        received=len(times_ms),
        rtt_ms=round(median(times_ms), 3) if times_ms else None,
        took_s=round(time.monotonic() - began, 2),
        heard_ago_s=context.probe_age_s(ip),
    )
    if not times_ms:
        counted = _counters_grew(before, await context.counters(), node.name, _COUNTED_BYTES * len(answers))
        came_in, sent_on = counted if path.kind == PathKind.DIRECT else (None, None)
        if is_hub:  # Bytes from there may have been sent by others.
            came_in = None
        if answers_tcp is None:
            answers_tcp = await overlay_netns.machine_answers(ip, answer_s)
        return replace(facts, machine_answers=answers_tcp, sent_on=sent_on, came_in=came_in)
    if path.mtu is None or facts.loss >= SOME_LOSS:  # In that case the loss says nothing about the size.
        return facts
    echo = partial(context.echo, ip)
    sizes = await measure_size(echo, path.mtu)
    facts = replace(
        facts,
        full_passes=sizes.full_passes,
        small_passes=sizes.small_passes,
        rate_kbit_s=sizes.rate_kbit_s,
        mtu_measured=context.mtu_measured(ip),
    )
    # Others would measure the same limit, and a hub is the one that every node reaches.
    if not (is_hub and not context.is_hub and path.transport == Transport.UDP and sizes.is_fast):
        return facts
    limit = await measure_limit(echo, path.mtu, answer_s)
    return replace(
        facts,
        train_sent=limit.sent,
        train_received=limit.received,
        train_kbit_s=limit.rate_kbit_s,
        policed=limit.is_policed,
    )


async def _not_asked() -> None:
    """Return None: the machine was not asked yet."""


def _counters_grew(
    before: Mapping[str, Counters], after: Mapping[str, Counters], name: str, by: int
) -> tuple[bool | None, bool | None]:
    """Return whether this much was received from the peer, and sent to it."""
    if name not in before or name not in after:
        return None, None
    return after[name].rx_bytes - before[name].rx_bytes >= by, after[name].tx_bytes - before[name].tx_bytes >= by


async def _burst(context: Context, ip: IPv4Address, count: int, apart_s: float, answer_s: float) -> list[float | None]:
    """Send this many probes without waiting for answers in between."""

    async def one(number: int) -> float | None:
        await asyncio.sleep(number * apart_s)
        return await context.echo(ip, answer_s, 0) if context.echo is not None else None

    return list(await asyncio.gather(*(one(number) for number in range(count))))
