"""The requests of the command line on the control socket of this machine's agent, and the answers.

Each line is one JSON object. A request names its operation:

    {"op": "status"}  ──►
                      ◄──  {"ok": {…}}                        the last line, or
                      ◄──  {"error": {…}, "exit_code": 5}     the last line
    {"op": "ping", "node": "gpu-1", "count": 3}  ──►
                      ◄──  {"event": {"seq": 1, "rtt_ms": 0.8}}   any number of these before

The fields of an answer have defaults: after an upgrade the agent of the earlier release answers until it is restarted.

>>> Ping("gpu-1").op
'ping'
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Generic, TypeVar, get_args

import msgspec

from meshray.model.path import PathKind, Transport
from meshray.protocol.doctor import DoctorReport
from meshray.protocol.fields import MAX_ENDPOINT
from meshray.protocol.status import PathStatus, Status

#: The maximum length of a request.
MAX_REQUEST_BYTES = 64 * 1024
MAX_PINGS = 1000

A = TypeVar("A")
E = TypeVar("E")

#: The name of a node, or its overlay address.
NodeNameOrIp = Annotated[str, msgspec.Meta(max_length=63)]


class Request(msgspec.Struct, Generic[A], frozen=True, tag_field="op"):
    """A request with the answer A. Its class names the operation as its tag."""

    @classmethod
    def operation(cls) -> str:
        """Return the name of the operation."""
        return str(cls.__struct_config__.tag)

    @classmethod
    def answer_type(cls) -> type[A]:
        """Return the type of the answer."""
        found: type[A] = _parameters(cls)[-1]
        return found


class Watch(Request[A], Generic[E, A], frozen=True, tag_field="op"):
    """A request with any number of events E before the answer."""

    @classmethod
    def event_type(cls) -> type[E]:
        """Return the type of the events."""
        found: type[E] = _parameters(cls)[0]
        return found


def _parameters(request: type[Request[Any]]) -> tuple[Any, ...]:
    return get_args(request.__orig_bases__[0])  # type: ignore[attr-defined] # typing sets it on each generic class


class Done(msgspec.Struct, frozen=True):
    """The operation is done; there is no result."""


class StageEvent(msgspec.Struct, frozen=True):
    """A stage of a node's startup changed its state.

    Attributes:
        stage: ``coordinator``, ``overlay``, ``firewall`` or ``ray``.
        state: ``run``, ``ok``, ``fail`` or ``skip``.
        detail: a short description.
    """

    stage: str = ""
    state: str = ""
    detail: str = ""


class SummaryNode(msgspec.Struct, frozen=True):
    """This node.

    Attributes:
        name: its name in the mesh.
        ip: its overlay address.
    """

    name: str = ""
    ip: str = ""


class SummaryPath(msgspec.Struct, frozen=True):
    """The path to the head.

    Attributes:
        kind: the first hop of packets.
        transport: None if there is no path.
    """

    kind: PathKind = PathKind.NONE
    transport: Transport | None = None


class SummaryRay(msgspec.Struct, frozen=True):
    """Ray, as the head lists it.

    Attributes:
        alive: this node is ALIVE in Ray.
        nodes: how many nodes are ALIVE.
    """

    alive: bool = False
    nodes: int = 0


class Summary(msgspec.Struct, frozen=True):
    """A node that is up.

    Attributes:
        mesh: the name of the mesh.
        node: this node.
        path: the path to the head.
        ray: the Ray of this node.
        ray_address: the address of the head's Ray; None if none runs.
        dashboard: the address of Ray's dashboard; None if none runs.
        local: without root: addresses on this machine's loopback, by name.
        env_file: with ``--ray external``: the file that the program which starts Ray reads.
    """

    mesh: str = ""
    node: SummaryNode = SummaryNode()
    path: SummaryPath = SummaryPath()
    ray: SummaryRay = SummaryRay()
    ray_address: str | None = None
    dashboard: str | None = None
    local: Mapping[str, str] | msgspec.UnsetType = msgspec.UNSET
    env_file: str | msgspec.UnsetType = msgspec.UNSET


class Up(msgspec.Struct, frozen=True):
    """The node is up."""

    stage: str = "up"
    state: str = "ok"
    summary: Summary = Summary()


class DriverEnvironment(msgspec.Struct, frozen=True):
    """The environment with which a driver finds the cluster.

    Attributes:
        env: the variables by which Ray's programs find the cluster, and those of ``--env``.
        user_uid: the uid of the user who runs Ray here.
        python: Ray's interpreter; empty if this node runs no Ray.
        programs: the folder with `ray` and its `python`; empty if this node runs no Ray.
        activation: the variables of an active Ray environment.
        ray_ports: the ports of the head's Ray, by name.
        dashboard_here: the dashboard on this machine's loopback, without root; otherwise empty.
    """

    env: Mapping[str, str] = {}
    user_uid: int | None = msgspec.field(default=None, name="person_uid")
    python: str = ""
    programs: str = ""
    activation: Mapping[str, str] = {}
    ray_ports: Mapping[str, int] = {}
    dashboard_here: str = ""


class Echo(msgspec.Struct, frozen=True):
    """One probe of a ping.

    Attributes:
        seq: its number, from 1.
        rtt_ms: its round trip, milliseconds; None: no answer.
    """

    seq: int = 0
    rtt_ms: float | None = None


class OtherPath(msgspec.Struct, frozen=True):
    """A path that packets could take, but do not.

    Attributes:
        kind: the first hop of packets.
        to: the hub that would forward them.
        rtt_ms: the round trip to the hub, milliseconds; None: no answer, or not measured.
        reason: why it is not in use.
    """

    kind: PathKind = PathKind.NONE
    to: str | msgspec.UnsetType = msgspec.UNSET
    rtt_ms: float | None = None
    reason: str = ""


class PingDone(msgspec.Struct, frozen=True):
    """All probes were sent."""

    done: bool = True
    sent: int = 0
    received: int = 0
    path: PathStatus = PathStatus()
    others: tuple[OtherPath, ...] = ()


class WireGuardFile(msgspec.Struct, frozen=True):
    """The text of a wg-quick file."""

    text: str = ""


class Repaired(msgspec.Struct, frozen=True):
    """The result of a repair, as a sentence."""

    done: str = ""


class KeyRotated(msgspec.Struct, frozen=True):
    """The node that has a new WireGuard key, and its public part."""

    node: str = ""
    public_key: str = ""


class Readiness(msgspec.Struct, frozen=True):
    """``ready``: whether this node can do its work.

    Attributes:
        ready: its Ray is ALIVE; on a node without Ray, the overlay works.
        reason: what works, or what is missing.
    """

    ready: bool = False
    reason: str = ""


class GetStatus(Request[Status], frozen=True, tag="status"):
    """Request the mesh's status from this node."""


