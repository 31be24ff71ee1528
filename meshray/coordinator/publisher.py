"""Publish the map to every connected agent: the whole map once, then changes, each message serialised once for all.

Changes within a few milliseconds are sent together. While many bytes are being sent, changes are gathered for longer,
so that a node's entry is sent once for many changes. An agent that reads slowly gets one change from its own map to the
newest; the others never wait for it.

>>> publisher = Publisher(registry.map, lambda: ledger.registry.map)
>>> outbox = publisher.join("n2")
>>> await outbox.next()
'{"type":"map","map":{…}}'
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from meshray.model.meshmap import MeshMap, diff
from meshray.protocol.codec import encode
from meshray.protocol.connection import CLOSE_ENDING, CLOSE_REPLACED, Change, Message, WholeMap

#: The time during which changes are gathered before they are published, seconds.
GATHER_S = 0.02
#: A change waits while more than this is being sent to all agents together, but not longer than that.
BYTES_PER_S = 16 * 1024 * 1024
MAX_GATHER_S = 0.5
#: Agents that read slowly need changes from many maps. Each text may be as long as the map: the number that is kept.
MAX_TEXTS = 8
#: The number of notices of other agents that may wait for one agent; beyond it the oldest is dropped.
MAX_NOTICES = 64


class Texts:
    """The texts of messages, each created once for all agents that need it at about the same time."""

    def __init__(self) -> None:
        self._target: MeshMap | None = None
        self._texts: dict[int | None, str] = {}

    def leading(self, base: MeshMap | None, target: MeshMap) -> str:
        """Return the message that leads from one map to the other; from None: the whole map."""
        if target is not self._target:
            self._target = target
            self._texts.clear()
        key = None if base is None else base.revision
        if key not in self._texts:
            if len(self._texts) >= MAX_TEXTS:
                del self._texts[next(iter(self._texts))]
            message = WholeMap(target.form()) if base is None else Change(diff(base, target).form())
            self._texts[key] = _text(message)
        return self._texts[key]


class Outbox:
    """The messages that wait for one agent: never more than one of the map, and a few others.

    Attributes:
        instance: the instance of the agent's process; empty: it does not send one. close_code, close_reason: for
            closing the connection once `next` has returned None.
    """

    def __init__(self, texts: Texts | None = None, instance: str = "") -> None:
        self.instance = instance
        self.close_code = 0
        self.close_reason = ""
        self._texts = texts or Texts()
        # The map that the agent has once it received the messages taken, and the map that it should have.
        self._sent: MeshMap | None = None
        self._target: MeshMap | None = None
        self._messages: dict[str, str] = {}
        self._notices: dict[str, str] = {}
        self._wake = asyncio.Event()
        self._closed = asyncio.Event()

    @property
    def has_map(self) -> bool:
        """Whether the whole map was added; before that, no other message is."""
        return self._target is not None

    def publish(self, target: MeshMap) -> None:
        """Bring the agent to this map."""
        self._target = target
        self._wake.set()

    def put(self, key: str, message: str, *, is_notice: bool = False) -> None:
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
        self._wake.set()

    def close(self, code: int, reason: str) -> None:
        """Send nothing further. The first reason counts."""
        if not self.close_code:
            self.close_code, self.close_reason = code, reason
        self._wake.set()
        self._closed.set()

    async def closed(self) -> None:
        """Return once the outbox is closed."""
        await self._closed.wait()

    async def next(self) -> str | None:
        """Return the next message when there is one; None once the outbox is closed."""
        while not self.close_code:
            if self._target is not None and (self._sent is None or self._sent.revision != self._target.revision):
                message = self._texts.leading(self._sent, self._target)
                self._sent = self._target
                return message
            for waiting in (self._messages, self._notices):
                if waiting:
                    return waiting.pop(next(iter(waiting)))
            self._wake.clear()
            await self._wake.wait()
        return None


class Publisher:
    """The connected agents, and the map that each one received last.

    Args:
        published: the current map.
        current: returns the map at the time of the call.
        gather_s: how long changes are gathered, seconds.
    """

    def __init__(self, published: MeshMap, current: Callable[[], MeshMap], gather_s: float = GATHER_S) -> None:
        self._current = current
        self._published = published
        self._gather_s = gather_s
        self._texts = Texts()
        self._not_before = 0.0
        self._outboxes: dict[str, Outbox] = {}
        self._timer: asyncio.TimerHandle | None = None

    def join(self, node_id: str, instance: str = "") -> Outbox:
        """Return the outbox of the node's new connection, whose first message is the whole map. An older one is closed.

        Args:
            instance: the agent's instance; an agent that tries several addresses at once may be connected through two
                of them for a moment, and is then not replaced by another machine.
        """
        older = self._outboxes.get(node_id)
        if older is not None and instance and older.instance == instance:
            self.disconnect(node_id, CLOSE_ENDING, "the agent connected again")
        else:
            self.disconnect(node_id, CLOSE_REPLACED, "another connection of this node took over")
        outbox = self._outboxes[node_id] = Outbox(self._texts, instance)
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
            self._outboxes[node_id].put(key, encode(message), is_notice=is_notice)

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
        old, new = self._published, self._current()
        self._published = new
        newcomers = [outbox for outbox in self._outboxes.values() if not outbox.has_map]
        others = len(self._outboxes) - len(newcomers)
        for outbox in self._outboxes.values():
            outbox.publish(new)
        size = others * len(self._texts.leading(old, new)) if others and new.revision != old.revision else 0
        size += len(newcomers) * len(self._texts.leading(None, new)) if newcomers else 0
        self._not_before = asyncio.get_running_loop().time() + min(size / BYTES_PER_S, MAX_GATHER_S)


def _text(message: WholeMap | Change) -> str:
    return msgspec.json.encode(message).decode()
