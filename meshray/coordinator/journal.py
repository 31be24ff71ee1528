"""The last changes of the map, from which every agent's difference is made, however far behind the agent is (pure).

    step 7 ► 9     step 9 ► 10     step 10 ► 14
    {n2: old n2}   {n3: None}      {n2: n2 as of 10}        since(9) = {n3: None, n2: n2 as of 10}

Each step keeps the entries that it replaced. An agent that connects again shows the journal's id and its revision, and
is sent what changed since. The journal lives in memory: a restarted coordinator has another id and sends whole maps.

>>> journal = Journal(registry.map)
>>> journal.record(later.map)
>>> journal.since(registry.map.revision).nodes
{'n2': Node(…)}
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from meshray.model.attestation import Removals
from meshray.model.meshmap import MeshMap, changed_nodes
from meshray.model.node import Node

#: The number of replaced entries that are kept. A restart of 5,000 nodes changes each about three times; an entry takes
#: about 1 KB.
MAX_ENTRIES = 20_000


@dataclass(frozen=True)
class Past:
    """What differs between an earlier map and the newest one, as it was in the earlier one.

    Attributes:
        nodes: the replaced entries; None: the node was not in the map.
    """

    revision: int
    nodes: Mapping[str, Node | None]
    mark: str
    removals: Removals | None

    @classmethod
    def nothing(cls, mesh_map: MeshMap) -> Past:
        """Return the past of a map that is the newest one."""
        return cls(mesh_map.revision, {}, mesh_map.mark, mesh_map.removals)


class Journal:
    """The newest map, and the changes that led to it.

    Attributes:
        id: identifies this journal; random.
        map: the newest map.
    """

    def __init__(self, mesh_map: MeshMap, max_entries: int = MAX_ENTRIES) -> None:
        self.id = secrets.token_hex(8)
        self.map = mesh_map
        self._max_entries = max_entries
        self._steps: deque[Past] = deque()
        self._entries = 0

    def record(self, mesh_map: MeshMap) -> None:
        """Make this the newest map. Forget the oldest steps if there are too many entries."""
        old, self.map = self.map, mesh_map
        if mesh_map.revision == old.revision:
            return
        before = {key: old.nodes.get(key) for key in changed_nodes(old, mesh_map)}
        self._steps.append(Past(old.revision, before, old.mark, old.removals))
        self._entries += len(before)
        while self._entries > self._max_entries:
            self._entries -= len(self._steps.popleft().nodes)

    def since(self, revision: int) -> Past | None:
        """Return what changed since this revision; None if the journal does not reach back to it."""
        if revision == self.map.revision:
            return Past.nothing(self.map)
        nodes: dict[str, Node | None] = {}
        for step in reversed(self._steps):
            nodes.update(step.nodes)
            if step.revision == revision:
                current = self.map.nodes
                differing = {key: node for key, node in nodes.items() if current.get(key) != node}
                return Past(revision, differing, step.mark, step.removals)
            if step.revision < revision:
                break
        return None
