"""The `ray` program of this node, for operations that only it offers.

>>> ray = FoundRay.of(app, "gpu-2")
>>> ray.node_id, ray.drain(deadline_s=600)
('3f5c…', None)
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meshray.cli.app import App
from meshray.errors import MeshrayError
from meshray.linux.capture import run_captured
from meshray.linux.user import User
from meshray.model.node import HEAD
from meshray.protocol.control import GetEnvironment, GetStatus
from meshray.raynode.versions import find_ray
from meshray.runtime.selection import agent_runtime

#: What `ray list` prints instead of an empty list, whatever the format.
_NOTHING = "No resource in the cluster"
#: Importing Ray takes seconds on a slow machine.
_TIMEOUT_S = 60
#: The one reason that Ray 2.44 to 2.60 always accepts; it refuses the other (IDLE_TERMINATION) for busy nodes.
_REASON = "DRAIN_NODE_REASON_PREEMPTION"


@dataclass(frozen=True)
class FoundRay:
    """One node's Ray, according to the `ray` program of this node.

    Attributes:
        node_id: Ray's own id of the node; None if Ray does not count it as ALIVE.
    """

    program: tuple[str, ...]
    environ: Mapping[str, str]
    user: User
    node_id: str | None

    @classmethod
    def of(cls, app: App, node: str) -> FoundRay:
        """Find the node. Raises MeshrayError ``unknown_node``, ``head_stays``, or ``ray_failed`` with Ray's message."""
        app.require_root("only root drains a node")
        program = tuple(agent_runtime(app.home, app.environ).inside([_own_ray(app)]))
        ip = _overlay_address(app, node)
        found = app.control().request(GetEnvironment())
        environ, uid = found.env, found.user_uid
        user = User.by_uid(uid) if uid is not None else User.invoking(app.environ)
        command = [*program, "list", "nodes", "--format", "json", "--filter", "state=ALIVE", "--limit", "10000"]
        return cls(program, environ, user, find_ray_node(_run(command, environ, user), ip))

    def running_tasks(self) -> int:
        """Return how many tasks Ray runs on the node. Raises MeshrayError ``ray_failed`` with Ray's message."""
        if self.node_id is None:
            return 0
        command = [*self.program, "list", "tasks", "--format", "json", "--limit", "10000"]
        command += ["--filter", "state=RUNNING", "--filter", f"node_id={self.node_id}"]
        rows = _rows(_run(command, self.environ, self.user))
        if rows is None:
            raise MeshrayError("ray_failed", "ray list tasks: its answer is not JSON", hint="meshray doctor")
        return len(rows)

    def drain(self, deadline_s: int) -> None:
        """Notify Ray that the node will end soon. Raises MeshrayError ``ray_failed`` with Ray's message."""
        if self.node_id is None:
            return
        command = [*self.program, "drain-node", "--address", self.environ.get("RAY_ADDRESS", "")]
        command += ["--node-id", self.node_id, "--reason", _REASON, "--reason-message", "meshray node drain"]
        _run([*command, "--deadline-remaining-seconds", str(deadline_s)], self.environ, self.user)


def _own_ray(app: App) -> str:
    from meshray.node.enrolment import Enrolment

    enrolment = Enrolment.load(app.home)
    ray = enrolment.ray
    if enrolment.external:
        # Another program started Ray; one beside meshray speaks to it as well.
        ray = str(find_ray(None, app.environ, User.by_uid(enrolment.user_uid)).ray)
    if not ray:
        raise MeshrayError("no_ray", "this node runs no Ray", hint="run it on a node that does: meshray status")
    return ray


def find_ray_node(listing: str, ip: str) -> str | None:
    """Return Ray's id of the living node at this address, from `ray list nodes --format json`. Pure.

    If several are listed, it is the newest.
    """
    here = [node for node in _rows(listing) or () if node.get("node_ip") == ip]
    here.sort(key=lambda node: node.get("start_time_ms") or 0)
    return str(here[-1].get("node_id")) if here else None


def _rows(listing: str) -> list[Mapping[str, Any]] | None:
    """Return the rows of `ray list … --format json`, which may follow warnings; None for anything else (pure)."""
    if listing.strip().endswith(_NOTHING):
        return []
    start = listing.find("[")
    try:
        rows = json.loads(listing[start:]) if start >= 0 else None
    except ValueError:
        return None
    if not isinstance(rows, list):
        return None
    return [row for row in rows if isinstance(row, Mapping)]


def _overlay_address(app: App, node: str) -> str:
    for entry in app.control().request(GetStatus()).nodes:
        if node in (entry.name, entry.ip):
            if entry.role == HEAD:
                raise MeshrayError(
                    "head_stays", f"{node} runs the Ray head, which cannot be drained", hint=f"on {node}: meshray down"
                )
            return entry.ip
    raise MeshrayError("unknown_node", f"the mesh has no node {node!r}", hint="meshray node list")


def _run(command: Sequence[str], environ: Mapping[str, str], user: User) -> str:
    """Run Ray's program as the user who runs Ray, and never as root."""
    own = {"HOME": str(user.home), "USER": user.name, "LOGNAME": user.name} if user.identity else {}
    try:
        done = run_captured(command, env={**os.environ, **own, **environ}, timeout_s=_TIMEOUT_S, user=user)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MeshrayError("ray_failed", f"ray {_verb(command)}: {error}", hint="meshray doctor") from None
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines() or [f"exit code {done.returncode}"]
        raise MeshrayError("ray_failed", f"ray {_verb(command)}: {words[-1][:300]}", hint="meshray doctor")
    return done.stdout


def _verb(command: Sequence[str]) -> str:
    return "drain-node" if "drain-node" in command else f"list {'tasks' if 'tasks' in command else 'nodes'}"
