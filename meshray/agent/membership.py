"""What this node keeps for the coordinator: its ticket and the last map, each on disk, as far as the disk lets it.

A disk that is full or read-only ends nothing: the node goes on with what it has in memory and says so.

>>> membership = Membership(home, enrolment)
>>> membership.keep_map(mesh_map)
>>> membership.complaints()
('the map cannot be kept on disk ([Errno 28] No space left on device): …',)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from meshray.agent.cache import save_map
from meshray.agent.client import Coordinator
from meshray.agent.enrolment import Enrolment
from meshray.errors import MeshrayError
from meshray.model import wire
from meshray.model.enrol import LONGEST_TICKET
from meshray.model.meshmap import MeshMap
from meshray.settings import Home

log = logging.getLogger(__name__)

_LONGEST_REPORT = 4096


class Membership:
    """The node's own side of its membership while its agent runs.

    Attributes:
        enrolment: as it is now; its ticket may be newer than the one on disk.
    """

    def __init__(self, home: Home, enrolment: Enrolment) -> None:
        self.enrolment = enrolment
        self._home = home
        self._unwritten: dict[str, str] = {}
        self._restored = ""
        self._behind = ""

    def told(self, message: Mapping[str, object]) -> None:
        """The coordinator gave a ticket, or told of a restore. Raises wire.WireError."""
        kind = message.get("type")
        if kind == "ticket":
            self.enrolment = replace(self.enrolment, ticket=wire.text(message, "ticket", LONGEST_TICKET))
            self.save()
        elif kind == "restored":
            self._restored = wire.text(message, "text", _LONGEST_REPORT)
            if self._restored:
                log.warning("%s", self._restored)

    def save(self) -> None:
        """Writes node.json where that is possible."""
        self._try("who this node is", lambda: self.enrolment.save(self._home))

    def taken_out(self) -> None:
        """The coordinator removed this node: its agent must not start again."""
        self.enrolment = replace(self.enrolment, taken_out=True)
        self.save()

    def ray_moved(self, ray: str) -> None:
        """This node's Ray is another program from now on."""
        self.enrolment = replace(self.enrolment, ray=ray)
        self.save()

    async def leave(self, coordinator: Coordinator) -> None:
        """Tells the coordinator that this ephemeral node goes, where it answers."""
        try:
            await coordinator.call("POST", "/v1/leave")
        except MeshrayError as error:
            log.warning("could not leave the mesh (%s); the coordinator removes an ephemeral node by itself", error)

    def keep_map(self, mesh_map: MeshMap) -> None:
        """Writes the map's cache where that is possible."""
        self._try("the map", lambda: save_map(self._home, mesh_map))

    def must_ask(self, before: MeshMap, after: MeshMap) -> bool:
        """Whether this node's ticket is out of date: it says what the node is called, and by which key it is known."""
        old, new = (each.nodes.get(self.enrolment.node_id) for each in (before, after))
        if old is None or new is None:
            return False
        return (old.name, old.ip, old.public_key, old.roles) != (new.name, new.ip, new.public_key, new.roles)

    def behind(self, error: MeshrayError | None) -> None:
        """The coordinator does not know this node and cannot tell whether it should; None: it knows it."""
        self._behind = "" if error is None else error.message
        if error is None:
            # It says again what there is to say.
            self._restored = ""

    def complaints(self) -> tuple[str, ...]:
        """What a person should know, one sentence each."""
        return (*self._unwritten.values(), *(text for text in (self._behind, self._restored) if text))

    def _try(self, what: str, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if what not in self._unwritten:
                log.error("%s cannot be written: %s", what, error)
            reason = f"{error.strerror or error}"
            self._unwritten[what] = (
                f"{what} cannot be kept on disk ({self._home.state}: {reason}); this node goes on without"
            )
        else:
            if self._unwritten.pop(what, None):
                log.info("%s is on disk again", what)