class GetReadiness(Request[Readiness], frozen=True, tag="ready"):
    """Request whether this node can do its work, which takes the agent no time."""


class FollowProgress(Watch[StageEvent, Up], frozen=True, tag="progress"):
    """Request the stages of this node's startup, past and to come, until it is up."""


class GetEnvironment(Request[DriverEnvironment], frozen=True, tag="env"):
    """Request the environment of a driver."""


class Ping(Watch[Echo, PingDone], frozen=True, tag="ping"):
    """Request round trips to a node over the overlay."""

    node: NodeNameOrIp
    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_PINGS)] = 4


class RunDoctor(Request[DoctorReport], frozen=True, tag="doctor"):
    """Request the checks of all nodes, or of one and of the mesh as a whole."""

    node: NodeNameOrIp = ""


class GetWireGuard(Request[WireGuardFile], frozen=True, tag="wireguard"):
    """Request the WireGuard configuration of a node, without secrets."""

    node: NodeNameOrIp


class GetWireGuardSecrets(Request[WireGuardFile], frozen=True, tag="wireguard_secrets"):
    """Request the WireGuard configuration of this node, with its private key."""

    node: NodeNameOrIp


class CallCoordinator(Request[dict[str, Any]], frozen=True, tag="api"):
    """Send a request to the coordinator's API with this node's credential; its answer is returned."""

    method: Annotated[str, msgspec.Meta(max_length=8)]
    path: Annotated[str, msgspec.Meta(max_length=256)]
    body: dict[str, Any] | None = None


class Repair(Request[Repaired], frozen=True, tag="repair"):
    """Request a repair of `meshray.doctor.repairs.REPAIRS`, by its key."""

    key: Annotated[str, msgspec.Meta(max_length=40)]


class RotateKey(Request[KeyRotated], frozen=True, tag="rotate_key"):
    """Request a new WireGuard key for this node, or on the head for another one."""

    node: NodeNameOrIp = ""


class OrderPart(msgspec.Struct, frozen=True):
    """The next part of an order's output.

    Attributes:
        data: bytes as base64; empty: there is no output at the moment.
    """

    data: str = ""


class GiveOrder(Watch[OrderPart, Done], frozen=True, tag="order"):
    """Give an order to a node through the coordinator, see `meshray.protocol.orders`."""

    node: NodeNameOrIp
    order: Annotated[str, msgspec.Meta(max_length=32)]
    arguments: dict[str, Any] = {}


class UseCoordinator(Request[Done], frozen=True, tag="coordinator"):
    """Use another address of the coordinator."""

    endpoint: Annotated[str, msgspec.Meta(max_length=MAX_ENDPOINT)]


class TakeDown(Request[Done], frozen=True, tag="down"):
    """Stop everything and end."""


class GiveUp(Request[Done], frozen=True, tag="give_up"):
    """End without a message to the coordinator: the node is now another machine."""
