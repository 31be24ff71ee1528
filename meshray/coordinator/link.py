"""One agent's WebSocket: the map and its changes out, reports in.

    server → {"type": "recall"}                     only where the agent knows what the coordinator has forgotten
    agent  → {"type": "recalled", "node": {…}}      one for each node of its map; the last one has no node
    server → {"type": "map", "map": {…}}            first, once
    server → {"type": "change", "change": {…}}      then, whenever something changed
    agent  → {"type": "hello", "versions": {…}, "endpoints": […], "listen_port": N}
    agent  → {"type": "ray", "instance": "…"}
    agent  → {"type": "ticket"}                     server → {"type": "ticket", "ticket": "…"}, for it to keep
    server → {"type": "restored", "text": "…"}      to the coordinator's own machine; empty: nothing to say
    hub    → {"type": "seen", "nodes": {id: "host:port" or ""}}
    agent  → {"type": "down"}                       before it ends because a person said so
    agent  → {"type": "punch", "nodes": [id, …]}    server → both: {"type": "punch", "node": id}
    agent  → {"type": "left", "node": id}           server → the other: {"type": "left", "node": id}
    server → {"type": "ask", …}                     agent → {"type": "answer", …}, see `meshray.model.question`

Unknown types are ignored, so that a newer agent may say more. What is malformed ends the connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from aiohttp import WSMsgType, web

from meshray.coordinator.admission import UnknownError
from meshray.coordinator.publisher import (
    CLOSE_BAD_MESSAGE,
    CLOSE_CANNOT_TELL,
    CLOSE_ENDING,
    CLOSE_NOT_ACCEPTED,
    CLOSE_TOO_LONG,
    CLOSE_TOO_SLOW,
    Outbox,
)
from meshray.coordinator.recovery import CannotTell
from meshray.coordinator.service import Service
from meshray.errors import MeshrayError, RefusedError
from meshray.model import wire
from meshray.model.address import Endpoint
from meshray.model.enrol import TICKET_HEADER
from meshray.model.node import Node, Versions
from meshray.model.question import MAX_ANSWER_BYTES, Answer
from meshray.runtime.tasks import Tasks

#: Of every message but an answer.
MAX_MESSAGE_BYTES = 64 * 1024
#: Each node of a map that was asked for must come within this, seconds.
RECALL_S = 5.0
#: A mesh has no more nodes than the smallest prefix has addresses.
MAX_RECALLED = 65536
#: So many other messages may come in between.
MAX_EARLY = 100
#: A ping this often, an answer within half of it: a silent agent is offline after 30 s.
HEARTBEAT_S = 20.0
#: One message must be on its way within this; else the agent is not reading.
SEND_S = 20.0
#: How long the other side gets for its half of the closing handshake.
CLOSE_S = 2.0

_log = logging.getLogger(__name__)


async def serve_agent(service: Service, request: web.Request, credential: str) -> web.WebSocketResponse:
    """Talks to one agent until either side ends it."""
    # A map compresses to a quarter, but every connection's compressor would hold 300 KB.
    socket = web.WebSocketResponse(
        heartbeat=HEARTBEAT_S, max_msg_size=MAX_ANSWER_BYTES, compress=False, timeout=CLOSE_S
    )
    await socket.prepare(request)
    link = _Link(service, socket, request)
    try:
        member = await service.recovery.admit(credential, request.headers, link.recall)
        node_id = member.node.id
        outbox = await service.connect(node_id)
    except (UnknownError, RefusedError):
        await link.close(CLOSE_NOT_ACCEPTED, "this node was removed from the mesh")
        return socket
    except CannotTell as error:
        await link.close(CLOSE_CANNOT_TELL, error.message)
        return socket
    except wire.WireError as error:
        await link.close(CLOSE_BAD_MESSAGE, error.message)
        return socket
    except (MeshrayError, ConnectionError, asyncio.TimeoutError) as error:
        _log.warning("an agent could not be let in: %s", error)
        await link.close(CLOSE_ENDING, "try again")
        return socket
    both_ways = Tasks()
    both_ways.start(link.send(node_id, outbox), f"to {node_id}")
    both_ways.start(link.receive(node_id, outbox), f"from {node_id}")
    try:
        await outbox.closed()
    finally:
        # Before the closing handshake: aiohttp skips it while somebody still waits for a message,
        # and an agent that is busy just then would not learn why it was closed.
        await both_ways.close()
        await service.disconnect(node_id, outbox)
    await link.close(outbox.close_code, outbox.close_reason)
    return socket


class _Link:
    def __init__(self, service: Service, socket: web.WebSocketResponse, request: web.Request) -> None:
        self._service = service
        self._socket = socket
        self._request = request
        self._early: list[str] = []

    async def recall(self) -> list[Node]:
        """The nodes of the agent's map. What it says of itself meanwhile is kept for `receive`."""
        await self._socket.send_str('{"type":"recall"}')
        nodes: list[Node] = []
        while True:
            frame = await self._socket.receive(timeout=RECALL_S)
            if frame.type is not WSMsgType.TEXT:
                raise ConnectionError("the agent went away while it told its map")
            text = frame.data
            message = wire.decode(text)
            if message.get("type") != "recalled":
                self._early.append(text)
                if len(self._early) > MAX_EARLY:
                    raise wire.WireError("the map was asked for, and other messages came")
            elif "node" not in message:
                return nodes
            elif len(nodes) < MAX_RECALLED:
                nodes.append(_node(wire.mapping(message, "node")))

    async def send(self, node_id: str, outbox: Outbox) -> None:
        """Until the outbox is closed."""
        is_first = True
        try:
            while (message := await outbox.next()) is not None:
                await asyncio.wait_for(self._socket.send_str(message), SEND_S)
                if is_first:
                    is_first = False
                    self._service.tell_ticket(node_id, self._request.headers.get(TICKET_HEADER, ""))
                    self._service.tell_restored(node_id)
                    await self._service.map_arrived(node_id)
        except asyncio.TimeoutError:
            outbox.close(CLOSE_TOO_SLOW, "the agent does not read")
        except ConnectionError:
            pass
        except Exception:
            _log.exception("node %s: the map could not be sent", node_id)
        finally:
            outbox.close(CLOSE_ENDING, "")

    async def receive(self, node_id: str, outbox: Outbox) -> None:
        """Until the socket is closed; then closes the outbox."""
        try:
            for text in self._early:
                await self._take(node_id, wire.decode(text))
            async for message in self._socket:
                if message.type is not WSMsgType.TEXT:
                    raise wire.WireError("only text messages are part of this protocol")
                value = wire.decode(message.data)
                if len(message.data) > MAX_MESSAGE_BYTES and value.get("type") != "answer":
                    outbox.close(CLOSE_TOO_LONG, f"a message has more than {MAX_MESSAGE_BYTES // 1024} KiB")
                    return
                await self._take(node_id, value)
        except UnknownError:
            outbox.close(CLOSE_NOT_ACCEPTED, "this node was removed from the mesh")
        except MeshrayError as error:
            _log.warning("node %s: %s", node_id, error.message)
            outbox.close(CLOSE_BAD_MESSAGE, error.message)
        except ConnectionError:
            pass
        except Exception:
            _log.exception("node %s: a report could not be taken", node_id)
        finally:
            outbox.close(CLOSE_ENDING, "")

    async def close(self, code: int, reason: str) -> None:
        """Politely if the other side answers soon, else at once."""
        try:
            # A close frame holds at most 125 bytes, two of them for the code.
            message = reason.encode()[:120]
            await asyncio.wait_for(self._socket.close(code=code, message=message), 2 * CLOSE_S)
        except (asyncio.TimeoutError, ConnectionError):
            if self._request.transport is not None:
                self._request.transport.abort()

    async def _take(self, node_id: str, message: Mapping[str, object]) -> None:
        kind = wire.text(message, "type", 32)
        if kind == "hello":
            versions = Versions.from_json(wire.mapping(message, "versions"))
            endpoints = tuple(Endpoint.parse(item) for item in wire.texts(message, "endpoints"))
            await self._service.reported(node_id, versions, endpoints, wire.texts(message, "hubs"))
        elif kind == "down":
            await self._service.taken_down(node_id)
        elif kind == "ticket":
            self._service.tell_ticket(node_id)
        elif kind == "ray":
            await self._service.ray_started(node_id, wire.text(message, "instance", 64))
        elif kind == "seen":
            seen = wire.text_map(message, "nodes")
            await self._service.saw(
                node_id, {key: Endpoint.parse(text) if text else None for key, text in seen.items()}
            )
        elif kind == "punch":
            self._service.punch(node_id, wire.texts(message, "nodes"))
        elif kind == "left":
            self._service.left_direct(node_id, wire.text(message, "node", 64))
        elif kind == "answer":
            self._service.answered(node_id, Answer.from_json(message))


def _node(value: Mapping[str, object]) -> Node:
    try:
        return Node.from_json(value)
    except ValueError as error:
        raise wire.WireError(f"node: {error}") from None
