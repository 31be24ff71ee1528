"""The messages of the agent's WebSocket, GET /v1/agent, in both directions, and the codes that close it.

    recall ◄─► recalled     only if the agent knows what the coordinator has forgotten
    map ──►  change ──► …   the map once, then its changes
         ◄── hello …        the node's report, again after each change

Each message is one JSON object in a text frame. Both sides ignore a ``type`` that they do not know, so that a newer
peer may send more; a malformed message ends the connection. Of `Hello`, `RayInstance`, `Seen`, `Silence` and
`PathReport` only the newest counts. Examples are in docs/protocol.md.

>>> encode(Punch("5d41402abc4b2a76"))
'{"type": "punch", "node": "5d41402abc4b2a76"}'
"""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import Annotated, Any, cast

from msgspec import UNSET, Meta, Struct, UnsetType

from meshray.model.path import PathKind, Transport
from meshray.protocol.codec import Messages, WireError, decode, encode
from meshray.protocol.fields import (
    LONGEST_RAY_TOKEN,
    LONGEST_TICKET,
    MAX_ENDPOINT,
    MAX_ITEMS,
    Counter,
    EndpointTexts,
    Epoch,
    Items,
    Key,
    Port,
    Ports,
    Seconds,
    Text64,
    TextMap,
    Word,
)
from meshray.protocol.forms import AttestationForm, ChangeForm, MapForm, NodeForm, RemovalsForm, VersionsForm

#: Questions of `Ask`: the node's findings about itself and its peers; a change of its key; its status, which only the
#: coordinator asks for.
SURVEY, ROTATE_KEY, STATUS, UPGRADE = "survey", "rotate_key", "status", "upgrade"
#: The longest answer of one node. A peer takes about 600 bytes of a survey, so this is sufficient for 400 of them.
MAX_ANSWER_BYTES = 256 * 1024
#: The maximum time to wait for an answer, seconds.
MAX_WAIT_S = 15
#: The maximum number of epochs of the secrets that a node holds.
MOST_EPOCHS = 1024
#: The maximum number of paths in a `PathReport`: 256 take about 30 KiB.
MOST_PATHS = 256
#: The longest reason of a path in a `PathReport`, characters.
LONGEST_REASON = 200
#: The longest map, bytes: 10,000 nodes take about 5 MB.
MAX_MAP_BYTES = 32 * 1024 * 1024
#: The most bytes of one `OrderOutput`. Other messages of the connection wait for it.
CHUNK_BYTES = 16 * 1024
_CHUNK_CHARACTERS = (CHUNK_BYTES + 2) // 3 * 4
_ERROR_CHARACTERS = 300
_LONGEST_REPORT = 4096

#: The credential is not accepted: this node is not, or no longer, in the mesh.
CLOSE_NOT_ACCEPTED = 4401
#: Another connection of the same node replaced this one.
CLOSE_REPLACED = 4409
#: No member has this credential, and the coordinator has lost part of its past: the node should continue unchanged.
CLOSE_MEMBERSHIP_UNKNOWN = 4425
#: The coordinator ends (RFC 6455: going away).
CLOSE_ENDING = 1001
#: The agent sent a message that the protocol does not define (RFC 6455: policy violation).
CLOSE_BAD_MESSAGE = 1008
#: A message is longer than this protocol allows (RFC 6455: message too big).
CLOSE_TOO_LONG = 1009
#: The agent did not read its messages (IANA: try again later).
CLOSE_TOO_SLOW = 1013

#: Ray's tokens by epoch.
RayTokens = Annotated[dict[str, Annotated[str, Meta(max_length=LONGEST_RAY_TOKEN)]], Meta(max_length=MOST_EPOCHS)]


class Message(Struct, frozen=True, tag_field="type"):
    """One message; its ``type`` is the tag of its class."""


class Hello(Message, frozen=True, tag="hello"):
    """Agent: this node's report; first, and again after each change.

    Attributes:
        hubs: ids of the hubs that this node can use now.
        reached: the endpoint at which it reached the coordinator; empty: through the overlay.
        secret_epoch: the newest epoch of the secrets that it holds; an agent of an older release does not send it.
        attestation: the signature of a node that has an identity.
        removals: sent if the coordinator has an older list.
        ray_ports: sent by a node that chose ports for its Ray.
        takes_orders: whether the node accepts `Order`; an agent of an older release does not send it.
    """

    versions: VersionsForm = VersionsForm()
    endpoints: EndpointTexts = ()
    hubs: Items = ()
    faults: TextMap = {}
    reached: Annotated[str, Meta(max_length=MAX_ENDPOINT)] = ""
    secret_epoch: Epoch | UnsetType = UNSET
    attestation: AttestationForm | UnsetType = UNSET
    removals: RemovalsForm | UnsetType = UNSET
    ray_ports: Ports | UnsetType = UNSET
    takes_orders: bool | UnsetType = UNSET


