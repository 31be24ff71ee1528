"""The messages of the agent's WebSocket, GET /v1/agent, in both directions, and the codes that close it.

    recall ◄─► recalled     only where the agent knows what the coordinator has forgotten
    map ──►  change ──► …   the map once, then whatever changed in it
         ◄── hello …        what the node is, again after each change

Each message is one JSON object in a text frame. Both sides ignore a ``type`` that they do not know, so that a newer
peer may say more; a malformed message ends the connection. Of `Hello`, `RayInstance`, `Seen` and `Silence` only the
newest counts. Examples are in docs/protocol.md.

>>> encode(Punch("5d41402abc4b2a76"))
'{"type": "punch", "node": "5d41402abc4b2a76"}'
"""

from __future__ import annotations

from typing import Annotated, Any, cast

from msgspec import UNSET, Meta, Struct, UnsetType

from meshray.protocol.codec import Messages, encode
from meshray.protocol.fields import (
    LONGEST_RAY_TOKEN,
    LONGEST_TICKET,
    MAX_ENDPOINT,
    EndpointTexts,
    Epoch,
    Items,
    Key,
    Ports,
    Text64,
    TextMap,
    Word,
)
from meshray.protocol.forms import AttestationForm, ChangeForm, MapForm, NodeForm, RemovalsForm, VersionsForm

#: Questions of `Ask`: what a node found out about itself and its peers; the node is to change its key.
SURVEY, ROTATE_KEY = "survey", "rotate_key"
#: The longest answer of one node. A peer takes about 600 bytes of a survey, so this is enough for 400 of them.
MAX_ANSWER_BYTES = 256 * 1024
#: Nobody waits longer for an answer, seconds.
MAX_WAIT_S = 15
#: A node holds at most so many epochs of the secrets.
MOST_EPOCHS = 1024
_ERROR_CHARACTERS = 300
_LONGEST_REPORT = 4096

#: The credential is not accepted: this node is not, or not any more, in the mesh.
CLOSE_NOT_ACCEPTED = 4401
#: Another connection of the same node took over.
CLOSE_REPLACED = 4409
#: No member has this credential, and the coordinator has lost a part of its past: the node is to go on as it is.
CLOSE_CANNOT_TELL = 4425
#: The coordinator ends (RFC 6455: going away).
CLOSE_ENDING = 1001
#: The agent sent what the protocol does not know (RFC 6455: policy violation).
CLOSE_BAD_MESSAGE = 1008
#: A message is longer than this protocol's are (RFC 6455: message too big).
CLOSE_TOO_LONG = 1009
#: The agent did not read what was sent to it (IANA: try again later).
CLOSE_TOO_SLOW = 1013

#: Ray's tokens by epoch.
RayTokens = Annotated[dict[str, Annotated[str, Meta(max_length=LONGEST_RAY_TOKEN)]], Meta(max_length=MOST_EPOCHS)]


class Message(Struct, frozen=True, tag_field="type"):
    """One message; its ``type`` is the tag of its class."""


class Hello(Message, frozen=True, tag="hello"):
    """Agent: what this node is; first, and again after each change.

    Attributes:
        hubs: ids of the hubs that this node can use now.
        reached: where it reached the coordinator; empty: through the overlay.
        secret_epoch: the newest epoch of the secrets that it holds; an agent of an older release does not send it.
        attestation: of a node that has an identity.
        removals: where the coordinator has an older list.
        ray_ports: of a node that chose ports for its Ray.
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


class RayInstance(Message, frozen=True, tag="ray"):
    """Agent: the instance of this node's Ray head; empty: it runs none."""

    instance: Text64


class Seen(Message, frozen=True, tag="seen"):
    """Agent of a hub: where it sees nodes, by their id; empty: not over UDP."""

    nodes: TextMap = {}


class Silence(Message, frozen=True, tag="silence"):
    """Agent of the coordinator's own node: which nodes do not answer over the overlay, by their id: ``silent``,
    ``gone``, or empty for one that answers again."""

    nodes: TextMap = {}


