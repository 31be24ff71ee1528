"""The `ray` program of this node, asked for what only it can do.

>>> drain_node(app, "gpu-2", deadline_s=600)
'3f5c…'
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence

from meshray.cli.app import App
from meshray.cli.tables import child, children
from meshray.errors import MeshrayError
from meshray.model.node import HEAD

#: Ray imports for seconds on a slow machine.
_TIMEOUT_S = 60
#: The one reason that Ray 2.44 to 2.60 always accepts; the other (IDLE_TERMINATION) it refuses for busy nodes.
_REASON = "DRAIN_NODE_REASON_PREEMPTION"


def drain_node(app: App, node: str, deadline_s: int) -> str:
    """Tells Ray that the node will end soon. Returns Ray's own id of the node.

    Raises:
        MeshrayError: ``unknown_node``, ``head_stays``, ``not_in_ray``, or ``ray_failed`` with what Ray said.
    """
    app.require_root()
    ray = _own_ray(app)
    ip = _overlay_address(app, node)
    environ = {name: str(value) for name, value in child(app.control().ask("env"), "env").items()}
    ray_node = find_ray_node(
        _run([ray, "list", "nodes", "--format", "json", "--filter", "state=ALIVE", "--limit", "10000"], environ), ip
    )
    if ray_node is None:
        raise MeshrayError("not_in_ray", f"Ray does not count {node} ({ip}) as ALIVE", hint=f"meshray doctor {node}")
    command = [ray, "drain-node", "--address", environ.get("RAY_ADDRESS", ""), "--node-id", ray_node]
    command += ["--reason", _REASON, "--reason-message", "meshray node drain"]
    _run([*command, "--deadline-remaining-seconds", str(deadline_s)], environ)
    return ray_node


def _own_ray(app: App) -> str:
    from meshray.agent.enrolment import Enrolment

    ray = Enrolment.load(app.home).ray
    if not ray:
        raise MeshrayError("no_ray", "this node runs no Ray", hint="run it on a node that does: meshray status")
    return ray


def find_ray_node(listing: str, ip: str) -> str | None:
    """Ray's id of the living node at this address, from `ray list nodes --format json`; the newest where several
    are listed. Pure."""
    start = listing.find("[")
    try:
        nodes = json.loads(listing[start:]) if start >= 0 else []
    except ValueError:
        nodes = []
    here = [node for node in nodes if isinstance(node, Mapping) and node.get("node_ip") == ip]
    here.sort(key=lambda node: node.get("start_time_ms") or 0)
    return str(here[-1].get("node_id")) if here else None


def _overlay_address(app: App, node: str) -> str:
    for entry in children(app.control().ask("status"), "nodes"):
        if node in (entry.get("name"), entry.get("ip")):
            if entry.get("role") == HEAD:
                raise MeshrayError(
                    "head_stays", f"{node} runs the Ray head, which cannot be drained", hint=f"on {node}: meshray down"
                )
            return str(entry.get("ip"))
    raise MeshrayError("unknown_node", f"the mesh has no node {node!r}", hint="meshray node list")


def _run(command: Sequence[str], environ: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MeshrayError("ray_failed", f"{command[0]} {command[1]}: {error}", hint="meshray doctor") from None
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines() or [f"exit code {done.returncode}"]
        raise MeshrayError("ray_failed", f"ray {command[1]}: {words[-1][:300]}", hint="meshray doctor")
    return done.stdout
