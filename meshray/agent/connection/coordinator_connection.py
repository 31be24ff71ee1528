"""The agent's connection to the coordinator: it receives the map and reports what this node runs.

    open ──► hello ──► whole map ──► changes … ──► the connection ends ──► wait (jitter) ──► open

Without a connection everything continues with the last map.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import replace

from meshray.agent.backoff import backoff_s
from meshray.agent.status.startup_progress import Progress
from meshray.client.coordinator import Connection, Coordinator, CoordinatorBehind, RemovedFromMesh, TakenOver
from meshray.client.dialer import ComeAgainError
from meshray.errors import MeshrayError, RefusedError, UnreachableError, UsageError
from meshray.linux.tasks import Tasks
from meshray.model.address import Endpoint
from meshray.model.enrol import FIELDS_ABILITY, PACKED_ABILITY, RESUME_ABILITY
from meshray.model.meshmap import MapChange, MeshMap
from meshray.node.membership import Membership
from meshray.protocol.codec import WireError
from meshray.protocol.connection import (
    Change,
    FromCoordinator,
    Hello,
    Message,
    PackedMap,
    RayInstance,
    Recall,
    Recalled,
    Restored,
    Ticket,
    TicketWanted,
    TookOver,
    WholeMap,
    unpacked,
)

log = logging.getLogger(__name__)

#: A coordinator that starts beside its agent needs a few seconds; only after these is it reported as away.
_AWAY_AFTER_S = 8.0
#: The longest pause between two attempts, seconds; and the pause to a coordinator on this machine.
_PAUSE_S, _OWN_PAUSE_S = 30.0, 1.0
#: Two machines with one identity (a cloned disk) take the connection from each other. The first return is quick,
#: because it proves that there are two; later ones are slow. See `meshray.coordinator.takeovers.QUIET_S`.
_TAKEN_OVER_FIRST_S, _TAKEN_OVER_S = 2.0, 15.0
#: A connection that lasted this long was not one of those, seconds.
_UNDISTURBED_S = 60.0
#: A connection that ended sooner was closed by a busy coordinator: the pauses before the next ones grow, seconds.
_SETTLED_S = 10.0
#: The delay until a connection through the overlay looks for a path outside of it, and the interval later, seconds.
_OUTSIDE_S, _OUTSIDE_CAP_S = 2.0, 60.0


class CoordinatorConnection:
    """The connection, which is opened again whenever it ends.

    Args:
        coordinator: returns its possible endpoints; the map can add an address.
        current: returns the current map, to which a change is applied.
        on_map: called with every new map.
        on_message: called with every other message.
        hello: returns this node's report about itself.
        membership: stores the ticket, and reports it to the user if the coordinator does not know this node.
    """

    def __init__(
        self,
        coordinator: Callable[[], Coordinator],
        current: Callable[[], MeshMap],
        *,
        on_map: Callable[[MeshMap], None],
        on_message: Callable[[FromCoordinator], None],
        hello: Callable[[], Hello],
        progress: Progress,
        membership: Membership,
    ) -> None:
        self._coordinator = coordinator
        self._current = current
        self._on_map = on_map
        self._on_message = on_message
        self._hello = hello
        self._last_hello: Hello | None = None
        self._progress = progress
        self._membership = membership
        # A restored coordinator waits for the agent beside it before it enrols any node.
        self._longest_pause_s = _OWN_PAUSE_S if membership.enrolment.hosts_coordinator else _PAUSE_S
        self._connection: Connection | None = None
        #: How often the connection was opened.
        self.opened = 0
        # The coordinator's journal from which the current map comes; empty: it comes from the disk.
        self._journal = ""
        self._ray_instance = ""
        self._retry_now = asyncio.Event()

    @property
    def is_open(self) -> bool:
        """Whether the coordinator is connected."""
        return self._connection is not None

    @property
    def outside(self) -> Endpoint | None:
        """The endpoint at which the coordinator was reached outside the overlay; None if it was not."""
        connection, known = self._connection, self._membership.enrolment.coordinators
        return connection.endpoint if connection is not None and connection.endpoint in known else None

    async def run(self) -> None:
        """Keep the connection until cancelled. Raises RemovedFromMesh if the coordinator no longer knows this node."""
        attempt, since, taken_over = 0, time.monotonic(), 0
        self._progress.set("coordinator", "run")
        while True:
            delay_s, opened = 0.0, time.monotonic()
            try:
                self._connection = await self._coordinator().open_connection(self._accepts())
                opened = time.monotonic()
                self.opened += 1
                await self._use_until_it_ends(self._connection)
            except CoordinatorBehind as error:
                log.error("%s (%s)", error, error.hint)
                self._membership.set_behind(error)
                delay_s = backoff_s(attempt, first_s=2.0)
            except TakenOver as error:
                log.error("%s", error)
                self._membership.set_taken_over(error)
                taken_over = 1 if time.monotonic() - opened > _UNDISTURBED_S else taken_over + 1
                delay_s = _TAKEN_OVER_FIRST_S if taken_over == 1 else _TAKEN_OVER_S
            except RemovedFromMesh:
                raise
            except ComeAgainError as error:
                log.info("%s", error)
                # Agents that were given the same second must not come at the same moment.
                delay_s = error.after_s + backoff_s(0, first_s=1.0)
            except (UnreachableError, RefusedError) as error:
                # Another certificate: another server answers in the coordinator's place, which may well return.
                if attempt == 0:
                    log.warning("%s; continuing with map revision %d", error, self._current().revision)
                if time.monotonic() - since > _AWAY_AFTER_S:
                    self._progress.set("coordinator", "ok", f"away; map revision {self._current().revision} is used")
            except (OSError, WireError, UsageError) as error:
                log.warning("the connection to the coordinator broke: %s", error)
            finally:
                attempt = 0 if self._has_settled(opened) else attempt
                await self._close()
            self._membership.answered.set()
            delay_s = delay_s or backoff_s(attempt, first_s=0.2, cap_s=self._longest_pause_s)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._retry_now.wait(), delay_s)
            self._retry_now.clear()
            attempt += 1

    def _has_settled(self, opened: float) -> bool:
        return self._connection is not None and time.monotonic() - opened > _SETTLED_S

    def _accepts(self) -> str:
        held = f" {RESUME_ABILITY}={self._journal}:{self._current().revision}" if self._journal else ""
        return f"{PACKED_ABILITY} {FIELDS_ABILITY}{held}"

    async def reconnect(self, addresses: Collection[str]) -> None:
        """Reconnect at once after a network change, and close a connection from an address that is gone.

        Args:
            addresses: this machine's current addresses.
        """
        self._retry_now.set()
        if self._connection is not None and not self._connection.is_bound_to(addresses):
            log.info("the connection to the coordinator ended because its address was removed")
            await self._connection.close_socket()

    async def move_to(self, endpoint: Endpoint) -> None:
        """Use this endpoint of the coordinator: connect at once, and close a connection to another address."""
        self._retry_now.set()
        if self._connection is not None and self._connection.endpoint != endpoint:
            await self._connection.close_socket()

    async def report_ray_instance(self, instance: str) -> None:
        """Report the instance of this node's Ray head; it is reported again whenever the connection opens."""
        self._ray_instance = instance
        await self.send(RayInstance(instance))

    async def send(self, message: Message) -> None:
        """Send a message if there is a connection; otherwise it is lost."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                await self._connection.send(message)

    async def send_hello(self) -> None:
        """Report what this node is, if that changed since the last report."""
        hello = self._hello()
        if hello != self._last_hello and self._connection is not None:
            self._last_hello = hello
            await self.send(hello)

    async def _leave_the_overlay(self, connection: Connection) -> None:
        """Close a connection through the overlay, which would break with it, when the coordinator answers outside."""
        if self.outside is not None:
            return
        for attempt in itertools.count():
            await asyncio.sleep(backoff_s(attempt, first_s=_OUTSIDE_S, cap_s=_OUTSIDE_CAP_S))
            # A map arrived through the overlay, perhaps with new addresses.
            known = self._membership.enrolment.coordinators
            with contextlib.suppress(MeshrayError):
                await replace(self._coordinator(), endpoints=known).call("GET", "/v1/hello")
                log.info("the coordinator answers outside of the overlay again")
                await connection.close_socket()
                return

    async def _use_until_it_ends(self, connection: Connection) -> None:
        log.info("connected to the coordinator at %s", connection.endpoint)
        if self.outside is not None:
            self._membership.prefer_coordinator(self.outside, connection.resolved)
        outside = Tasks()
        outside.start(self._leave_the_overlay(connection), "a path outside of the overlay")
        try:
            await self._use(connection)
        finally:
            await outside.close()
        log.warning(
            "the connection to the coordinator ended; continuing with map revision %d", self._current().revision
        )

    async def _use(self, connection: Connection) -> None:
        self._last_hello, is_first = None, True
        await self.send_hello()
        await self.send(RayInstance(self._ray_instance))
        async for message in connection.messages():
            match message:
                case WholeMap() | PackedMap() | Change():
                    if is_first:
                        is_first = False
                        self._membership.set_behind(None)
                        self._membership.set_taken_over(None)
                    await self._take(message)
                case Recall():
                    await self._send_map(connection)
                case Ticket() | Restored() | TookOver():
                    self._membership.handle(message)
                case _:
                    self._on_message(message)

    async def _take(self, message: WholeMap | PackedMap | Change) -> None:
        if isinstance(message, Change):
            try:
                return await self._take_map(self._current().apply(MapChange.of(message.change)))
            except WireError:
                self._journal = ""  # The next connection begins with a whole map.
                raise
        whole = unpacked(message) if isinstance(message, PackedMap) else message
        mesh_map = MeshMap.of(whole.map)
        if isinstance(message, PackedMap):
            mesh_map = mesh_map.apply(MapChange.of(message.change))
        await self._take_map(mesh_map)
        self._journal = whole.journal

    async def _take_map(self, mesh_map: MeshMap) -> None:
        if mesh_map.mesh != self._current().mesh:
            raise WireError(f"received the map of another mesh, {mesh_map.mesh.name}")
        if self._membership.enrolment.node_id not in mesh_map.nodes:
            # A removed node learns of its removal from the close code.
            raise WireError("this node is not in the map")
        out_of_date = self._membership.needs_new_ticket(self._current(), mesh_map)
        self._on_map(mesh_map)
        if out_of_date:
            await self.send(TicketWanted())

    async def _send_map(self, connection: Connection) -> None:
        """Report to the coordinator the part of this node's map that the coordinator has lost."""
        mesh_map = self._current()
        log.warning("the coordinator has lost what came before revision %d; sending it this map", mesh_map.revision)
        for node in mesh_map.nodes.values():
            await connection.send(Recalled(node.form()))
        await connection.send(Recalled())

    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
