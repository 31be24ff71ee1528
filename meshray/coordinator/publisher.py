"""Publish the map to every connected agent: the whole map once, then changes, each message serialised once for all.

Changes within a few milliseconds are sent together. While many bytes are being sent, or many agents connect, or
publishing takes much of the processor, changes are gathered for longer, so that a node's entry is sent once for many
changes. An agent that reads slowly, or was away for a while, gets one change from its own map to the newest; the others
never wait for it.

>>> publisher = Publisher(registry.map, lambda: ledger.registry.map)
>>> outbox = publisher.join("n2")
>>> await outbox.next()
b'{"type":"map","map":{…},"journal":"…"}'
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from meshray.coordinator.journal import Journal
from meshray.coordinator.map_messages import OLDEST, Abilities, MapMessages
from meshray.coordinator.tcp_state import TcpState
from meshray.model.meshmap import MeshMap
from meshray.protocol.codec import encode
from meshray.protocol.connection import CLOSE_ENDING, CLOSE_REPLACED, Message

#: The time during which changes are gathered before they are published, seconds.
GATHER_S = 0.02
#: A change waits while more than this is being sent to all agents together, but not longer than that.
BYTES_PER_S = 16 * 1024 * 1024
MAX_GATHER_S = 0.5
#: Publishing takes at most this part of the processor: the next change waits this many times as long as the last took.
COST_FACTOR, MAX_COST_S = 4.0, 1.0
#: While this many agents or more connect within one publication, changes are gathered for so long, seconds: each node
#: that connects is a change for all the others.
MANY_NEWCOMERS, STORM_GATHER_S = 8, 0.25
#: The number of notices of other agents that may wait for one agent; beyond it the oldest is dropped.
MAX_NOTICES = 64


class Outbox:
    """The messages that wait for one agent: never more than one of the map, and a few others.

    Attributes:
        instance: the instance of the agent's process; empty: it does not send one. close_code, close_reason: for
            closing the connection once `next` has returned None.
        on_ready: called when there may be a message to take, and when the outbox is closed.
        ping: requests a sign of life from the agent. tcp_state: returns the state of its connection, if it is known.
    """

    def __init__(self, messages: MapMessages, instance: str = "", abilities: Abilities = OLDEST) -> None:
        self.instance = instance
        self.close_code = 0
        self.close_reason = ""
        self.on_ready: Callable[[], None] = lambda: None
        self.ping: Callable[[], None] = lambda: None
        self.tcp_state: Callable[[], TcpState | None] = lambda: None
        self._map_messages = messages
        self._abilities = abilities
        # The revision that the agent has once it received the messages taken.
        self._sent: int | None = None
        self._has_map = False
        self._messages: dict[str, bytes] = {}
        self._notices: dict[str, bytes] = {}
        self._wake = asyncio.Event()
        self._closed = asyncio.Event()

    @property
    def has_map(self) -> bool:
        """Whether a map was published to this agent; before that, no other message is."""
        return self._has_map

    @property
    def has_sent_map(self) -> bool:
        """Whether the first message of the map was taken."""
        return self._sent is not None

    def publish(self) -> None:
        """Bring the agent to the newest map."""
        self._has_map = True
        self._ready()

    def put(self, key: str, message: bytes, *, is_notice: bool = False) -> None:
        """Add a message, replacing a waiting one with this key; do nothing if the outbox is closed.

        Args:
            is_notice: it may be lost: if there are too many, the oldest is dropped.
        """
        if self.close_code:
            return
        waiting = self._notices if is_notice else self._messages
        waiting[key] = message
        if is_notice and len(waiting) > MAX_NOTICES:
            del waiting[next(iter(waiting))]
        self._ready()

    def close(self, code: int, reason: str) -> None:
        """Send nothing further. The first reason counts."""
        if not self.close_code:
            self.close_code, self.close_reason = code, reason
        self._closed.set()
        self._ready()

    async def closed(self) -> None:
        """Return once the outbox is closed."""
        await self._closed.wait()

    def take(self) -> bytes | None:
        """Return the next message; None if there is none, or the outbox is closed."""
        if self.close_code:
            return None
        if self._has_map and (message := self._take_map()) is not None:
            return message
        for waiting in (self._messages, self._notices):
            if waiting:
                return waiting.pop(next(iter(waiting)))
        return None

    async def next(self) -> bytes | None:
        """Return the next message when there is one; None once the outbox is closed."""
        while not self.close_code:
            if (message := self.take()) is not None:
                return message
            self._wake.clear()
            await self._wake.wait()
        return None

    def _take_map(self) -> bytes | None:
        messages, newest = self._map_messages, self._map_messages.journal.map.revision
        if self._sent == newest:
            return None
        base = self._sent
        if base is None and self._abilities.journal == messages.journal.id:
            base = self._abilities.revision
        # An agent that was away, or reads so slowly, that the journal does not reach back to its map: a whole one.
        change = messages.change(base, self._abilities) if base is not None else None
        self._sent = newest
        return change if change is not None else messages.whole(self._abilities)

    def _ready(self) -> None:
        self._wake.set()
        self.on_ready()


class Publisher:
    """The connected agents, and the map that each one received last.

    Args:
        published: the current map.
        current: returns the map at the time of the call.
        gather_s: how long changes are gathered, seconds.
    """

    def __init__(self, published: MeshMap, current: Callable[[], MeshMap], gather_s: float = GATHER_S) -> None:
        self._current = current
        self._journal = Journal(published)
        self._gather_s = gather_s
        self._messages = MapMessages(self._journal)
        self._not_before = 0.0
        self._outboxes: dict[str, Outbox] = {}
        self._timer: asyncio.TimerHandle | None = None

    def join(self, node_id: str, instance: str = "", abilities: Abilities = OLDEST) -> Outbox:
        """Return the outbox of the node's new connection, whose first message is of the map. An older one is closed.

        Args:
            instance: the agent's instance; an agent that tries several addresses at once may be connected through two
                of them for a moment, and is then not replaced by another machine.
            abilities: the forms of the map that the agent accepts, and the map that it has.
        """
        older = self._outboxes.get(node_id)
        if older is not None and instance and older.instance == instance:
            self.disconnect(node_id, CLOSE_ENDING, "the agent connected again")
        else:
            self.disconnect(node_id, CLOSE_REPLACED, "another connection of this node took over")
        outbox = self._outboxes[node_id] = Outbox(self._messages, instance, abilities)
        self.changed()
        return outbox

    def leave(self, node_id: str, outbox: Outbox) -> bool:
        """Remove a connection that ended; return False if the node has a newer one."""
        outbox.close(CLOSE_ENDING, "")
        if self._outboxes.get(node_id) is not outbox:
            return False
        del self._outboxes[node_id]
        return True

    def is_connected(self, node_id: str) -> bool:
        """Return whether the node has a connection that has received its first map."""
        outbox = self._outboxes.get(node_id)
        return outbox is not None and outbox.has_map

    def notify(self, node_id: str, message: Message, *, is_notice: bool = False) -> None:
        """Send something to this node alone, if it is connected. Arguments as of `Outbox.put`."""
        if self.is_connected(node_id):
            key = " ".join((type(message).__name__, *(getattr(message, name, "") for name in ("id", "node"))))
            self._outboxes[node_id].put(key, encode(message).encode(), is_notice=is_notice)

    def ping(self, node_id: str) -> None:
        """Request a sign of life from the node's agent, if it is connected."""
        if self.is_connected(node_id):
            self._outboxes[node_id].ping()

    def tcp_state(self, node_id: str) -> TcpState | None:
        """Return the state of the node's TCP connection; None if it has none, or the state is not known."""
        outbox = self._outboxes.get(node_id)
        return outbox.tcp_state() if outbox is not None else None

    def disconnect(self, node_id: str, code: int, reason: str) -> None:
        """Close the node's connection, if it has one."""
        outbox = self._outboxes.get(node_id)
        if outbox is not None:
            outbox.close(code, reason)

    def close(self) -> None:
        """Close every connection."""
        if self._timer is not None:
            self._timer.cancel()
        for outbox in self._outboxes.values():
            outbox.close(CLOSE_ENDING, "the coordinator is shutting down")

    def changed(self) -> None:
        """Publish soon, together with further changes until then."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(loop.time() + self._gather_s, self._not_before), self._publish)

    def _publish(self) -> None:
        self._timer = None
        began, revision = time.thread_time(), self._journal.map.revision
        self._journal.record(self._current())
        outboxes = list(self._outboxes.values())
        newcomers = sum(not outbox.has_map for outbox in outboxes)
        is_changed = self._journal.map.revision != revision
        for outbox in outboxes:
            if is_changed or not outbox.has_map:
                outbox.publish()
        size = 0
        if is_changed and newcomers < len(outboxes):
            size += (len(outboxes) - newcomers) * len(self._messages.change(revision, OLDEST) or b"")
        if newcomers:
            size += newcomers * len(self._messages.whole(Abilities(packed=True)))
        gather_s = max(
            min(size / BYTES_PER_S, MAX_GATHER_S),
            min(COST_FACTOR * (time.thread_time() - began), MAX_COST_S),
            STORM_GATHER_S if newcomers >= MANY_NEWCOMERS else 0.0,
        )
        self._not_before = asyncio.get_running_loop().time() + gather_s
