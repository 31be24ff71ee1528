"""Carries out the repairs of `meshray.doctor.repairs` that are the agent's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from meshray.errors import MeshrayError, UsageError
from meshray.wireguard.plan import SetRoute, plan

if TYPE_CHECKING:
    from meshray.agent.agent import Agent

#: Until the interface is there and the hub was heard, seconds.
_DEVICE_S = 15.0
#: Until the head counts this node again. Ray on a slow machine takes half a minute.
_RAY_S = 90.0
_POLL_S = 0.1


async def carry_out(agent: Agent, key: str) -> str:
    """Makes the repair and returns what was done, in a sentence.

    Raises:
        UsageError: the agent knows no such repair.
        MeshrayError: it did not help.
    """
    repair = REPAIRS.get(key)
    if repair is None:
        raise UsageError("bad_repair", f"the agent knows no repair {key[:40]!r}", hint="meshray doctor")
    return await repair(agent)


async def _firewall(agent: Agent) -> str:
    firewall = agent.parts.firewall
    if firewall is None:
        raise MeshrayError("no_firewall", "this node keeps no firewall rules", hint="meshray doctor")
    changed = await asyncio.to_thread(firewall.apply)
    problems = firewall.problems()
    if problems:
        raise MeshrayError(
            "firewall_failed", "; ".join(problem.text for problem in problems), hint="meshray logs agent"
        )
    return "; ".join(changed) or "the firewall rules were in place"


async def _device(agent: Agent) -> str:
    device = agent.parts.device
    await asyncio.to_thread(device.remove)
    agent.device_state = None
    agent.wake()
    await _until(
        lambda: agent.device_state is not None and (agent.is_hub or agent.hubs.any_fresh),
        _DEVICE_S,
        f"{device.name} was made anew, but the hub is not heard",
    )
    return f"{device.name} was made anew"


async def _routes(agent: Agent) -> str:
    device = agent.parts.device
    observed = await asyncio.to_thread(device.read)
    steps = [step for step in plan(observed, agent.desired(observed)) if isinstance(step, SetRoute)]
    await asyncio.to_thread(device.apply, steps)
    agent.route_repairs.forgive()
    agent.wake()
    return "; ".join(f"{device.name}: {step}" for step in steps) or "the routes of the overlay were in place"


async def _ray(agent: Agent) -> str:
    ray = agent.parts.ray
    if ray is None:
        raise MeshrayError("no_ray", f"this node runs no Ray: {agent.parts.no_ray_because}", hint="meshray status")
    await ray.stop()
    await _until(lambda: ray.now.state == "running", _RAY_S, "Ray was started again, but the head does not count it")
    return "Ray was started again"


async def _until(condition: Callable[[], bool], patience_s: float, failure: str) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            raise MeshrayError("repair_failed", failure, hint="meshray doctor")
        await asyncio.sleep(_POLL_S)


REPAIRS: Mapping[str, Callable[[Agent], Awaitable[str]]] = {
    "firewall": _firewall,
    "routes": _routes,
    "device": _device,
    "ray": _ray,
}
