"""Create an agent from its real parts and run it in the foreground.

The systemd unit and the background start run `python -m meshray.agent`; ``--block`` runs the same code in the command
line's own process.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from logging.handlers import RotatingFileHandler
from pathlib import Path

from meshray import __version__
from meshray.agent.agent import Agent, RestartRequested
from meshray.agent.connection.coordinator_process import CoordinatorProcess
from meshray.agent.control.control_server import ControlServer
from meshray.agent.control.operations import Operations
from meshray.agent.dependencies import Dependencies
from meshray.agent.device.device_monitor import device_changes
from meshray.agent.device.forwards import Forwards
from meshray.agent.device.port_guard import require_guarded
from meshray.agent.paths.hub_endpoints import HubEndpoints
from meshray.agent.paths.local_endpoints import read_endpoints
from meshray.agent.paths.prober import Prober
from meshray.agent.paths.traffic import Traffic
from meshray.agent.ray.local_ray import LocalRay, find_local_ray, ray_plan
from meshray.agent.ray.renewal import renewal_of
from meshray.agent.state import NodeState
from meshray.client.aiohttp_lean import import_aiohttp
from meshray.client.coordinator import RemovedFromMesh
from meshray.client.https_proxy import configure_proxy
from meshray.defaults import INTERFACE
from meshray.errors import MeshrayError
from meshray.firewall import Firewall, Opening
from meshray.home import Home
from meshray.linux import overlay_netns
from meshray.linux.files import PASSABLE_FOLDER, make_folder
from meshray.linux.network_monitor import network_changes
from meshray.linux.process import ManagedProcess
from meshray.linux.user import User
from meshray.model.keys import PrivateKey
from meshray.model.meshmap import MeshMap
from meshray.model.node import HEAD, Node, Versions
from meshray.model.ray_ports import RayPorts
from meshray.node.enrolment import Enrolment, load_private_key
from meshray.node.map_cache import load_or_fetch_map
from meshray.node.state_folder import delete_state
from meshray.raynode import user_token
from meshray.raynode.command import client_environment
from meshray.raynode.dashboard_client import node_table
from meshray.raynode.external import ExternalOptions, ExternalRay
from meshray.raynode.listeners import Listeners, hidden_are_rays
from meshray.raynode.node_table import TABLE_TIMEOUT_S
from meshray.raynode.supervisor import RayNode
from meshray.raynode.tokens import RayTokens
from meshray.runtime.base import AgentRuntime
from meshray.runtime.log_output import find_listener, start_logging
from meshray.runtime.selection import agent_runtime
from meshray.runtime.upgrade import watchdog
from meshray.runtime.upgrade.current import current_build
from meshray.runtime.upgrade.launch import launcher
from meshray.wireguard.device import Device
from meshray.wireguard.open import open_device

log = logging.getLogger(__name__)

_LOG_BYTES = 5 * 1024 * 1024


def run_foreground(home: Home, *, environ: Mapping[str, str] = os.environ) -> int:
    """Run this machine's agent until SIGTERM or SIGINT, then bring the node down.

    Returns:
        The exit code. An ephemeral node has left the mesh, and its state is deleted.

    Raises:
        MeshrayError: the machine is not in a mesh, its state is damaged, another agent is running, or the node was
            removed from its mesh.
    """
    enrolment = Enrolment.load(home)
    if enrolment.taken_out:
        raise RemovedFromMesh
    key, mesh_map = load_private_key(home), load_or_fetch_map(home, enrolment)
    make_folder(home.run, PASSABLE_FOLDER)
    try:
        _run_once(home, enrolment, key, mesh_map, environ)
    except RestartRequested:
        _start_again(home, environ)
    # The node was taken down: the watchdog of an upgrade must not start it again.
    watchdog.stop(home)
    if enrolment.ephemeral:
        delete_state(home)
    return 0


def _run_once(home: Home, enrolment: Enrolment, key: PrivateKey, mesh_map: MeshMap, environ: Mapping[str, str]) -> None:
    with _single_instance(home):
        _log_to(home.logs / "agent.log", environ)
        ManagedProcess(home.pid_file("agent")).record_this_process()
        configure_proxy(os.environ, enrolment.environment.session)
        import_aiohttp()
        log.info("agent %s of node %s, mesh %s", __version__, enrolment.name, mesh_map.mesh.name)
        runtime = agent_runtime(home, environ, enrolment.rootless)
        with runtime.entered(enrolment.listen_port):
            agent, control = _compose(home, enrolment, key, mesh_map, environ)
            asyncio.run(_run(agent, control, runtime, environ))


def _start_again(home: Home, environ: Mapping[str, str]) -> None:
    """Replace this process by an agent in the foreground, which adopts what this one left running."""
    folders = {"MESHRAY_HOME": str(home.state), "MESHRAY_RUN": str(home.run)}
    python = launcher(home)
    os.execve(python, [python, "-I", "-m", "meshray.agent"], {**environ, **folders})  # noqa: S606


@contextmanager
def _single_instance(home: Home) -> Iterator[None]:
    """Allow only one running agent. The lock ends with the process, however it ends."""
    with (home.run / "agent.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MeshrayError(
                "already_running", "an agent is already running on this machine", hint="meshray status"
            ) from None
        yield


def _compose(
    home: Home, enrolment: Enrolment, key: PrivateKey, mesh_map: MeshMap, environ: Mapping[str, str]
) -> tuple[Agent, ControlServer]:
    """Create the agent outside of the event loop: pyroute2 runs its own loop."""
    state = NodeState(home, enrolment, mesh_map)
    # Ray's interpreter takes a tenth of a second to answer, and so does the first look at devices: both run at once.
    with ThreadPoolExecutor(1) as executor:
        search = executor.submit(find_local_ray, home, enrolment, state.map, environ)
        device = open_device(INTERFACE, home, environ)
        ray = search.result()
    parts = _dependencies(state, ray, device, environ)
    agent = Agent(state, key, parts)

    def part(found: LocalRay | str) -> RayNode | ExternalRay | None:
        if isinstance(found, str):
            return None
        if found.external or found.installation is None:
            return ExternalRay(
                found.installation,
                found.plan,
                home,
                found.user,
                tokens=RayTokens(state.enrolment.ray_tokens),
                options=ExternalOptions(
                    on_instance=agent.report_ray_instance,
                    on_versions=agent.use_versions,
                    head_versions=lambda: state.map.head.versions if state.map.head is not None else Versions(),
                    check_start=lambda: require_guarded(parts.firewall, unguarded=enrolment.unguarded),
                ),
            )
        return RayNode(
            found.installation,
            found.plan,
            home,
            found.user,
            tokens=RayTokens(state.enrolment.ray_tokens),
            on_instance=agent.report_ray_instance,
            renew=renewal_of(state, environ, agent.use_ray),
            check_start=lambda: require_guarded(parts.firewall, unguarded=enrolment.unguarded),
            examine_machine=partial(_slow_start_cause, home, environ),
        )

    parts.ray = part(ray)
    parts.late_ray = lambda later: part(find_local_ray(home, enrolment, later, environ))
    operations = Operations(
        agent, lambda: _driver_environment(state, find_local_ray(home, enrolment, state.map, environ))
    )
    return agent, ControlServer(operations.for_all_users(), operations.for_owner(), enrolment.user_uid)


async def _slow_start_cause(home: Home, environ: Mapping[str, str], ray_args: Sequence[str]) -> str:
    from meshray.doctor.quick import before_ray

    return "; ".join(check.evidence for check in await before_ray(home, environ, ray_args))


def _forwards(state: NodeState) -> Forwards:
    """Return the forwarded ports of a node whose overlay is in its own network namespace."""
    from meshray.wireguard.hub_forwarding import forward_within

    enrolment = state.enrolment
    if state.is_hub:
        overlay_netns.run(forward_within, INTERFACE, state.map.mesh.network.cidr)
    own = (state.me.ip, enrolment.mesh_port) if enrolment.hosts_coordinator else None
    return Forwards(lambda: state.map.head.ip if state.map.head is not None else None, own, ports=state.map.ports_of())


async def _run(agent: Agent, control: ControlServer, runtime: AgentRuntime, environ: Mapping[str, str]) -> None:
    await control.open(agent.state.home.control_socket)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, agent.stop)
    agent.tasks.start(runtime.lost(), "runtime")
    _notify_systemd("READY=1", environ)
    try:
        await agent.run()
    except RestartRequested:
        # To systemd the service only continues: with STOPPING=1 it would wait for the end of this process.
        control.close()
        raise
    except BaseException:
        _end(control, environ)
        raise
    _end(control, environ)


def _end(control: ControlServer, environ: Mapping[str, str]) -> None:
    _notify_systemd("STOPPING=1", environ)
    control.close()


def _dependencies(state: NodeState, ray: LocalRay | str, device: Device, environ: Mapping[str, str]) -> Dependencies:
    home, enrolment, me = state.home, state.enrolment, state.me
    hub_endpoints = HubEndpoints(me.endpoints) if state.is_hub else None
    return Dependencies(
        device=device,
        prober=Prober(),
        traffic=None if state.is_hub else Traffic(INTERFACE),
        endpoints=hub_endpoints.read if hub_endpoints is not None else read_endpoints,
        hub_endpoints=hub_endpoints,
        network_changes=network_changes,
        device_changes=device_changes,
        listening=Listeners(
            home,
            enrolment.user_uid,
            lambda: state.map.gcs,
            hidden=enrolment.with_ray and hidden_are_rays(environ, external=enrolment.external),
        ),
        ray_table=lambda dashboard: node_table(dashboard, _token_of_head(state), TABLE_TIMEOUT_S, with_use=True),
        forwards=_forwards(state) if enrolment.rootless else None,
        firewall=None if enrolment.rootless else Firewall(_opening(state)),
        coordinator=CoordinatorProcess(home, enrolment.mesh_port) if enrolment.hosts_coordinator else None,
        # Without a head this node's Ray was not detected; the map has the versions from its enrolment.
        versions=replace(_own_versions(enrolment, me, ray), meshray=__version__, build=current_build()),
        no_ray_reason=ray if isinstance(ray, str) else "",
    )


def _own_versions(enrolment: Enrolment, me: Node, ray: LocalRay | str) -> Versions:
    """Return what this node runs. A Ray that another program starts is known once it is ALIVE; others expect a node
    with a Ray to answer, so until then it has none."""
    if enrolment.external:
        return me.versions if HEAD in me.roles else replace(me.versions, ray="")
    return ray.installation.versions if isinstance(ray, LocalRay) and ray.installation is not None else me.versions


def _token_of_head(state: NodeState) -> str | None:
    """Return the token of the head's running Ray; None if it has not been received."""
    head = state.map.head
    return RayTokens(state.enrolment.ray_tokens).of(head.ray_instance if head is not None else "")


