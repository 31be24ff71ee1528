"""The agent's part of the repairs in `meshray.doctor.repairs`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from meshray.agent.dependencies import Dependencies
from meshray.agent.device.reconciler import Reconciler
from meshray.errors import MeshrayError, UsageError

#: The time until the interface exists and the hub answers, seconds.
_DEVICE_S = 15.0
#: The time until the head counts this node again, seconds. Ray on a slow machine takes half a minute.
_RAY_S = 90.0
_POLL_S = 0.1


async def run_repair(key: str, parts: Dependencies, reconciler: Reconciler) -> str:
    """Make the repair; return what was done, in a sentence.

    Raises:
        UsageError: the agent does not know the repair.
        MeshrayError: the repair did not help.
    """
    repair = REPAIRS.get(key)
    if repair is None:
        raise UsageError("bad_repair", f"the agent does not know the repair {key[:40]!r}", hint="meshray doctor")
    return await repair(parts, reconciler)


async def _firewall(parts: Dependencies, reconciler: Reconciler) -> str:
    firewall = parts.firewall
    if firewall is None:
        raise MeshrayError("no_firewall", "this node keeps no firewall rules", hint="meshray doctor")
    changed = await asyncio.to_thread(firewall.apply)
    problems = firewall.problems()
    if problems:
        raise MeshrayError(
            "firewall_failed", "; ".join(problem.text for problem in problems), hint="meshray logs agent"
        )
    return "; ".join(changed) or "the firewall rules were in place"


async def _device(parts: Dependencies, reconciler: Reconciler) -> str:
    name = parts.device.name
    await reconciler.remove_device()
    await _until(lambda: reconciler.is_in_order, _DEVICE_S, f"{name} was created again, but the hub does not answer")
    return f"{name} was created again"


async def _routes(parts: Dependencies, reconciler: Reconciler) -> str:
    steps = await reconciler.repair_routes()
    return "; ".join(f"{parts.device.name}: {step}" for step in steps) or "the routes of the overlay were in place"


async def _ray(parts: Dependencies, reconciler: Reconciler) -> str:
    ray = parts.ray
    if ray is None:
        raise MeshrayError("no_ray", f"this node runs no Ray: {parts.no_ray_reason}", hint="meshray status")
    if ray.now.external:
        raise MeshrayError(
            "no_ray",
            "another program starts Ray on this node (--ray external)",
            hint="start it again with that program: meshray doctor shows the command",
        )
    await ray.stop()
    await _until(lambda: ray.now.state == "running", _RAY_S, "Ray was started again, but the head does not count it")
    return "Ray was started again"


async def _until(condition: Callable[[], bool], patience_s: float, failure: str) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            raise MeshrayError("repair_failed", failure, hint="meshray doctor")
        await asyncio.sleep(_POLL_S)


REPAIRS: Mapping[str, Callable[[Dependencies, Reconciler], Awaitable[str]]] = {
    "firewall": _firewall,
    "routes": _routes,
    "device": _device,
    "ray": _ray,
}
