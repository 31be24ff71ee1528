"""The status of the mesh from one node: the agent builds it, the control socket carries it, the command line shows it.

Each field has a default: after an upgrade the agent of the earlier release answers until it is restarted.

>>> Status(mesh="lab", nodes=(NodeStatus("gpu-1", "10.99.0.2"),)).nodes[0].path.kind
<PathKind.NONE: 'none'>
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from meshray.model.path import PathKind, Transport
from meshray.model.problem import Problem
from meshray.model.ray_ports import RayPorts


class PathStatus(msgspec.Struct, frozen=True):
    """The current path to one peer. A number that was not measured yet is None.

    Attributes:
        kind: the first hop of packets.
        transport: None if there is no path.
        endpoint: the destination of the datagrams: the peer's endpoint, or the hub's.
        rtt_ms: median of the last probes' round trips over the overlay, milliseconds.
        loss: share of the last probes that were not answered, 0 to 1.
        mtu: the path's MTU, bytes.
        handshake_age_s: seconds since the last handshake with the peer or hub.
        rx_bytes: bytes received from the peer or hub since the interface was created.
        tx_bytes: bytes sent to the peer or hub since the interface was created.
        throughput_mbit_s: always None; nodes of earlier versions report an estimate here.
        reason: why the path is not direct; empty if it is, or is being tried.
        queue_ms: the time that packets wait in buffers on the path: by how much the median of the last round trips
            exceeds the shortest one, milliseconds; None: too few were measured.
        udp_limit_mbit_s: the rate to which a network limits UDP on the path to this hub, megabits per second, because
            of which the tunnel to the hub uses TCP; None: no limit was found, or TCP is not much faster.
        tcp_mbit_s: the rate that TCP carried to this hub beside that limit, at least, megabits per second.
    """

    kind: PathKind = PathKind.NONE
    transport: Transport | None = None
    endpoint: str | None = None
    rtt_ms: float | None = None
    loss: float | None = None
    mtu: int | None = None
    handshake_age_s: float | None = None
    rx_bytes: int = 0
    tx_bytes: int = 0
    throughput_mbit_s: float | None = None
    reason: str = ""
    queue_ms: float | None = None
    udp_limit_mbit_s: float | None = None
    tcp_mbit_s: float | None = None


class RayStatus(msgspec.Struct, frozen=True):
    """The Ray of one node, as Ray's own node table at the head lists it.

    Attributes:
        alive: whether Ray lists it as ALIVE; None if the head's Ray did not answer.
        resources: the node's resources, by Ray's own names; memory in bytes.
        used: the part of them in use by tasks, actors and objects, CPU, GPU and memory only; None: not known.
        last_known: for a node that does not answer, its resources when Ray last listed it; None: it answers, or it was
            never listed.
        ports: the ports of its Ray, by name (`meshray.model.ray_ports.RayPorts`); empty: it runs none.
    """

    alive: bool | None = None
    resources: Mapping[str, float] = {}
    used: Mapping[str, float] | None = None
    last_known: Mapping[str, float] | None = None
    ports: Mapping[str, int] = {}


class NodeStatus(msgspec.Struct, frozen=True):
    """One node, from the point of view of the asked node.

    Attributes:
        name: its name in the mesh.
        ip: its overlay address.
        role: ``head``, ``hub``, ``worker`` or ``static``.
        online: its agent is connected to the coordinator.
        path: the path of packets from the asked node to it.
        ray: its Ray.
        drained: Ray must not run there now.
        down: nothing must run there now: it was taken down.
        silent: it does not answer over the overlay, and was not taken down.
        since: when its current state began, unix seconds; None: before the asked node's agent started.
        no_remote: it refuses orders of the mesh's administrator (``--no-remote``).
        meshray: the version of its meshray; empty: not known.
        build: identifies the files of its meshray, because two builds may have one version; empty: not known.
    """

    name: str = ""
    ip: str = ""
    role: str = ""
    online: bool = False
    path: PathStatus = PathStatus()
    ray: RayStatus = RayStatus()
    drained: bool = False
    down: bool = False
    silent: bool = False
    since: float | None = None
    no_remote: bool = False
    meshray: str = ""
    build: str = ""


class CoordinatorStatus(msgspec.Struct, frozen=True):
    """The coordinator, from the point of view of the asked node.

    Attributes:
        reachable: the asked node is connected to it.
    """

    reachable: bool = False


class Totals(msgspec.Struct, frozen=True):
    """The resources of all nodes that Ray lists as ALIVE and that answer; None if Ray did not answer.

    Attributes:
        cpu: CPUs.
        gpu: GPUs.
        memory: memory in bytes.
        object_store_memory: object store memory in bytes.
    """

    cpu: float | None = msgspec.field(default=None, name="CPU")
    gpu: float | None = msgspec.field(default=None, name="GPU")
    memory: float | None = None
    object_store_memory: float | None = None


class Status(msgspec.Struct, frozen=True):
    """The status of the mesh from one node.

    Attributes:
        mesh: the name of the mesh.
        revision: the revision of the asked node's map.
        node: the name of the node that was asked.
        coordinator: whether it is reachable.
        nodes: every node of the map, by address.
        totals: the resources of the cluster.
        problems: the sentences of ``health``, in its order.
        health: the problems; empty if the mesh is healthy.
        notices: information for the user that is not a fault, as sentences.
        open: the ports that members reach on the asked node besides Ray's (``--open``).
        exposed: the ports of Ray that the asked node's other networks reach, too (``--expose``).
        unguarded: Ray runs on the asked node even where its ports cannot be closed to other networks.
        no_remote: the asked node refuses orders of the mesh's administrator (``--no-remote``).
        environment: the names of the additional variables of its Ray (``--env``).
    """

    mesh: str = ""
    revision: int = 0
    node: str = msgspec.field(default="", name="self")
    coordinator: CoordinatorStatus = CoordinatorStatus()
    nodes: tuple[NodeStatus, ...] = ()
    totals: Totals = Totals()
    problems: tuple[str, ...] = ()
    health: tuple[Problem, ...] = ()
    notices: tuple[str, ...] = ()
    open: tuple[str, ...] = ()
    exposed: tuple[int, ...] = ()
    unguarded: bool = False
    no_remote: bool = False
    environment: tuple[str, ...] = ()


PATH_EXAMPLE = PathStatus(
    kind=PathKind.DIRECT,
    transport=Transport.UDP,
    endpoint="203.0.113.7:51888",
    rtt_ms=12.4,
    loss=0.0,
    mtu=1420,
    handshake_age_s=31.0,
    rx_bytes=184302,
    tx_bytes=90210,
    queue_ms=1.8,
)
_RESOURCES = {"CPU": 8.0, "GPU": 1.0, "memory": 34359738368.0, "object_store_memory": 10737418240.0}
_USED = {"CPU": 2.0, "GPU": 0.0, "memory": 0.0}
_OPEN = "Ray's ports are open to every network that this machine is in: nft: Operation not permitted"
STATUS_EXAMPLE = Status(
    mesh="lab",
    revision=7,
    node="gpu-1",
    coordinator=CoordinatorStatus(reachable=True),
    nodes=(
        NodeStatus(
            name="head",
            ip="10.99.0.1",
            role="head",
            online=True,
            path=PATH_EXAMPLE,
            ray=RayStatus(alive=True, resources=_RESOURCES, used=_USED, ports=RayPorts().to_json(head=True)),
            since=1767225600.0,
            meshray="0.1.0",
            build="3f5a0c9e12ab",
        ),
        NodeStatus(
            name="gpu-1",
            ip="10.99.0.2",
            role="worker",
            online=True,
            path=PathStatus(PathKind.SELF, mtu=1420),
            ray=RayStatus(
                alive=True,
                resources=_RESOURCES,
                used=_USED,
                ports=RayPorts.of({"metrics_export": 8500}).to_json(head=False),
            ),
            since=1767225600.0,
            meshray="0.1.0",
            build="3f5a0c9e12ab",
        ),
    ),
    totals=Totals(cpu=16.0, gpu=2.0, memory=68719476736.0, object_store_memory=21474836480.0),
    problems=(_OPEN,),
    health=(Problem("guard", _OPEN, "gpu-1", "meshray doctor"),),
    notices=("new hubs, which read what they forward: gpu-2 (10.99.0.3) since 2026-01-01 12:00",),
    exposed=(8265,),
    unguarded=True,
    no_remote=True,
    environment=("HF_TOKEN",),
)
