"""What an agent knows at one moment, put together for `meshray.agent.report`."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from meshray.agent.paths.prober import Measured
from meshray.agent.report import View, path_to
from meshray.model.address import Endpoint
from meshray.model.path import NONE
from meshray.model.status import RayState
from meshray.runtime.clock import boot_s
from meshray.settings import DEFAULT_MTU

if TYPE_CHECKING:
    from meshray.agent.loop import Agent


def view_of(agent: Agent, table: Mapping[IPv4Address, RayState] | None) -> View:
    """All that this node knows now; ``table`` is Ray's node table, which the caller has asked for."""
    firewall, ray, prober = agent.parts.firewall, agent.parts.ray, agent.parts.prober
    return View(
        me=agent.me,
        mesh_map=agent.map,
        device=agent.device_state,
        measured=prober.measured if prober is not None else lambda peer: Measured(),
        ray=table,
        expects_ray=agent.expects_ray,
        coordinator_reachable=agent.link.is_open,
        complaints=(
            *(firewall.problems() if firewall is not None else ()),
            *((ray.failure,) if ray is not None and ray.failure else ()),
            *agent.membership.complaints(),
        ),
        now=boot_s(),
        mtu=agent.mtus.mtu if agent.mtus is not None else lambda ip: DEFAULT_MTU,
        throughput=agent.sampler.mbit_s,
        why_not_direct=agent.pairs.why_not_direct if agent.pairs is not None else lambda node: "",
    )


def ways_of(agent: Agent) -> list[tuple[IPv4Address, Endpoint | None]]:
    """Every peer that can be heard, with the endpoint that its packets are sent to."""
    view, online = view_of(agent, None), set(agent.peers_online())
    nodes = [node for node in agent.map.nodes.values() if node.ip in online]
    paths = [(node.ip, path_to(view, node)) for node in nodes]
    return [(ip, path.endpoint) for ip, path in paths if path.kind != NONE]


def peers_to_probe(agent: Agent) -> list[IPv4Address]:
    """Those whose way for data is probed by its own; a direct way is probed in `pairs`."""
    nodes, pairs = agent.map.nodes.values(), agent.pairs
    direct = {node.ip for node in nodes if pairs is not None and pairs.path(node).carries}
    return [ip for ip in agent.peers_online() if ip not in direct]
