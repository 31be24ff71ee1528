"""Puts an agent together out of its real parts and runs it in the foreground.

`python -m meshray.agent` is what the systemd unit and the background start run; ``--block`` runs the
same in the process of the command line.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from logging.handlers import RotatingFileHandler
from pathlib import Path

from meshray import __version__
from meshray.agent.agent import Agent
from meshray.agent.composition import make_agent
from meshray.agent.connection.coordinator_process import CoordinatorProcess
from meshray.agent.control.control_server import ControlServer
from meshray.agent.control.operations import Operations
from meshray.agent.dependencies import Dependencies
from meshray.agent.device.desired import own_node
from meshray.agent.device.device_monitor import device_changes
from meshray.agent.device.port_guard import require_guarded
from meshray.agent.paths.candidates import read_endpoints
from meshray.agent.paths.hub_endpoints import HubEndpoints
from meshray.agent.paths.prober import Prober
from meshray.agent.ray.local_ray import LocalRay, find_local_ray, ray_plan
from meshray.agent.ray.renewal import renewal_of
from meshray.client.coordinator import RemovedFromMesh
from meshray.client.proxy import settle
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
from meshray.model.node import HUB, Node
from meshray.model.ray_ports import RayPorts
from meshray.node.enrolment import Enrolment, load_private_key
from meshray.node.map_cache import load_or_fetch_map
from meshray.node.pins import Pins
from meshray.node.state_folder import forget
from meshray.node.state_writer import StateWriter
from meshray.raynode import user_token
from meshray.raynode.command import client_environment
from meshray.raynode.listeners import Listeners
from meshray.raynode.node_table import TABLE_TIMEOUT_S
from meshray.raynode.state import node_table
from meshray.raynode.supervisor import RayNode
from meshray.raynode.tokens import RayTokens
from meshray.runtime.log_output import find_listener, start_logging
from meshray.wireguard.device import Device
from meshray.wireguard.open import open_device

log = logging.getLogger(__name__)

_LOG_BYTES = 5 * 1024 * 1024


def run_foreground(home: Home, *, environ: Mapping[str, str] = os.environ) -> int:
    """Runs this machine's agent until SIGTERM or SIGINT, then takes the node down.

    Returns:
        The exit code. An ephemeral node has left the mesh and its state is gone.

    Raises:
        MeshrayError: the machine is in no mesh, its state is damaged, another agent runs already, or
            the node was removed from its mesh.
    """
    enrolment = Enrolment.load(home)
    if enrolment.taken_out:
        raise RemovedFromMesh
    key, mesh_map = load_private_key(home), load_or_fetch_map(home, enrolment)
    make_folder(home.run, PASSABLE_FOLDER)
    with _alone(home):
        _log_to(home.logs / "agent.log", environ)
        ManagedProcess(home.pid_file("agent")).record_this_process()
        settle(os.environ, enrolment.environment.session)
        log.info("agent %s of node %s, mesh %s", __version__, enrolment.name, mesh_map.mesh.name)
        with _where_the_overlay_is(home, enrolment, environ):
            agent, control = _compose(home, enrolment, key, mesh_map, environ)
            asyncio.run(_run(agent, control, environ))
    if enrolment.ephemeral:
        forget(home)
    return 0


@contextmanager
def _alone(home: Home) -> Iterator[None]:
    """Only one agent runs at a time; the lock ends with the process, however it ends."""
    with (home.run / "agent.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MeshrayError(
                "already_running", "the agent of this machine runs already", hint="meshray status"
            ) from None
        yield


def enter_namespaces(home: Home, enrolment: Enrolment, environ: Mapping[str, str]) -> None:
    """This process enters those of a node without root, once. Before it has threads.

    Raises:
        MeshrayError: ``no_namespace`` or ``no_wireguard``.
    """
    from meshray.runtime.rootless.namespace import enter_once
    from meshray.wireguard.elsewhere import udp_port_inside

    enter_once(home, udp_port_inside(enrolment.listen_port, environ))


@contextmanager
def _where_the_overlay_is(home: Home, enrolment: Enrolment, environ: Mapping[str, str]) -> Iterator[None]:
    """In namespaces of its own on a node without root. They end when the node was taken down, not when its agent failed
    at something: another agent goes on with them."""
    if not enrolment.rootless:
        yield
        return
    from meshray.runtime.rootless.namespace import Namespace

    enter_namespaces(home, enrolment, environ)
    try:
        yield
    except RemovedFromMesh:
        Namespace.end(home)
        raise
    Namespace.end(home)


def _compose(
    home: Home, enrolment: Enrolment, key: PrivateKey, mesh_map: MeshMap, environ: Mapping[str, str]
) -> tuple[Agent, ControlServer]:
    """Outside of the event loop: pyroute2 runs one of its own."""
    used = Pins.load(home, enrolment.node_id, StateWriter(home)).admit(mesh_map)
    # Ray's interpreter takes a tenth of a second to answer, the first look at devices as long: at the same time.
    with ThreadPoolExecutor(1) as beside:
        finding = beside.submit(find_local_ray, home, enrolment, used, environ)
        device = open_device(INTERFACE, home, environ)
        ray = finding.result()
    agent = make_agent(home, enrolment, key, mesh_map, _parts(home, enrolment, used, ray, device))

    def part(found: LocalRay | str) -> RayNode | None:
        if isinstance(found, str):
            return None
        return RayNode(
            found.installation,
            found.plan,
            home,
            found.user,
            tokens=RayTokens(agent.enrolment.ray_tokens),
            on_instance=agent.tell_ray_instance,
            renew=renewal_of(agent, environ),
            check_start=lambda: require_guarded(agent.parts.firewall, unguarded=enrolment.unguarded),
        )

    agent.parts.ray = part(ray)
    agent.parts.ray_table = lambda dashboard: node_table(
        dashboard, _token_of_head(agent), TABLE_TIMEOUT_S, with_use=True
    )
    agent.parts.listening = Listeners(home, enrolment.user_uid, lambda: agent.map.gcs)
    agent.parts.late_ray = lambda later: part(find_local_ray(home, enrolment, later, environ))
    if enrolment.rootless:
        _live_elsewhere(home, agent)
    operations = Operations(
        agent, lambda: _driver_environment(agent, find_local_ray(home, enrolment, agent.map, environ))
    )
    return agent, ControlServer(operations.for_everybody(), operations.for_owner(), enrolment.user_uid)


def _live_elsewhere(home: Home, agent: Agent) -> None:
    """What a node needs whose overlay is in a namespace of its own."""
    from meshray.agent.device.forwards import Forwards
    from meshray.wireguard.forwarding import forward_within

    me, network = agent.me, agent.map.mesh.network.cidr
    if HUB in me.roles:
        overlay_netns.run(forward_within, INTERFACE, network)
    own = (me.ip, agent.enrolment.mesh_port) if agent.enrolment.hosts_coordinator else None
    agent.parts.forwards = Forwards(
        lambda: agent.map.head.ip if agent.map.head is not None else None, own, ports=agent.map.ports_of()
    )


async def _namespaces_last(home: Home) -> None:
    await ManagedProcess(home.pid_file("namespace")).wait()
    raise MeshrayError("namespace_lost", "the process that holds this node's namespaces has ended", hint="meshray up")


async def _run(agent: Agent, control: ControlServer, environ: Mapping[str, str]) -> None:
    await control.open(agent.home.control_socket)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, agent.stop)
    if agent.enrolment.rootless:
        agent.tasks.start(_namespaces_last(agent.home), "namespaces")
    _notify_systemd("READY=1", environ)
    try:
        await agent.run()
    finally:
        _notify_systemd("STOPPING=1", environ)
        control.close()


def _parts(home: Home, enrolment: Enrolment, mesh_map: MeshMap, ray: LocalRay | str, device: Device) -> Dependencies:
    me = own_node(enrolment, mesh_map)
    hub_endpoints = HubEndpoints(me.endpoints) if HUB in me.roles else None
    return Dependencies(
        device=device,
        prober=Prober(),
        endpoints=hub_endpoints.read if hub_endpoints is not None else read_endpoints,
        hub_endpoints=hub_endpoints,
        network_changes=network_changes,
        device_changes=device_changes,
        firewall=None if enrolment.rootless else Firewall(_opening(enrolment, me, mesh_map)),
        coordinator=CoordinatorProcess(home, enrolment.mesh_port) if enrolment.hosts_coordinator else None,
        # Without a head this node's Ray was not looked for; the map has what it said when it enrolled.
        versions=replace(ray.installation.versions if isinstance(ray, LocalRay) else me.versions, meshray=__version__),
        no_ray_because=ray if isinstance(ray, str) else "",
    )


def _token_of_head(agent: Agent) -> str | None:
    """The token of the head's running Ray; None where it has not been received."""
    head = agent.map.head
    return RayTokens(agent.enrolment.ray_tokens).of(head.ray_instance if head is not None else "")


