"""The map to every connected agent: whole once, then as changes, each message serialised once for all.

Changes within a few milliseconds travel together. An agent that cannot keep up is disconnected;
the others never wait for it.

>>> publisher = Publisher(registry.map, lambda: ledger.registry.map)
>>> outbox = publisher.join("n2")
>>> await outbox.next()
'{"type":"map","map":{…}}'
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Mapping

from meshray.model.meshmap import MapChange, MeshMap, diff

#: So long changes are gathered before they are published together, seconds.
GATHER_S = 0.02
#: So many messages may wait for one agent, beyond what the system's buffers take: megabytes.
MAX_WAITING = 64

#: The credential is not accepted: this node is not, or not any more, in the mesh.
CLOSE_NOT_ACCEPTED = 4401
#: No member has this credential, and the coordinator has lost a part of its past: the node is to go on as it is.
CLOSE_CANNOT_TELL = 4425
#: Another connection of the same node took over.
CLOSE_REPLACED = 4409
#: The agent sent what the protocol does not know (RFC 6455: policy violation).
CLOSE_BAD_MESSAGE = 1008
#: A message is longer than this protocol's are (RFC 6455: message too big).
CLOSE_TOO_LONG = 1009
#: The coordinator ends (RFC 6455: going away).
CLOSE_ENDING = 1001
#: The agent did not read what was sent to it (IANA: try again later).
CLOSE_TOO_SLOW = 1013


class Outbox:
    """What waits to be sent to one agent.

    Attributes:
        has_map: whether the whole map was put in; before it no change is.
        close_code, close_reason: with what the connection is to be closed once `next` gave None.
    """

    def __init__(self, limit: int = MAX_WAITING) -> None:
        self.has_map = False
        self.close_code = 0
        self.close_reason = ""
        self._limit = limit
        self._messages: deque[str] = deque()
        self._wake = asyncio.Event()
        self._closed = asyncio.Event()

    def put(self, message: str) -> None:
        """Adds a message, or closes where too many wait already; nothing where it is closed."""
        if self.close_code:
            return
        if len(self._messages) >= self._limit:
            self.close(CLOSE_TOO_SLOW, "too many messages wait")
            return
        self._messages.append(message)
        self._wake.set()

    def close(self, code: int, reason: str) -> None:
        """Nothing further is sent. The first reason stands."""
        self._messages.clear()
        if not self.close_code:
            self.close_code, self.close_reason = code, reason
        self._wake.set()
        self._closed.set()

    async def closed(self) -> None:
        """Returns once it is closed."""
        await self._closed.wait()

    async def next(self) -> str | None:
        """The next message, when there is one; None once it is closed."""
        while not self._messages and not self.close_code:
            self._wake.clear()
            await self._wake.wait()
        return None if self.close_code else self._messages.popleft()


class Publisher:
    """Knows who is connected and what everybody was told last.

    Args:
        published: the map as it is now.
        current: the map as it is whenever this is called.
        gather_s: so long changes are gathered, seconds.
    """

    def __init__(self, published: MeshMap, current: Callable[[], MeshMap], gather_s: float = GATHER_S) -> None:
        self._current = current
        self._published = published
        self._gather_s = gather_s
        self._outboxes: dict[str, Outbox] = {}
        self._timer: asyncio.TimerHandle | None = None

    def join(self, node_id: str) -> Outbox:
        """The node's new connection; the whole map will be its first message. An older one is closed."""
        self.kick(node_id, CLOSE_REPLACED, "another connection of this node took over")
        outbox = self._outboxes[node_id] = Outbox()
        self.changed()
        return outbox

    def leave(self, node_id: str, outbox: Outbox) -> bool:
        """The connection ended. Returns False where the node has a newer one."""
        outbox.close(CLOSE_ENDING, "")
        if self._outboxes.get(node_id) is not outbox:
            return False
        del self._outboxes[node_id]
        return True

    def is_connected(self, node_id: str) -> bool:
        """Whether the node has a connection that had its first map."""
        outbox = self._outboxes.get(node_id)
        return outbox is not None and outbox.has_map

    def tell(self, node_id: str, message: Mapping[str, object]) -> None:
        """Something for this node alone; nothing where it is not there."""
        if self.is_connected(node_id):
            self._outboxes[node_id].put(json.dumps(message))

    def kick(self, node_id: str, code: int, reason: str) -> None:
        """Closes the node's connection, where it has one."""
        outbox = self._outboxes.get(node_id)
        if outbox is not None:
            outbox.close(code, reason)

    def close(self) -> None:
        """Closes every connection."""
        if self._timer is not None:
            self._timer.cancel()
        for outbox in self._outboxes.values():
            outbox.close(CLOSE_ENDING, "the coordinator ends")

    def changed(self) -> None:
        """There is something to publish, soon and together with what else comes until then."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._gather_s, self._publish)

    def _publish(self) -> None:
        self._timer = None
        old, new = self._published, self._current()
        self._published = new
        if new.revision != old.revision:
            message = _change_message(diff(old, new))
            for outbox in self._outboxes.values():
                if outbox.has_map:
                    outbox.put(message)
        newcomers = [outbox for outbox in self._outboxes.values() if not outbox.has_map]
        if newcomers:
            whole = _map_message(new)
            for outbox in newcomers:
                outbox.has_map = True
                outbox.put(whole)


def _change_message(change: MapChange) -> str:
    return json.dumps({"type": "change", "change": change.to_json()}, separators=(",", ":"))


def _map_message(whole: MeshMap) -> str:
    return json.dumps({"type": "map", "map": whole.to_json()}, separators=(",", ":"))
