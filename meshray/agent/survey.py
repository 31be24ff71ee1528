"""What this node finds out about itself for the doctor: the agent's own knowledge, and the probes beside each other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Mapping
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, TypeVar

from meshray.agent.report import build_status
from meshray.doctor.facts import NodeFacts
from meshray.doctor.probes import control, host, path, ray
from meshray.doctor.probes.context import Context
from meshray.model.status import RayState, Status

if TYPE_CHECKING:
    from meshray.agent.loop import Agent

log = logging.getLogger(__name__)

#: No peer is waited for longer.
PING_S = 1.5
#: Nor is any group of facts: whoever asks waits for all nodes.
GROUP_S = 4.0

T = TypeVar("T")


async def survey(agent: Agent, table: Mapping[IPv4Address, RayState] | None) -> tuple[Status, NodeFacts]:
    """The mesh as this node sees it now, and what its probes found; ``table`` is Ray's node table."""
    prober = agent.parts.prober
    if prober is not None:
        # Fresh answers, not the last minute's.
        await asyncio.gather(*(prober.probe(ip, PING_S) for ip in agent.peers_online()))
    status = build_status(agent.view(table))
    context = _context(agent, status)
    groups = await asyncio.gather(
        _in_time(host.look(context)),
        _in_time(path.look(context)),
        _in_time(control.look(context)),
        _in_time(ray.look(context)),
    )
    return status, NodeFacts(agent.me.name, *groups)


async def _in_time(look: Awaitable[T]) -> T | None:
    try:
        return await asyncio.wait_for(look, GROUP_S)
    except asyncio.TimeoutError:
        return None
    except Exception:  # the other groups are still worth a look
        log.exception("a probe of the doctor failed")
        return None


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
        endpoints_seen=seen,
        ray_plan=ray.plan if ray else None,
        ray=ray,
        no_ray_because="" if ray else agent.parts.no_ray_because,
        installation=ray.installation if ray else None,
        person=ray.person if ray else None,
        round_trip=prober.probe if prober is not None else None,
    )


async def _map_of(agent: Agent, revision: int, patience_s: float) -> int:
    """The revision of the map once it is that one or a later, or when patience ends."""

    async def come() -> None:
        while agent.map.revision < revision:
            await agent.map_changed.wait()

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(come(), patience_s)
    return agent.map.revision
