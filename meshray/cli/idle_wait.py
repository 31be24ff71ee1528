"""`meshray node drain --when idle`: wait until Ray runs no task on a node.

>>> wait_until_idle(app, FoundRay.of(app, "gpu-2"), "gpu-2")
312.4

The agent's status shows at little cost which resources are in use. Tasks that use none are only in Ray's own list.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from meshray.cli.app import App
from meshray.model.amounts import counted

if TYPE_CHECKING:
    from meshray.cli.ray_program import FoundRay
    from meshray.protocol.status import Status

#: Ray counts the used resources every five seconds.
_POLL_S = 2.0


def wait_until_idle(app: App, ray: FoundRay, node: str) -> float:
    """Return the seconds after which the node runs no task; only an interruption ends the wait earlier.

    Raises:
        MeshrayError: the agent of this node does not answer, or as of `FoundRay.running_tasks`.
    """
    from meshray.protocol.control import GetStatus

    began = time.monotonic()
    with app.progress() as progress:
        while busy := _in_use(app.control().request(GetStatus()), node) or _listed(ray):
            progress.stage("idle", "run", f"{node} is in use: {busy}")
            time.sleep(_POLL_S)
        waited_s = time.monotonic() - began
        progress.stage("idle", "ok", f"{node} runs no task")
    return waited_s


def _listed(ray: FoundRay) -> str:
    running = ray.running_tasks()
    return f"{counted(running, 'task')} without resources" if running else ""


def _in_use(status: Status, node: str) -> str:
    """Return the CPUs and GPUs of the node that are in use, as text; empty: none, or its Ray is not ALIVE (pure)."""
    found = next((entry.ray for entry in status.nodes if node in (entry.name, entry.ip)), None)
    if found is None or found.alive is not True:
        return ""
    used = found.used or {}
    return ", ".join(f"{used[name]:g} {name}" for name in ("CPU", "GPU") if used.get(name))
