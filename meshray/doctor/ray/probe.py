"""Examine this node's Ray, and the others' Ray from this node."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from meshray.doctor.context import Context
from meshray.doctor.ray import gpu_probe
from meshray.doctor.ray.dial import dial, ray_targets
from meshray.doctor.ray.facts import (
    DASHBOARD,
    MISSING,
    OTHER,
    RUNNING,
    SAME,
    PortAnswer,
    RayFacts,
    RayProcess,
    TableRow,
)
from meshray.errors import MeshrayError
from meshray.linux import overlay_netns, procfs
from meshray.model.meshmap import MeshMap
from meshray.model.node import HEAD, STATIC, Node
from meshray.model.ray_ports import RayPorts
from meshray.raynode.dashboard_client import LiveNode, query_dashboard
from meshray.raynode.environment_file import start_line
from meshray.raynode.processes import VITAL, Family
from meshray.raynode.supervisor import RayNow
from meshray.raynode.versions import inspect

#: The timeout for a port, the dashboard and Ray's interpreter. The kernel sends a lost SYN again after 1 s (RFC 6298),
#: so one packet may be lost.
TIMEOUT_S = 3.0
_OWN_ADDRESS_S = 2.0


async def measure(context: Context) -> RayFacts:
    """Return the facts of this node within a few seconds; unknown values keep their defaults."""
    ray, mesh_map = context.ray, context.mesh_map
    if ray is None or mesh_map is None:
        return RayFacts(why_none=context.no_ray_reason or "this machine is not a node")
    me = mesh_map.find(context.name)
    if me is not None and me.drained:
        return RayFacts(why_none="the node is drained (meshray node drain --undo brings it back)")
    start = start_line(context.home.ray_environment) if ray.external else ""
    if ray.external and ray.state != RUNNING:
        return RayFacts(
            why_none=f"another program starts it (--ray external), and it is not ALIVE: {start}",
            external=True,
            start_line=start,
        )
    head = mesh_map.head
    plan = ray.plan
    (address_error, address_ms), installed, ports, (with_token, table), (without_token, _) = await asyncio.gather(
        _own_address(plan.node_ip),
        _installed(ray),
        _ports(mesh_map, context.name),
        query_dashboard(plan.dashboard, ray.token, TIMEOUT_S),
        query_dashboard(plan.dashboard, None, TIMEOUT_S),
    )
    processes, token_file = await asyncio.to_thread(_processes, ray.pid), await asyncio.to_thread(_token_file, ray)
    return RayFacts(
        is_head=plan.head,
        ip=str(plan.node_ip),
        address_error=address_error,
        address_ms=address_ms,
        install_error=installed.error,
        install_fix=installed.fix,
        ray=installed.ray,
        python=installed.python,
        interpreter=str(ray.installation.python) if ray.installation is not None else "",
        started=ray.installation.versions.ray if ray.installation is not None and not ray.external else "",
        head_ray=head.versions.ray if head else "",
        head_python=head.versions.python if head else "",
        state=ray.state,
        error=ray.error,
        deaths=ray.deaths,
        ended_ago_s=round(ray.ended_ago_s, 1) if ray.ended_ago_s is not None else None,
        ended_because=ray.ended_because,
        processes=processes,
        ports=ports,
        token_path=str(plan.token_path or ""),
        token_file=token_file,
        with_token=with_token,
        without_token=without_token,
        table=_rows(table),
        gpus=None if ray.external else await asyncio.to_thread(gpu_probe.measure, ray),
        external=ray.external,
        start_line=start,
    )


async def _own_address(ip: IPv4Address) -> tuple[str, float]:
    """Return why a connection to a listener on the own address fails (empty: it succeeds), and its milliseconds."""
    start = time.monotonic()
    try:
        server = await asyncio.start_server(lambda reader, writer: writer.close(), sock=overlay_netns.listener(ip, 0))
    except OSError as error:
        is_missing = error.errno == errno.EADDRNOTAVAIL
        return ("no interface has it" if is_missing else os.strerror(error.errno or 0)), 0.0
    try:
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.wait_for(overlay_netns.open_connection(ip, port), _OWN_ADDRESS_S)
        writer.close()
    except asyncio.TimeoutError:
        return f"no answer in {_OWN_ADDRESS_S:g} s, a firewall drops it", 0.0
    except OSError as error:
        return os.strerror(error.errno or 0), 0.0
    finally:
        server.close()
    return "", round((time.monotonic() - start) * 1000, 2)


@dataclass(frozen=True)
class _Installed:
    """The versions, as in `RayFacts`."""

    error: str | None = None
    fix: str = ""
    ray: str = ""
    python: str = ""


async def _installed(ray: RayNow) -> _Installed:
    if ray.external or ray.installation is None:
        return _Installed()
    inspection = asyncio.to_thread(inspect, ray.installation.ray, ray.user)
    try:
        found = await asyncio.wait_for(inspection, TIMEOUT_S)
    except asyncio.TimeoutError:
        return _Installed()
    except MeshrayError as error:
        return _Installed(error.message, error.hint)
    versions = found.versions
    raylet = _raylet(found.python)
    if raylet is not None and not os.access(raylet, os.X_OK):
        again = f"{found.python} -m pip install --force-reinstall 'ray[default]=={versions.ray}'"
        return _Installed(f"{raylet} does not exist or cannot be run", again, versions.ray, versions.python)
    return _Installed("", "", versions.ray, versions.python)


def _raylet(python: Path) -> Path | None:
    """Return the path of the raylet in this interpreter's environment; None if it is not known."""
    folders = list(python.parent.parent.glob("lib/python3*/site-packages/ray"))
    return folders[0] / "core/src/ray/raylet/raylet" if len(folders) == 1 else None


