"""The time since which each node is in its current state, as far as this agent has observed a change."""

from __future__ import annotations

import time
from collections.abc import Callable

from meshray.model.meshmap import MeshMap
from meshray.model.node import Node

_State = tuple[bool, bool, bool, str]


class StateTimes:
    """The times at which the nodes' states in the map last changed.

    A node that was there before this agent started has no time: its state may be older.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._known: dict[str, tuple[_State, float | None]] = {}

    def record(self, before: MeshMap, now: MeshMap) -> None:
        """Record the changes of a new map."""
        for node in now.nodes.values():
            state = (node.online, node.down, node.drained, node.silence)
            known = self._known.get(node.id)
            if known is None:
                self._known[node.id] = (state, self._clock() if before.nodes and node.id not in before.nodes else None)
            elif known[0] != state:
                self._known[node.id] = (state, self._clock())
        for node_id in self._known.keys() - now.nodes.keys():
            del self._known[node_id]

    def since(self, node: Node) -> float | None:
        """Return unix seconds; None if the state is older than this agent."""
        return self._known.get(node.id, (None, None))[1]