def _opening(enrolment: Enrolment, me: Node, mesh_map: MeshMap) -> Opening:
    return Opening(
        INTERFACE,
        mesh_map.mesh.network.cidr,
        forwards=HUB in me.roles,
        ports=(enrolment.mesh_port, *enrolment.open_ports),
        everything=enrolment.open_all,
        ray=RayPorts.of({**enrolment.ray_ports, **mesh_map.mesh.ray_ports}),
    )


def _driver_environment(agent: Agent, ray: LocalRay | str) -> Mapping[str, str]:
    """What a driver on this node needs; the token is written for it where no Ray of this node has done that."""
    if not isinstance(ray, str):
        return client_environment(ray.plan)
    head, enrolment = agent.map.head, agent.enrolment
    if enrolment.with_ray or head is None or not head.versions.ray:
        raise MeshrayError("no_ray", f"this node runs no Ray: {ray}", hint="run it on a node that does: meshray status")
    token = _token_of_head(agent)
    if token is None:
        raise MeshrayError("no_ray_token", "the head's token has not been received yet", hint="meshray status")
    user_token.write_token(agent.home.ray_token, token, User.by_uid(enrolment.user_uid))
    return client_environment(ray_plan(enrolment, agent.me, head, agent.map, agent.home), has_raylet=False)


def _notify_systemd(state: str, environ: Mapping[str, str]) -> None:
    """sd_notify(3): one datagram; nothing where systemd does not ask for it."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.send(state.encode())


def _log_to(path: Path, environ: Mapping[str, str]) -> None:
    """Log lines go to this file. The background start has it as standard error already; under systemd
    and with --block standard error is somebody else's, and may get them as well."""
    make_folder(path.parent)
    path.touch(mode=0o600)
    if path.samefile(f"/proc/self/fd/{sys.stderr.fileno()}"):
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
    else:
        handler = RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=1)
    start_logging(handler, environ, find_listener(environ))
