"""One agent's WebSocket: it sends the map and its changes, and receives reports.

`meshray.protocol.connection` defines the messages. A malformed message ends the connection.

Of hello, ray, seen and silence only the newest counts: while a node's budget (`meshray.coordinator.budgets`) is used up
they wait and replace one another. Messages beyond the budget are read later; punch and left are dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import TypeVar

from aiohttp import WSMsgType, web
from msgspec import UNSET

from meshray.coordinator.admission import UnknownError
from meshray.coordinator.map_messages import Abilities
from meshray.coordinator.message_writer import MessageWriter
from meshray.coordinator.publisher import Outbox
from meshray.coordinator.reports import Reports
from meshray.coordinator.restore.recovery import MembershipUnknown
from meshray.coordinator.service import Service
from meshray.errors import MeshrayError, RefusedError
from meshray.linux.tasks import Tasks
from meshray.model.address import Endpoint
from meshray.model.attestation import Attestation, Removals
from meshray.model.enrol import INSTANCE_HEADER, LONGEST_INSTANCE, MAP_HEADER, TICKET_HEADER
from meshray.model.node import Node, Versions
from meshray.model.ray_ports import ports_of_node
from meshray.protocol.codec import WireError, encode, optional
from meshray.protocol.connection import (
    CLOSE_BAD_MESSAGE,
    CLOSE_ENDING,
    CLOSE_MEMBERSHIP_UNKNOWN,
    CLOSE_NOT_ACCEPTED,
    CLOSE_TOO_LONG,
    CLOSE_TOO_SLOW,
    MAX_ANSWER_BYTES,
    Answer,
    Down,
    FromAgent,
    GivenUp,
    Hello,
    Left,
    OrderEnd,
    OrderOutput,
    PathReport,
    PunchWanted,
    RayInstance,
    Recall,
    Recalled,
    Seen,
    Silence,
    TicketWanted,
    read_agent,
)
from meshray.protocol.fields import MAX_ENDPOINT, MAX_ITEMS

#: The limit of every message except an answer.
MAX_MESSAGE_BYTES = 64 * 1024
#: Each node of a requested map must arrive within this, seconds.
RECALL_S = 5.0
#: A mesh has no more nodes than the smallest prefix has addresses. 32 MiB hold a map of 40,000 nodes, as in the agent.
MAX_RECALLED, MAX_RECALLED_BYTES = 65536, 32 * 1024 * 1024
#: The whole map must arrive within this, seconds: other nodes wait for it.
RECALL_ALL_S = 20.0
#: This many other messages may come in between.
MAX_EARLY = 100
#: The interval of pings; an answer must come within half of it: a silent agent is offline after 30 s.
HEARTBEAT_S = 20.0
#: The time that the other side has for its half of the closing handshake.
CLOSE_S = 2.0

T = TypeVar("T")

_log = logging.getLogger(__name__)


async def serve_agent(
    service: Service,
    request: web.Request,
    credential: str,
    admitted: Callable[[str], None],
    map_sent: Callable[[], None],
) -> web.WebSocketResponse:
    """Serve one agent until either side ends the connection.

    Args:
        admitted: called with the node's id once the agent is known to be a member's.
        map_sent: called once its first map was written.
    """
    # A map compresses to a quarter, but every connection's compressor would take 300 KB.
    websocket = web.WebSocketResponse(
        heartbeat=HEARTBEAT_S, max_msg_size=MAX_ANSWER_BYTES, compress=False, timeout=CLOSE_S
    )
    await websocket.prepare(request)
    connection = _AgentConnection(service, websocket, request)
    try:
        member = await service.recovery.admit(credential, request.headers, connection.recall_in_time)
        node_id = member.node.id
        admitted(node_id)
        await asyncio.sleep(service.budgets.connection_wait_s(node_id))
        abilities = Abilities.of(request.headers.get(MAP_HEADER, ""))
        outbox = await service.connect(node_id, connection.instance, request.remote or "", abilities)
    except (UnknownError, RefusedError):
        await connection.close(CLOSE_NOT_ACCEPTED, "this node was removed from the mesh")
        return websocket
    except MembershipUnknown as error:
        await connection.close(CLOSE_MEMBERSHIP_UNKNOWN, error.message)
        return websocket
    except WireError as error:
        await connection.close(CLOSE_BAD_MESSAGE, error.message)
        return websocket
    except (MeshrayError, ConnectionError, asyncio.TimeoutError) as error:
        _log.warning("the connection of an agent could not be accepted: %s", error)
        await connection.close(CLOSE_ENDING, "try again")
        return websocket
    directions = Tasks()
    directions.start(connection.send(node_id, outbox, map_sent), f"to {node_id}")
    directions.start(connection.receive(node_id, outbox), f"from {node_id}")
    directions.start(connection.apply(node_id, outbox), f"reports of {node_id}")
    try:
        await outbox.closed()
    finally:
        # This precedes the closing handshake: aiohttp skips the handshake while a task still waits for a message, and
        # an agent that is busy at that moment would not learn why the connection was closed.
        await directions.close()
        await service.disconnect(node_id, outbox, ended=connection.has_ended)
    await connection.close(outbox.close_code, outbox.close_reason)
    return websocket


class _AgentConnection:
    def __init__(self, service: Service, websocket: web.WebSocketResponse, request: web.Request) -> None:
        self._service = service
        self._socket = websocket
        self._request = request
        self._early: list[FromAgent] = []
        self._reports = Reports()
        self._observed: dict[str, Endpoint | None] = {}
        self._silence: dict[str, str] = {}
        #: The agent's machine closed the connection without a goodbye: its process ended.
        self.has_ended = False
        header = request.headers.get(INSTANCE_HEADER, "")
        self.instance = header if header.isalnum() and len(header) <= LONGEST_INSTANCE else ""

    async def recall_in_time(self) -> list[Node]:
        """Receive the nodes of the agent's map. Its reports meanwhile are kept for `receive`."""
        return await asyncio.wait_for(self._recall(), RECALL_ALL_S)

    async def _recall(self) -> list[Node]:
        await self._socket.send_str(encode(Recall()))
        nodes: list[Node] = []
        size = early = 0
        while True:
            frame = await self._socket.receive(timeout=RECALL_S)
            if frame.type is not WSMsgType.TEXT:
                raise ConnectionError("the agent disconnected while it sent its map")
            message = read_agent(frame.data)
            if not isinstance(message, Recalled):
                early += 1
                self._early += [message] if message is not None else []
                if early > MAX_EARLY or len(frame.data) > MAX_MESSAGE_BYTES:
                    raise WireError("the agent's map was requested, but other messages came")
            elif message.node is UNSET:
                return nodes
            elif len(nodes) < MAX_RECALLED and (size := size + len(frame.data)) < MAX_RECALLED_BYTES:
                # It will report its current faults again.
                nodes.append(replace(Node.of(message.node), faults={}))

    async def send(self, node_id: str, outbox: Outbox, map_sent: Callable[[], None]) -> None:
        """Send until the outbox is closed."""

        async def first_map_sent() -> None:
            map_sent()
            self._service.send_ticket(node_id, self._request.headers.get(TICKET_HEADER, ""))
            self._service.secrets.send_first(node_id)
            self._service.publish_restored(node_id)
            self._service.faults.notify_taken_over(node_id, self.instance)
            await self._service.map_received(node_id)

        try:
            if self._request.transport is not None:
                await MessageWriter(outbox, self._request.transport).run(first_map_sent)
        except asyncio.TimeoutError:
            outbox.close(CLOSE_TOO_SLOW, "the agent does not read")
        except ConnectionError:
            pass
        except Exception:
            _log.exception("node %s: the map could not be sent", node_id)
        finally:
            outbox.close(CLOSE_ENDING, "")

    async def receive(self, node_id: str, outbox: Outbox) -> None:
        """Receive until the socket is closed; then close the outbox."""
        with self._closing(node_id, outbox):
            for early in self._early:
                await self._take(node_id, early)
            while (message := await self._socket.receive()).type not in (WSMsgType.CLOSE, WSMsgType.CLOSING):
                if message.type is WSMsgType.BINARY:
                    raise WireError("only text messages are part of this protocol")
                if message.type is not WSMsgType.TEXT:
                    self.has_ended = _closed_by_machine(self._socket.exception())
                    return
                value = read_agent(message.data)
                if isinstance(value, OrderOutput | OrderEnd) and self._service.orders.take(node_id, value):
                    continue  # The order's credit limits these messages instead of the budget.
                if len(message.data) > MAX_MESSAGE_BYTES and not isinstance(value, Answer):
                    outbox.close(CLOSE_TOO_LONG, f"a message has more than {MAX_MESSAGE_BYTES // 1024} KiB")
                    return
                if value is not None:
                    await self._take(node_id, value)
                if wait_s := self._service.budgets.message_wait_s(node_id, len(message.data)):
                    await asyncio.sleep(wait_s)

    async def apply(self, node_id: str, outbox: Outbox) -> None:
        """Apply the received reports as fast as the node's budget allows, until cancelled."""
        with self._closing(node_id, outbox):
            while True:
                apply = await self._reports.next()
                await apply()
                await asyncio.sleep(self._service.report_wait_s(node_id))

    @contextlib.contextmanager
    def _closing(self, node_id: str, outbox: Outbox) -> Iterator[None]:
        """Close the outbox when this ends, with the reason for the end."""
        try:
            yield
        except UnknownError:
            outbox.close(CLOSE_NOT_ACCEPTED, "this node was removed from the mesh")
        except MeshrayError as error:
            _log.warning("node %s: %s", node_id, error.message)
            outbox.close(CLOSE_BAD_MESSAGE, error.message)
        except ConnectionError:
            pass
        except Exception:
            _log.exception("node %s: a report could not be processed", node_id)
        finally:
            outbox.close(CLOSE_ENDING, "")

    async def close(self, code: int, reason: str) -> None:
        """Close with a handshake if the other side answers soon, else at once."""
        try:
            # A close frame contains at most 125 bytes, two of them for the code.
            message = reason.encode()[:120]
            await asyncio.wait_for(self._socket.close(code=code, message=message), 2 * CLOSE_S)
        except (asyncio.TimeoutError, ConnectionError):
            if self._request.transport is not None:
                self._request.transport.abort()

    async def _take(self, node_id: str, message: FromAgent) -> None:
        match message:
            case Hello():
                self._take_hello(node_id, message)
            case Down():
                await self._service.taken_down(node_id)
            case GivenUp():
                await self._service.faults.given_up(node_id, self.instance)
            case TicketWanted():
                self._service.send_ticket(node_id)
            case RayInstance(instance):
                self._reports.put("ray", lambda: self._service.ray_started(node_id, instance))
            case Seen(nodes):
                self._observed.update(
                    {
                        key: _endpoint(text) if text else None
                        for key, text in nodes.items()
                        if self._service.has_node(key)
                    }
                )
                self._put_parts("seen", self._observed, lambda part: self._service.endpoints_observed(node_id, part))
            case Silence(nodes):
                self._silence.update({key: text for key, text in nodes.items() if self._service.has_node(key)})
                self._put_parts("silence", self._silence, lambda part: self._service.silence_reported(node_id, part))
            case PathReport():
                # It changes no map: reading it is all that it costs, and the budget of messages limits that.
                self._service.observations.take(node_id, message)
            case _:
                self._pass_on(node_id, message)

    def _pass_on(self, node_id: str, message: FromAgent) -> None:
        """Forward what concerns other agents, and change no stored state."""
        match message:
            case PunchWanted(nodes):
                self._service.notices.punch(node_id, nodes)
            case Left(node):
                self._service.notices.left_direct(node_id, node)
            case Answer():
                self._service.answered(node_id, message)

    def _put_parts(self, kind: str, waiting: dict[str, T], apply: Callable[[dict[str, T]], Awaitable[None]]) -> None:
        """Apply these entries in parts, so that no other node waits for long."""

        async def apply_part() -> None:
            part = {key: waiting.pop(key) for key in list(waiting)[:MAX_ITEMS]}
            if waiting:
                self._put_parts(kind, waiting, apply)
            await apply(part)

        self._reports.put(kind, apply_part)

    def _take_hello(self, node_id: str, message: Hello) -> None:
        versions = Versions.of(message.versions)
        endpoints = tuple(map(Endpoint.parse, message.endpoints))
        reached = Endpoint.parse(message.reached) if message.reached else None
        epoch = None if message.secret_epoch is UNSET else message.secret_epoch
        attestation, removals = optional(Attestation.of, message.attestation), optional(Removals.of, message.removals)
        ports = optional(ports_of_node, message.ray_ports) or {}
        accepts = optional(bool, message.takes_orders)
        self._service.orders.announced(node_id, accepts)

        async def apply() -> None:
            await self._service.reported(node_id, versions, endpoints, message.hubs, reached)
            await self._service.report_faults(node_id, message.faults)
            await self._service.report_epoch(node_id, epoch)
            await self._service.report_options(node_id, ports, no_remote=accepts is False)
            if attestation is not None:
                await self._service.attested(node_id, attestation)
            if removals is not None:
                await self._service.learn(removals)

        self._reports.put("hello", apply)


def _closed_by_machine(error: BaseException | None) -> bool:
    """Return whether the other machine closed a connection that ended without a closing frame.

    Otherwise it was given up here because nothing arrived for too long (`HEARTBEAT_S`, or the kernel's own timeout).
    """
    return error is None or isinstance(error, ConnectionResetError)


def _endpoint(text: str) -> Endpoint:
    if len(text) > MAX_ENDPOINT:
        raise WireError(f"an endpoint has at most {MAX_ENDPOINT} characters")
    return Endpoint.parse(text)
