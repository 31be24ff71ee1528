"""The numbers behind one scrape, read from the agent's parts and the kernel."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial

from meshray import __version__
from meshray.agent.status.node_site import site_of_node
from meshray.agent.status.snapshot import Sources, current_path, own_ray_alive
from meshray.agent.status.used_paths import UsedPaths
from meshray.home import Home
from meshray.linux import overlay_netns
from meshray.linux.interface_counters import InterfaceCounters, interface_counters
from meshray.linux.process import ManagedProcess
from meshray.linux.process_usage import ProcessUsage, process_usage
from meshray.linux.udp_queue import UdpQueue, udp_queue
from meshray.model.path import PathKind, Transport


@dataclass(frozen=True)
class PeerFigures:
    """The numbers of one path in use; those that were not measured are None.

    Attributes:
        peer: the name of the other node.
        receive_bytes, transmit_bytes, last_handshake: as WireGuard counts them for this peer; None for a relayed pair,
            whose packets count for the hub. The handshake is in unix seconds.
    """

    peer: str
    kind: PathKind
    transport: Transport | None
    rtt_s: float | None = None
    loss: float | None = None
    receive_bytes: int | None = None
    transmit_bytes: int | None = None
    last_handshake: float | None = None


@dataclass(frozen=True)
class Figures:
    """The numbers of one node.

    Attributes:
        ray_alive: whether this node's Ray is listed as ALIVE; None: it should not run here now.
        engine: the kind of WireGuard's implementation.
        engine_usage: None if it is the kernel's.
        udp: the receive queue of WireGuard's UDP port.
        connections: how often the connection to the coordinator was opened.
    """

    mesh: str
    node: str
    ip: str
    roles: tuple[str, ...]
    version: str
    site: str
    peers: tuple[PeerFigures, ...] = ()
    ray_alive: bool | None = None
    coordinator_reachable: bool = False
    connections: int = 0
    map_revision: int = 0
    agent_usage: ProcessUsage | None = None
    engine: str = ""
    engine_usage: ProcessUsage | None = None
    interface: InterfaceCounters | None = None
    udp: UdpQueue | None = None


def read_figures(sources: Sources, used: UsedPaths) -> Figures:
    """Return the current numbers. Takes some milliseconds."""
    state, parts = sources.state, sources.parts
    device, me = state.device, state.me
    peers = []
    for node, path in used.current(sources.paths.in_use(), device, partial(current_path, sources)):
        own = device.peers.get(node.public_key) if device is not None and path.kind == PathKind.DIRECT else None
        peers.append(
            PeerFigures(
                peer=str(node.name),
                kind=path.kind,
                transport=path.transport,
                rtt_s=path.rtt_ms / 1000 if path.rtt_ms is not None else None,
                loss=path.loss,
                receive_bytes=own.rx_bytes if own is not None else None,
                transmit_bytes=own.tx_bytes if own is not None else None,
                last_handshake=own.last_handshake if own is not None else None,
            )
        )
    return Figures(
        mesh=str(state.map.mesh.name),
        node=str(me.name),
        ip=str(me.ip),
        roles=tuple(sorted(me.roles)),
        version=__version__,
        site=site_of_node(state),
        peers=tuple(peers),
        ray_alive=own_ray_alive(sources),
        coordinator_reachable=sources.connection.is_open,
        connections=sources.connection.opened,
        map_revision=state.map.revision,
        agent_usage=process_usage(os.getpid()),
        engine=parts.device.kind,
        engine_usage=_engine_usage(state.home),
        interface=overlay_netns.run(interface_counters, parts.device.name),
        udp=overlay_netns.run_in_engine_namespace(udp_queue, device.listen_port) if device is not None else None,
    )


def _engine_usage(home: Home) -> ProcessUsage | None:
    pid = ManagedProcess(home.pid_file("engine")).pid
    return process_usage(pid) if pid is not None else None