class RayInstance(Message, frozen=True, tag="ray"):
    """Agent: the instance of this node's Ray head; empty: it runs none."""

    instance: Text64


class Seen(Message, frozen=True, tag="seen"):
    """Agent of a hub: the observed endpoints of nodes, by their id; empty: not over UDP."""

    nodes: TextMap = {}


class Silence(Message, frozen=True, tag="silence"):
    """Agent of the coordinator's own node: the nodes that do not answer over the overlay, by their id.

    The values are ``silent``, ``gone``, or empty for a node that answers again.
    """

    nodes: TextMap = {}


class ReportedPath(Struct, frozen=True):
    """A path in use, from the reporting node to another; a number that was not measured yet is None.

    The fields are those of `meshray.protocol.status.PathStatus`.
    """

    kind: PathKind = PathKind.NONE
    transport: Transport | None = None
    rtt_ms: Annotated[float, Meta(ge=0)] | None = None
    loss: Annotated[float, Meta(ge=0, le=1)] | None = None
    mtu: Annotated[int, Meta(ge=0, le=65535)] | None = None
    reason: Annotated[str, Meta(max_length=LONGEST_REASON)] = ""


class PathReport(Message, frozen=True, tag="paths"):
    """Agent: the paths that this node uses now, for the coordinator's page and metrics.

    It is sent after a change of a path, and at intervals otherwise; see `meshray.agent.status.path_report`.

    Attributes:
        site: the node's site, see `meshray.model.link_labels.site_of`; empty: not known.
        key_since: when the node's WireGuard key was created, unix seconds; None: not known.
        listens: TCP ports on which programs of this node's Ray accept connections from the overlay.
        rx_bytes: bytes received by the overlay's interface since it was created.
        tx_bytes: bytes sent by it.
        paths: by the id of the other node. Relayed pairs are not all in it.
    """

    site: Text64 = ""
    key_since: Seconds | None = None
    listens: Annotated[tuple[Port, ...], Meta(max_length=MAX_ITEMS)] = ()
    rx_bytes: Counter = 0
    tx_bytes: Counter = 0
    paths: Annotated[dict[Text64, ReportedPath], Meta(max_length=MOST_PATHS)] = {}


class PunchWanted(Message, frozen=True, tag="punch"):
    """Agent: this node wants to try direct paths to these nodes."""

    nodes: Items = ()


class Left(Message, frozen=True, tag="left"):
    """Agent: this node no longer uses its direct path to that node. Coordinator: that node no longer uses it."""

    node: Text64


class Answer(Message, frozen=True, tag="answer"):
    """Agent: the answer to `Ask`, or the error instead of it."""

    id: Word
    answer: dict[str, Any] = {}
    error: Annotated[str, Meta(max_length=_ERROR_CHARACTERS)] = ""

    def bounded(self) -> Answer:
        """Return an answer that the coordinator accepts: never longer than `MAX_ANSWER_BYTES`."""
        answer = Answer(self.id, self.answer, self.error[:_ERROR_CHARACTERS])
        if len(encode(answer)) <= MAX_ANSWER_BYTES:
            return answer
        return Answer(self.id, error=f"its answer is longer than {MAX_ANSWER_BYTES // 1024} KiB")


class OrderOutput(Message, frozen=True, tag="order_output"):
    """Agent: the next part of the output of an `Order`.

    Attributes:
        data: at most `CHUNK_BYTES` bytes, as base64.
    """

    id: Word
    data: Annotated[str, Meta(max_length=_CHUNK_CHARACTERS)]


class OrderEnd(Message, frozen=True, tag="order_end"):
    """Agent: an `Order` has ended. The fields are those of an error; all are empty if it was carried out."""

    id: Word
    code: Text64 = ""
    message: Annotated[str, Meta(max_length=_ERROR_CHARACTERS)] = ""
    hint: Annotated[str, Meta(max_length=_ERROR_CHARACTERS)] = ""


class TicketWanted(Message, frozen=True, tag="ticket"):
    """Agent: this node's ticket is out of date, because its name, address, key or roles changed."""


class Recalled(Message, frozen=True, tag="recalled"):
    """Agent: the answer to `Recall`: one message for each node of the agent's map; the last one has no node."""

    node: NodeForm | UnsetType = UNSET


class Down(Message, frozen=True, tag="down"):
    """Agent: it ends because a user requested it."""


class GivenUp(Message, frozen=True, tag="given_up"):
    """Agent: it ends and gives up the node's identity, which belongs to another machine."""