def _opening(state: NodeState) -> Opening:
    enrolment, mesh = state.enrolment, state.map.mesh
    return Opening(
        INTERFACE,
        mesh.network.cidr,
        forwards=state.is_hub,
        ports=(enrolment.mesh_port, *enrolment.open_ports),
        everything=enrolment.open_all,
        ray=RayPorts.of({**enrolment.ray_ports, **mesh.ray_ports}),
    )


def _driver_environment(state: NodeState, ray: LocalRay | str) -> Mapping[str, str]:
    """Return the environment of a driver on this node; write the token if no Ray of this node has written it."""
    if not isinstance(ray, str):
        return client_environment(ray.plan)
    head, enrolment = state.map.head, state.enrolment
    if enrolment.with_ray:
        raise MeshrayError("no_ray", f"this node runs no Ray: {ray}", hint="run it on a node that does: meshray status")
    if head is None or not head.versions.ray:
        # Such a node uses the head's Ray, so its own lack of one is not the cause.
        cause = "this mesh has no Ray head yet" if head is None else f"Ray does not run on the head {head.name} (yet)"
        raise MeshrayError("no_ray", cause, hint="meshray status")
    token = _token_of_head(state)
    if token is None:
        raise MeshrayError("no_ray_token", "the head's token has not been received yet", hint="meshray status")
    user_token.write_token(state.home.ray_token, token, User.by_uid(enrolment.user_uid))
    return client_environment(ray_plan(enrolment, state.me, head, state.map, state.home), has_raylet=False)


def _notify_systemd(state: str, environ: Mapping[str, str]) -> None:
    """Send one datagram of sd_notify(3); do nothing if systemd did not ask for it."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.send(state.encode())


def _log_to(path: Path, environ: Mapping[str, str]) -> None:
    """Write log lines to this file.

    After a background start standard error is already this file. Under systemd and with --block standard error
    belongs to another program, which may get the lines as well.
    """
    make_folder(path.parent)
    path.touch(mode=0o600)
    if path.samefile(f"/proc/self/fd/{sys.stderr.fileno()}"):
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
    else:
        handler = RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=1)
    start_logging(handler, environ, find_listener(environ))
