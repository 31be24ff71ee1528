"""What the doctor is told: the agent's own knowledge and the probes of this node, and from the coordinator's node also
what all the others found out.

    whole_mesh ──┬► survey: status, and each group of facts of this node
                 ├► POST /v1/ask ──► the other agents ──► survey there
                 └► machines whose agents are not connected: does anything live there?
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from meshray.agent.report import build_status
from meshray.doctor.facts import Facts, NodeFacts, decode
from meshray.doctor.probes import control, host, path, ray
from meshray.doctor.probes.context import Context, Counters
from meshray.doctor.probes.patience import in_time
from meshray.errors import MeshrayError
from meshray.model import wire
from meshray.model.keys import PublicKey
from meshray.model.node import STATIC
from meshray.model.question import SURVEY
from meshray.model.status import RayState, Status

if TYPE_CHECKING:
    from meshray.agent.loop import Agent

#: No peer is waited for longer.
PING_S = 1.5
#: Nor is any group of facts: whoever asks waits for all nodes.
GROUP_S = 6.0

#: All agents answer within this: a survey takes `PING_S` and `GROUP_S` at most, on a machine that may be busy.
ASK_S = 10


async def whole_mesh(agent: Agent, table: Mapping[IPv4Address, RayState] | None) -> Facts:
    """All that can be found out from here; ``table`` is Ray's node table."""
    (status, mine), others, heard = await asyncio.gather(survey(agent, table), _others(agent), _heard(agent))
    return Facts(
        status=status,
        ray_nodes=frozenset(agent.ray_nodes()),
        nodes={mine.name: mine, **others.nodes},
        silent=others.silent,
        heard=heard,
        not_asked=others.not_asked,
    )


async def _others(agent: Agent) -> Facts:
    if not agent.enrolment.hosts_coordinator:
        return Facts(not_asked="only the node that runs the coordinator asks the others")
    try:
        answer = await agent.coordinator.call("POST", "/v1/ask", {"op": SURVEY, "timeout_s": ASK_S})
    except MeshrayError as error:
        return Facts(not_asked=f"the others could not be asked: {error.message}")
    nodes = {name: decode(NodeFacts, facts) for name, facts in wire.mapping(answer, "answers").items()}
    silent = {name: str(reason) for name, reason in wire.mapping(answer, "silent").items()}
    return Facts(nodes=nodes, silent=silent, not_asked="")


async def _heard(agent: Agent) -> frozenset[str]:
    """The nodes without an agent whose machines answer over the overlay."""
    if agent.parts.prober is None:
        return frozenset()
    nodes, me = agent.map.nodes.values(), agent.me
    away = [node for node in nodes if not node.online and STATIC not in node.roles and node.id != me.id]
    live = await asyncio.gather(*(path.lives(node.ip, PING_S) for node in away))
    return frozenset(node.name for node, lives in zip(away, live, strict=True) if lives)


async def survey(agent: Agent, table: Mapping[IPv4Address, RayState] | None) -> tuple[Status, NodeFacts]:
    """The mesh as this node sees it now, and what its probes found; ``table`` is Ray's node table."""
    prober = agent.parts.prober
    if prober is not None:
        # Fresh answers, not the last minute's.
        await asyncio.gather(*(prober.probe(ip, PING_S) for ip in agent.peers_online()))
    status = build_status(agent.view(table))
    context = _context(agent, status)
    groups = await asyncio.gather(
        in_time(host.look(context), GROUP_S),
        in_time(path.look(context), GROUP_S),
        in_time(control.look(context), GROUP_S),
        in_time(ray.look(context), GROUP_S),
    )
    return status, NodeFacts(agent.me.name, *groups)


def _context(agent: Agent, status: Status) -> Context:
    enrolment, device = agent.enrolment, agent.device_state
    of_key = {node.public_key: str(node.name) for node in agent.map.nodes.values()}
    seen = {
        of_key[key]: str(peer.config.endpoint)
        for key, peer in (device.peers if device else {}).items()
        if key in of_key and peer.config.endpoint is not None
    }
    prober = agent.parts.prober
    ray = agent.parts.ray.now if agent.parts.ray is not None else None
    dials = ((hub.name, agent.hubs.dialled(hub.id)) for hub in agent.map.hubs)
    dialled = {str(name): str(endpoint) for name, endpoint in dials if endpoint is not None}
    return Context(
        home=agent.home,
        interface=agent.parts.device.name,
        name=agent.me.name,
        ip=agent.me.ip,
        mesh_port=enrolment.mesh_port,
        listen_port=device.listen_port if device else 0,
        is_hub=agent.is_hub,
        hosts_coordinator=enrolment.hosts_coordinator,
        coordinators=enrolment.coordinators,
        fingerprint=bytes.fromhex(enrolment.fingerprint),
        credential=enrolment.credential,
        transport=enrolment.transport,
        mesh_map=agent.map,
        map_of=lambda revision, patience_s: _map_of(agent, revision, patience_s),
        status=status,
        device=device,
        read_device=agent.parts.device.read,
        endpoints_seen=seen,
        ray_plan=ray.plan if ray else None,
        ray=ray,
        no_ray_because="" if ray else agent.parts.no_ray_because,
        installation=ray.installation if ray else None,
        person=ray.person if ray else None,
        dialled=dialled,
        rebinds=agent.rebinds.ages(time.monotonic()),
        round_trip=prober.probe if prober is not None else None,
        echo=(lambda ip, timeout_s, size: prober.round_trip(ip, timeout_s, size=size)) if prober is not None else None,
        counters=lambda: _counters(agent, of_key),
        mtu_measured=agent.mtus.is_measured if agent.mtus is not None else lambda ip: False,
        heard_ago=prober.heard_ago_s if prober is not None else lambda ip: None,
    )


async def _counters(agent: Agent, of_key: Mapping[PublicKey, str]) -> Mapping[str, Counters]:
    device = await asyncio.to_thread(agent.parts.device.read)
    peers = device.peers.items() if device is not None else ()
    return {of_key[key]: Counters(peer.rx_bytes, peer.tx_bytes) for key, peer in peers if key in of_key}


async def _map_of(agent: Agent, revision: int, patience_s: float) -> int:
    """The revision of the map once it is that one or a later, or when patience ends."""

    async def come() -> None:
        while agent.map.revision < revision:
            await agent.map_changed.wait()

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(come(), patience_s)
    return agent.map.revision