class Recall(Message, frozen=True, tag="recall"):
    """Coordinator: the agent should send its map. It comes first, and only if the agent knows a newer state."""


class WholeMap(Message, frozen=True, tag="map"):
    """Coordinator: the whole map.

    Attributes:
        journal: identifies the coordinator's journal. An agent that shows it with its revision when it connects again
            (`meshray.model.enrol.MAP_HEADER`) is sent a `Change` instead of this message.
    """

    map: MapForm
    journal: Text64 = ""


class PackedMap(Message, frozen=True, tag="packed_map"):
    """Coordinator, to an agent that accepts it: the whole map.

    Attributes:
        data: a `WholeMap`, as JSON, compressed with zlib, in base64.
        change: from that map to the newest one.
    """

    data: str
    change: ChangeForm


class Change(Message, frozen=True, tag="change"):
    """Coordinator: the changes of the map."""

    change: ChangeForm


class Secrets(Message, frozen=True, tag="secrets"):
    """Coordinator: the secrets that the agent should hold, by epoch; those before ``oldest`` are forgotten."""

    oldest: Epoch
    mesh: Annotated[dict[str, Key], Meta(max_length=MOST_EPOCHS)]
    ray: RayTokens

    def __repr__(self) -> str:
        return f"Secrets({self.oldest}, …)"


class Ticket(Message, frozen=True, tag="ticket"):
    """Coordinator: the ticket by which a coordinator that was restored from an older copy recognises the node."""

    ticket: Annotated[str, Meta(max_length=LONGEST_TICKET)]

    def __repr__(self) -> str:
        return "Ticket(…)"


class Restored(Message, frozen=True, tag="restored"):
    """Coordinator, to its own node: the report that the database was an older copy; empty: it was not."""

    text: Annotated[str, Meta(max_length=_LONGEST_REPORT)]


class TookOver(Message, frozen=True, tag="took_over"):
    """Coordinator: the address of another agent that was connected as this node; empty: there was none."""

    address: Text64


class Punch(Message, frozen=True, tag="punch"):
    """Coordinator: both nodes try the direct path between them now."""

    node: Text64


class Ask(Message, frozen=True, tag="ask"):
    """Coordinator: a question that the agent answers with `Answer`."""

    id: Word
    op: Word


class Order(Message, frozen=True, tag="order"):
    """Coordinator: an order of the mesh's administrator, which the agent carries out.

    The agent answers with any number of `OrderOutput` and one `OrderEnd`.

    Attributes:
        op: what to do, see `meshray.protocol.orders`.
        credit: how many `OrderOutput` the agent may send; `OrderCredit` raises it.
    """

    id: Word
    op: Word
    arguments: dict[str, Any] = {}
    credit: Counter = 1


class OrderCredit(Message, frozen=True, tag="order_credit"):
    """Coordinator: how many `OrderOutput` of this order the agent may send, counted from the first."""

    id: Word
    credit: Counter


class CancelOrder(Message, frozen=True, tag="cancel_order"):
    """Coordinator: the agent should stop this order; it no longer answers."""

    id: Word


FromAgent = (
    Hello
    | RayInstance
    | Seen
    | Silence
    | PathReport
    | PunchWanted
    | Left
    | Answer
    | OrderOutput
    | OrderEnd
    | TicketWanted
    | Recalled
    | Down
    | GivenUp
)
FromCoordinator = (
    Recall
    | WholeMap
    | PackedMap
    | Change
    | Secrets
    | Ticket
    | Restored
    | TookOver
    | Punch
    | Left
    | Ask
    | Order
    | OrderCredit
    | CancelOrder
)
_FROM_AGENT, _FROM_COORDINATOR = Messages(FromAgent), Messages(FromCoordinator)


def read_agent(text: str) -> FromAgent | None:
    """Return an agent's message; None if its type is not known. Raises WireError."""
    return cast("FromAgent | None", _FROM_AGENT.decode(text))


def unpacked(message: PackedMap) -> WholeMap:
    """Return the map in the message, before its change. Raises WireError."""
    unpack = zlib.decompressobj()
    try:
        text = unpack.decompress(base64.b64decode(message.data), MAX_MAP_BYTES)
    except (zlib.error, binascii.Error, ValueError) as error:
        raise WireError(f"the packed map is damaged: {error}") from None
    if not unpack.eof:
        raise WireError(f"the packed map is cut off, or longer than {MAX_MAP_BYTES // 1024 // 1024} MiB")
    return decode(text, WholeMap)


def read_coordinator(text: str) -> FromCoordinator | None:
    """Return the coordinator's message; None if its type is not known. Raises WireError."""
    return cast("FromCoordinator | None", _FROM_COORDINATOR.decode(text))