class PunchWanted(Message, frozen=True, tag="punch"):
    """Agent: this node wants to try direct paths to these nodes."""

    nodes: Items = ()


class Left(Message, frozen=True, tag="left"):
    """Agent: this node no longer uses its direct path to that node. Coordinator: that node no longer uses it."""

    node: Text64


class Answer(Message, frozen=True, tag="answer"):
    """Agent: the answer to `Ask`, or why there is none."""

    id: Word
    answer: dict[str, Any] = {}
    error: Annotated[str, Meta(max_length=_ERROR_CHARACTERS)] = ""

    def bounded(self) -> Answer:
        """Return an answer that the coordinator takes: never longer than `MAX_ANSWER_BYTES`."""
        answer = Answer(self.id, self.answer, self.error[:_ERROR_CHARACTERS])
        if len(encode(answer)) <= MAX_ANSWER_BYTES:
            return answer
        return Answer(self.id, error=f"its answer is longer than {MAX_ANSWER_BYTES // 1024} KiB")


class TicketWanted(Message, frozen=True, tag="ticket"):
    """Agent: this node's ticket is out of date, because its name, address, key or roles changed."""


class Recalled(Message, frozen=True, tag="recalled"):
    """Agent: the answer to `Recall`: one message for each node of the agent's map; the last one has no node."""

    node: NodeForm | UnsetType = UNSET


class Down(Message, frozen=True, tag="down"):
    """Agent: it ends because a user said so."""


class GivenUp(Message, frozen=True, tag="given_up"):
    """Agent: it ends and gives up the node's identity, which belongs to another machine."""


class Recall(Message, frozen=True, tag="recall"):
    """Coordinator: the agent is to send its map. Before anything else, and only where the agent knows a newer state."""


class WholeMap(Message, frozen=True, tag="map"):
    """Coordinator: the whole map, once."""

    map: MapForm


class Change(Message, frozen=True, tag="change"):
    """Coordinator: what changed in the map."""

    change: ChangeForm


class Secrets(Message, frozen=True, tag="secrets"):
    """Coordinator: the secrets that the agent is to hold, by epoch; those before ``oldest`` are forgotten."""

    oldest: Epoch
    mesh: Annotated[dict[str, Key], Meta(max_length=MOST_EPOCHS)]
    ray: RayTokens

    def __repr__(self) -> str:
        return f"Secrets({self.oldest}, …)"


class Ticket(Message, frozen=True, tag="ticket"):
    """Coordinator: by this ticket a coordinator that was put back from an older copy knows the node again."""

    ticket: Annotated[str, Meta(max_length=LONGEST_TICKET)]

    def __repr__(self) -> str:
        return "Ticket(…)"


class Restored(Message, frozen=True, tag="restored"):
    """Coordinator, to its own node: the database was an older copy; empty: it was not."""

    text: Annotated[str, Meta(max_length=_LONGEST_REPORT)]


class TookOver(Message, frozen=True, tag="took_over"):
    """Coordinator: the address from which another agent was connected as this node; empty: there was none."""

    address: Text64


class Punch(Message, frozen=True, tag="punch"):
    """Coordinator: both nodes try the direct path between them now."""

    node: Text64


class Ask(Message, frozen=True, tag="ask"):
    """Coordinator: a question that the agent answers with `Answer`."""

    id: Word
    op: Word


FromAgent = (
    Hello | RayInstance | Seen | Silence | PunchWanted | Left | Answer | TicketWanted | Recalled | Down | GivenUp
)
FromCoordinator = Recall | WholeMap | Change | Secrets | Ticket | Restored | TookOver | Punch | Left | Ask
_FROM_AGENT, _FROM_COORDINATOR = Messages(FromAgent), Messages(FromCoordinator)


def read_agent(text: str) -> FromAgent | None:
    """Return an agent's message; None where its type is not known. Raises WireError."""
    return cast("FromAgent | None", _FROM_AGENT.decode(text))


def read_coordinator(text: str) -> FromCoordinator | None:
    """Return the coordinator's message; None where its type is not known. Raises WireError."""
    return cast("FromCoordinator | None", _FROM_COORDINATOR.decode(text))
