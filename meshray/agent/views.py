"""What an agent knows at one moment, put together for `meshray.agent.report`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from meshray.agent.prober import Measured
from meshray.agent.report import View
from meshray.model.status import RayState
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
        now=time.time(),
        mtu=agent.mtus.mtu if agent.mtus is not None else lambda ip: DEFAULT_MTU,
        throughput=agent.sampler.mbit_s,
        why_not_direct=agent.pairs.why_not_direct if agent.pairs is not None else lambda node: "",
    )
