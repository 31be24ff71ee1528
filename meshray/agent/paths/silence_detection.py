"""Detect and report within five seconds, in a mesh of up to 150 nodes, that a node does not answer over the overlay.

    every node ──ping each 1.5 s──► the coordinator's node
                                       │ none for 2.4 s: does its machine refuse a connection?
                                       ▼
                                    silent ──► map ──► every node probes it too ──► holds its connections there
                                       │
                                       └─ gone ──► map ──► the head informs Ray; every node closes its connections there

A node that hears nothing from the coordinator's node suspects all others as well.
`meshray.agent.paths.silence_decision` decides.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from meshray.agent.paths.prober import Prober
from meshray.agent.paths.silence_decision import BEAT_S, MACHINE_TIMEOUT_S, Contact, Rhythm
from meshray.agent.state import NodeState
from meshray.linux.overlay_netns import machine_answers
from meshray.linux.tasks import Tasks
from meshray.model.meshmap import MeshMap
from meshray.model.node import COORDINATOR, GONE, SILENT, STATIC, Node

log = logging.getLogger(__name__)

_CHECK_S = 0.25


class SilenceWatch:
    """The signs of life of the other nodes.

    Args:
        is_direct: returns whether a direct path carries data to this node: that path is monitored more closely
            elsewhere.
        changed: called when a node becomes silent, is gone, or answers again.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        state: NodeState,
        prober: Prober,
        is_direct: Callable[[Node], bool],
        changed: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._is_direct = is_direct
        self._prober = prober
        self._changed = changed
        self._clock = clock
        self._contacts: dict[str, Contact] = {}
        self._last_probe: dict[str, float] = {}
        self._beat_answered: float | None = None
        self._watchable = _Watchable(None)
        self._tasks = Tasks()

    def is_silent(self, node: Node) -> bool:
        """Return whether this node does not answer, as far as this node knows."""
        contact = self._contacts.get(node.id)
        return contact is not None and contact.silent and not self._is_direct(node)

    def silent_s(self, node: Node) -> float | None:
        """Return for how long this node has not answered, seconds; None if it answers."""
        return self._clock() - self._contacts[node.id].heard if self.is_silent(node) else None

    def is_gone(self, node: Node) -> bool:
        """Return whether this node will not return as it was."""
        contact = self._contacts.get(node.id)
        return contact is not None and contact.gone and not self._is_direct(node)

    def verdicts(self) -> Mapping[str, str]:
        """Return ``silent`` or ``gone`` by node id, for the coordinator; other nodes are omitted."""
        return _verdicts(self._contacts)

    def node_changed(self, old: Node | None, new: Node) -> None:
        """Handle a changed entry of a node in the map."""
        contact = self._contacts.get(new.id)
        if contact is not None and new.ended and not (old is not None and old.ended):
            now = self._clock()
            self._contacts[new.id] = self._updated(new, contact, now).closed(now, self._rhythm)

    async def run(self) -> None:
        """Watch until cancelled."""
        self._tasks.start(self._beat(), "signs of life")
        try:
            while True:
                self._check()
                await asyncio.sleep(_CHECK_S)
        finally:
            await self._tasks.close()

    async def _beat(self) -> None:
        while True:
            began = self._clock()
            coordinator = self._state.map.coordinator
            is_other = coordinator is not None and coordinator.id != self._state.me.id
            if coordinator is not None and is_other:
                answer = await self._prober.round_trip(coordinator.ip, BEAT_S)
                self._beat_answered = self._clock() if answer is not None else self._beat_answered
            await asyncio.sleep(max(0.0, self._rhythm.beat_s - (self._clock() - began)))

    @property
    def _rhythm(self) -> Rhythm:
        return Rhythm.of(len(self._state.map.nodes))

    def _check(self) -> None:
        now, before, rhythm = self._clock(), self._contacts, self._rhythm
        patience_s = float(self._state.map.mesh.patience_s)
        watched = self._watched()
        kept, due = dict[str, Contact](), list[Node]()
        for node in watched:
            contact = before.get(node.id)
            # Later signs of life matter only when the last known one is old: a hub watches all nodes of its mesh.
            if contact is not None and not contact.silent and not contact.is_suspect(now, rhythm):
                kept[node.id] = contact
            else:
                due.append(node)
        for node in due:
            contact = before.get(node.id) or self._first(node, now)
            kept[node.id] = self._updated(node, contact, now).step(now, patience_s, rhythm)
        self._contacts = kept
        for node in due:
            contact = self._contacts[node.id]
            if contact.is_suspect(now, rhythm) and now - self._last_probe.get(node.id, 0.0) >= contact.probe_pause_s:
                self._last_probe[node.id] = now
                self._tasks.start(self._probe_machine(node), f"probe of the machine of {node.name}")
            self._log(node, before.get(node.id), contact)
        if _verdicts(before) != _verdicts(self._contacts):
            self._changed()

    def _first(self, node: Node, now: float) -> Contact:
        is_suspected = COORDINATOR not in self._state.me.roles and COORDINATOR not in node.roles
        return Contact.suspected(now, self._rhythm) if is_suspected else Contact(now)

    def _log(self, node: Node, before: Contact | None, now: Contact) -> None:
        if now.silent != (before is not None and before.silent):
            log.warning("%s (%s) %s", node.name, node.ip, "does not answer" if now.silent else "answers again")
        if now.gone and not (before is not None and before.gone):
            log.warning("%s (%s) is given up: Ray runs its tasks elsewhere", node.name, node.ip)

    def _watched(self) -> list[Node]:
        """Return the nodes to watch: on the coordinator's node all, elsewhere that node and the suspected ones."""
        if self._watchable.mesh_map is not self._state.map:
            self._watchable = _Watchable.of(self._state.map, self._state.enrolment.node_id)
        found = self._watchable
        if COORDINATOR in self._state.me.roles:
            return found.others
        coordinator_contacts = [self._contacts.get(node.id) for node in found.coordinators]
        cut_off = any(contact is not None and contact.silent for contact in coordinator_contacts)
        return found.others if cut_off else [*found.coordinators, *found.suspected]

    def _updated(self, node: Node, contact: Contact, now: float) -> Contact:
        ago_s = self._prober.heard_ago_s(node.ip)
        if ago_s is not None:
            contact = contact.answered(now - ago_s)
        if self._beat_answered is not None and COORDINATOR in node.roles:
            contact = contact.answered(self._beat_answered)
        return contact

    async def _probe_machine(self, node: Node) -> None:
        began = self._clock()
        answers = await machine_answers(node.ip, MACHINE_TIMEOUT_S)
        contact = self._contacts.get(node.id)
        if contact is not None:
            self._contacts[node.id] = contact.answered(began) if answers else contact.unanswered()


@dataclass(frozen=True)
class _Watchable:
    """The nodes of one map that may be watched. It is looked at four times a second, and the map rarely changes.

    Attributes:
        others: all but this node, those without an agent and those that were taken down.
        coordinators: those of them that run the coordinator.
        suspected: the rest of them that the coordinator's node reports as silent.
    """

    mesh_map: MeshMap | None
    others: list[Node] = field(default_factory=list)
    coordinators: list[Node] = field(default_factory=list)
    suspected: list[Node] = field(default_factory=list)

    @classmethod
    def of(cls, mesh_map: MeshMap, own_id: str) -> _Watchable:
        others = [
            node for node in mesh_map.nodes.values() if node.id != own_id and STATIC not in node.roles and not node.down
        ]
        coordinators = [node for node in others if COORDINATOR in node.roles]
        return cls(mesh_map, others, coordinators, [n for n in others if n.silence and COORDINATOR not in n.roles])


def _verdicts(contacts: Mapping[str, Contact]) -> dict[str, str]:
    return {key: GONE if contact.gone else SILENT for key, contact in contacts.items() if contact.silent}
