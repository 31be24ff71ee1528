"""The state that this node keeps for the coordinator: its ticket and the last map, both on disk if possible.

>>> membership = Membership(home, enrolment, StateWriter(home))
>>> membership.keep_map(mesh_map)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import replace

from meshray.client.coordinator import Coordinator, TakenOver
from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.model.address import Endpoint
from meshray.model.epochs import SharedSecrets
from meshray.model.meshmap import MeshMap
from meshray.model.node import ONE_IDENTITY
from meshray.model.problem import Problem
from meshray.node.enrolment import Enrolment
from meshray.node.map_cache import save_map
from meshray.node.state_writer import StateWriter
from meshray.protocol.connection import Down, GivenUp, Message, Restored, Ticket, TookOver

log = logging.getLogger(__name__)

#: A replaced agent that still runs reconnects within this time, seconds; see
#: `meshray.agent.connection.coordinator_connection`.
RECONNECT_S = 4.0
#: The longest wait for the coordinator at the node's start, seconds. The start does not need it.
FIRST_ANSWER_S = 1.5
_POLL_S = 0.1
#: A map of so few nodes is written at each change: it has less than 25 KB, and seldom changes.
SMALL_MAP = 64


class Membership:
    """The node's side of its membership while its agent runs.

    Attributes:
        enrolment: the current enrolment; its ticket may be newer than the one on disk.
        instance: a random id of this process, with which the coordinator distinguishes two machines with one identity.
        answered: set when the coordinator reported whether this agent replaced another one.
        given_up: this machine gives up the identity, which belongs to another machine. It must not report that the
            node leaves.
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

    def handle(self, message: Ticket | Restored | TookOver) -> None:
        """Handle a ticket, a restore, or the replacement of another agent."""
        match message:
            case Ticket(ticket):
                self.enrolment = replace(self.enrolment, ticket=ticket)
                self.save()
            case TookOver(address):
                self.answered.set()
                if address:
                    self._took_over_at = time.monotonic()
                    log.warning("another agent was connected as this node, from %s", address)
            case Restored(text):
                self._restored = text
                if text:
                    log.warning("%s", text)

    def store_secrets(self, shared: SharedSecrets, mesh_map: MeshMap) -> bool:
        """Store the secrets that the coordinator sent, and return whether they are new."""
        before, self.enrolment = self.enrolment, self.enrolment.with_secrets(shared, mesh_map)
        if self.enrolment == before:
            return False
        log.info("this node holds epoch %d of the mesh's secrets", self.enrolment.secret_epoch)
        self.save()
        return True

    def save(self) -> None:
        """Write node.json if possible."""
        self._files.write("this node's enrolment", lambda: self.enrolment.save(self._home))

    def store_coordinators(self, mesh_map: MeshMap) -> None:
        """Store the coordinator's endpoints in a new map, because they may change while this node is down."""
        node = mesh_map.coordinator
        if node is not None:
            self._use(self.enrolment.with_coordinators(node.endpoints))

    def prefer_coordinator(self, endpoint: Endpoint, resolved: Endpoint | None = None) -> None:
        """Prefer the endpoint at which the coordinator answered; ``resolved``: the address of its name, if any."""
        self._use(self.enrolment.with_preferred_coordinator(endpoint, resolved))

    def _use(self, enrolment: Enrolment) -> None:
        if enrolment != self.enrolment:
            self.enrolment = enrolment
            self.save()

    def set_removed(self) -> None:
        """Record that the coordinator removed this node. Its agent must not start again."""
        self.enrolment = replace(self.enrolment, taken_out=True)
        self.save()

    def set_ray_path(self, ray: str) -> None:
        """Record the path of another Ray program."""
        self.enrolment = replace(self.enrolment, ray=ray)
        self.save()

    async def leave(self, coordinator: Coordinator, *, was_up: bool) -> None:
        """Notify the coordinator, if it answers, that this ephemeral node leaves.

        Args:
            was_up: False if the join failed or was interrupted: the token's use and the address are released.
        """
        if self.given_up:
            return
        try:
            await coordinator.call("POST", "/v1/leave", None if was_up else {"take_back": True})
        except MeshrayError as error:
            log.warning(
                "could not leave the mesh (%s); the coordinator removes an ephemeral node after a timeout", error
            )

    def keep_map(self, before: MeshMap, mesh_map: MeshMap) -> None:
        """Write the cached map if possible: soon, or at once if the map is small or a start needs what has changed.

        A large map changes often, and takes much longer to write than to change.
        """
        own, is_small = self.enrolment.node_id, len(mesh_map.nodes) <= SMALL_MAP
        needed = (before.nodes.get(own), before.removals) != (mesh_map.nodes.get(own), mesh_map.removals)
        write = self._files.write if is_small or needed else self._files.write_later
        write("the map", lambda: save_map(self._home, mesh_map))

    def needs_new_ticket(self, before: MeshMap, after: MeshMap) -> bool:
        """Return whether this node's ticket is outdated, because its name, address, key or roles changed."""
        old, new = (each.nodes.get(self.enrolment.node_id) for each in (before, after))
        if old is None or new is None:
            return False
        return (old.name, old.ip, old.public_key, old.roles) != (new.name, new.ip, new.public_key, new.roles)

    def set_behind(self, error: MeshrayError | None) -> None:
        """Set or clear the error that the coordinator does not know this node and cannot vouch for its database."""
        self._behind = error
        if error is None:
            # The coordinator repeats the message if it still applies.
            self._restored = ""

    @property
    def goodbye(self) -> Message:
        """The message to the coordinator when a user stops the agent."""
        return GivenUp() if self.given_up else Down()

    def set_taken_over(self, error: TakenOver | None) -> None:
        """Set the error after another agent connected as this node; None when this one is connected."""
        self._taken_over = error

    async def conflict(self, current: Callable[[], MeshMap]) -> TakenOver | None:
        """Return the error if another machine uses this node's identity.

        If this agent replaced another one, wait to see whether that one reconnects.

        Args:
            current: returns the current map.
        """
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.answered.wait(), FIRST_ANSWER_S)
        until = (self._took_over_at or 0.0) + RECONNECT_S
        while True:
            node = current().nodes.get(self.enrolment.node_id)
            detail = node.faults.get(ONE_IDENTITY, "") if node is not None else ""
            if self._taken_over is not None or detail:
                return TakenOver(detail)
            if self._took_over_at is None or time.monotonic() >= until:
                return None
            await asyncio.sleep(_POLL_S)

    def complaints(self) -> tuple[Problem, ...]:
        """Return the problems to show to the user."""
        found = []
        if self._taken_over is not None:
            found.append(Problem(ONE_IDENTITY, self._taken_over.message, fix=self._taken_over.hint or ""))
        if self._behind is not None:
            found.append(Problem(self._behind.code, self._behind.message, fix=self._behind.hint or ""))
        if self._restored:
            found.append(Problem("coordinator_restored", self._restored, fix="meshray node list"))
        return tuple(found)