def _processes(pid: int | None) -> tuple[RayProcess, ...]:
    found = []
    for process in Family(pid).scan() if pid is not None else ():
        name = _known_name(process.name, process.pid)
        if name:
            found.append(RayProcess(name, process.pid, procfs.is_stopped(process.pid)))
    return tuple(sorted(found, key=lambda process: process.pid))


def _known_name(name: str, pid: int) -> str:
    """Return the name of one of Ray's own processes; empty for workers and helpers, which a user may have stopped."""
    if name in VITAL:
        return name
    if name.startswith(("ray::Dashboard", "ray::RuntimeEnv")):
        return "agent"
    return DASHBOARD if b"/dashboard/dashboard.py" in procfs.read(pid, "cmdline") else ""


async def _ports(mesh_map: MeshMap, name: str) -> dict[str, tuple[PortAnswer, ...]]:
    """Return how the ports of every node with Ray answer, this node's included."""
    dialled = [node for node in mesh_map.nodes.values() if _has_ray(node)]
    answers = await asyncio.gather(
        *(_of_node(node, mesh_map.ports_of(node), own=node.name == name) for node in dialled)
    )
    return {str(node.name): ports for node, ports in zip(dialled, answers, strict=True)}


def _has_ray(node: Node) -> bool:
    return bool(node.versions.ray) and node.online and not node.drained and STATIC not in node.roles


async def _of_node(node: Node, ports: RayPorts, *, own: bool) -> tuple[PortAnswer, ...]:
    targets = ray_targets(ports, head=HEAD in node.roles, workers=not own)
    return tuple(await asyncio.gather(*(dial(str(node.ip), target, TIMEOUT_S) for target in targets)))


def _token_file(ray: RayNow) -> str:
    path = ray.plan.token_path
    if path is None or not ray.token:
        return ""
    try:
        return SAME if path.read_text().strip() == ray.token else OTHER
    except FileNotFoundError:
        return MISSING
    except (OSError, ValueError) as error:
        return f"cannot be read: {error}"


def _rows(nodes: list[LiveNode] | None) -> tuple[TableRow, ...] | None:
    if nodes is None:
        return None
    return tuple(TableRow(str(node.ip), node.name, _is_here(node.ip)) for node in nodes)


def _is_here(ip: IPv4Address) -> bool:
    """Return whether this machine has the address; otherwise it cannot be bound."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((str(ip), 0))
        except OSError:
            return False
    return True
