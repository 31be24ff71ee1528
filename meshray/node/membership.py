"""What this node keeps for the coordinator: its ticket and the last map, each on disk, as far as the disk lets it.

>>> membership = Membership(home, enrolment, StateWriter(home))
>>> membership.keep_map(mesh_map)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from meshray.client.coordinator import Coordinator, TakenOver
from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.model import wire
from meshray.model.address import Endpoint
from meshray.model.epochs import SharedSecrets
from meshray.model.meshmap import MeshMap
from meshray.model.node import ONE_IDENTITY
from meshray.model.problem import Problem
from meshray.node.enrolment import Enrolment
from meshray.node.map_cache import save_map
from meshray.node.state_writer import StateWriter
from meshray.protocol.fields import LONGEST_TICKET

log = logging.getLogger(__name__)

_LONGEST_REPORT = 4096
#: An agent that was replaced and lives comes back sooner than this, seconds; see
#: `meshray.agent.connection.coordinator_connection`.
COMES_BACK_S = 4.0
#: The node's start does not wait longer for the coordinator than this, seconds: it is not needed.
FIRST_ANSWER_S = 1.5
_POLL_S = 0.1


class Membership:
    """The node's own side of its membership while its agent runs.

    Attributes:
        enrolment: as it is now; its ticket may be newer than the one on disk.
        instance: a random word of this process, by which the coordinator tells two machines with one identity apart.
        answered: the coordinator said whose place this agent took, or did not answer.
        given_up: this machine gives up the identity, which is another machine's: nobody is to be told that the node
            goes.
    """

    def __init__(self, home: Home, enrolment: Enrolment, files: StateWriter) -> None:
        self.enrolment = enrolment
        self._home = home
        self._files = files
        self.instance = secrets.token_hex(8)
        self.given_up = False
        self.answered = asyncio.Event()
        self._taken_over: TakenOver | None = None
        self._took_over_at: float | None = None
        self._restored = ""
        self._behind: MeshrayError | None = None

    def told(self, message: Mapping[str, object]) -> None:
        """The coordinator gave a ticket, told of a restore or whose place this agent took. Raises WireError."""
        kind = message.get("type")
        if kind == "ticket":
            self.enrolment = replace(self.enrolment, ticket=wire.text(message, "ticket", LONGEST_TICKET))
            self.save()
        elif kind == "took_over":
            self.answered.set()
            if address := wire.text(message, "address", 64):
                self._took_over_at = time.monotonic()
                log.warning("another agent was connected as this node, from %s", address)
        elif kind == "restored":
            self._restored = wire.text(message, "text", _LONGEST_REPORT)
            if self._restored:
                log.warning("%s", self._restored)

    def share(self, shared: SharedSecrets, mesh_map: MeshMap) -> bool:
        """Holds what the coordinator says; returns whether that is new."""
        before, self.enrolment = self.enrolment, self.enrolment.sharing(shared, mesh_map)
        if self.enrolment == before:
            return False
        log.info("this node holds epoch %d of the mesh's secrets", self.enrolment.secret_epoch)
        self.save()
        return True

    def save(self) -> None:
        """Writes node.json where that is possible."""
        self._files.write("who this node is", lambda: self.enrolment.save(self._home))

    def learn(self, mesh_map: MeshMap) -> None:
        """Keeps where the coordinator is according to a new map: it may move while this node is down."""
        node = mesh_map.coordinator
        if node is not None:
            self._know(self.enrolment.knowing(node.endpoints))

    def reached(self, endpoint: Endpoint) -> None:
        """The coordinator answered there: it is tried there first from now on."""
        self._know(self.enrolment.preferring(endpoint))

    def _know(self, enrolment: Enrolment) -> None:
        if enrolment != self.enrolment:
            self.enrolment = enrolment
            self.save()

    def taken_out(self) -> None:
        """The coordinator removed this node: its agent must not start again."""
        self.enrolment = replace(self.enrolment, taken_out=True)
        self.save()

    def ray_moved(self, ray: str) -> None:
        """This node's Ray is another program from now on."""
        self.enrolment = replace(self.enrolment, ray=ray)
        self.save()

    async def leave(self, coordinator: Coordinator, *, was_up: bool) -> None:
        """Tells the coordinator that this ephemeral node goes, where it answers.

        Args:
            was_up: else its join failed, or was interrupted: the token's use and the address are given back.
        """
        if self.given_up:
            return
        try:
            await coordinator.call("POST", "/v1/leave", None if was_up else {"take_back": True})
        except MeshrayError as error:
            log.warning("could not leave the mesh (%s); the coordinator removes an ephemeral node by itself", error)

    def keep_map(self, mesh_map: MeshMap) -> None:
        """Writes the map's cache where that is possible."""
        self._files.write("the map", lambda: save_map(self._home, mesh_map))

    def must_ask(self, before: MeshMap, after: MeshMap) -> bool:
        """Whether this node's ticket is out of date: it says what the node is called, and by which key it is known."""
        old, new = (each.nodes.get(self.enrolment.node_id) for each in (before, after))
        if old is None or new is None:
            return False
        return (old.name, old.ip, old.public_key, old.roles) != (new.name, new.ip, new.public_key, new.roles)

    def behind(self, error: MeshrayError | None) -> None:
        """The coordinator does not know this node and cannot tell whether it should; None: it knows it."""
        self._behind = error
        if error is None:
            # It says again what there is to say.
            self._restored = ""

    @property
    def goodbye(self) -> Mapping[str, object]:
        """What the coordinator is told by an agent that ends because the user said so."""
        return {"type": "given_up" if self.given_up else "down"}

    def taken_over(self, error: TakenOver | None) -> None:
        """Another agent connected as this node; None: this one is connected."""
        self._taken_over = error

    async def rival(self, current: Callable[[], MeshMap]) -> TakenOver | None:
        """The other machine that uses this node's identity, if there is one. Where this agent took another one's
        place, waits whether that one comes back.

        Args:
            current: the map of the moment.
        """
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.answered.wait(), FIRST_ANSWER_S)
        until = (self._took_over_at or 0.0) + COMES_BACK_S
        while True:
            node = current().nodes.get(self.enrolment.node_id)
            detail = node.faults.get(ONE_IDENTITY, "") if node is not None else ""
            if self._taken_over is not None or detail:
                return TakenOver(detail)
            if self._took_over_at is None or time.monotonic() >= until:
                return None
            await asyncio.sleep(_POLL_S)

    def complaints(self) -> tuple[Problem, ...]:
        """What the user should know."""
        found = []
        if self._taken_over is not None:
            found.append(Problem(ONE_IDENTITY, self._taken_over.message, fix=self._taken_over.hint or ""))
        if self._behind is not None:
            found.append(Problem(self._behind.code, self._behind.message, fix=self._behind.hint or ""))
        if self._restored:
            found.append(Problem("coordinator_restored", self._restored, fix="meshray node list"))
        return tuple(found)
