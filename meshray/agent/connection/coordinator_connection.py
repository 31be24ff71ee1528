"""Keeps the agent's link to the coordinator: the map comes in, what this node runs goes out.

    open ──► hello ──► whole map ──► changes … ──► the link ends ──► wait (jitter) ──► open

While there is no link everything goes on with the last map.
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
from meshray.agent.status.progress import Progress
from meshray.client.coordinator import Coordinator, CoordinatorBehind, Link, RemovedFromMesh, TakenOver
from meshray.errors import MeshrayError, RefusedError, UnreachableError, UsageError
from meshray.linux.tasks import Tasks
from meshray.model.address import Endpoint
from meshray.model.meshmap import MapChange, MeshMap
from meshray.node.membership import Membership
from meshray.protocol.codec import WireError
from meshray.protocol.connection import (
    Change,
    FromCoordinator,
    Hello,
    Message,
    RayInstance,
    Recall,
    Recalled,
    Restored,
    Ticket,
    TicketWanted,
    TookOver,
    WholeMap,
)

log = logging.getLogger(__name__)

#: A coordinator that starts beside its agent needs a few seconds; only then is it called away.
_AWAY_AFTER_S = 8.0
#: The longest pause between two tries, seconds; and to the coordinator on this very machine.
_PAUSE_S, _OWN_PAUSE_S = 30.0, 1.0
#: Two machines with one identity (a cloned disk) take the link from each other. The first return is quick, because it
#: proves that there are two; after that not in a tight loop. See `meshray.coordinator.takeovers.QUIET_S`.
_TAKEN_OVER_FIRST_S, _TAKEN_OVER_S = 2.0, 15.0
#: A link that lasted so long was not one of those, seconds.
_UNDISTURBED_S = 60.0
#: How soon a link through the overlay looks for a way outside of it, and how often in the long run, seconds.
_OUTSIDE_S, _OUTSIDE_CAP_S = 2.0, 60.0


class CoordinatorConnection:
    """The link, opened again whenever it ends.

    Args:
        coordinator: where it may be now; the map can add an address.
        current: the map of the moment, to which a change is applied.
        on_map: called with every new map.
        on_message: called with every other message.
        hello: what this node says of itself.
        membership: keeps the ticket, and tells the user where the coordinator does not know this node.
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
        self._said: Hello | None = None
        self._progress = progress
        self._membership = membership
        # A coordinator that was restored waits for the agent beside it before anybody may enrol.
        self._longest_pause_s = _OWN_PAUSE_S if membership.enrolment.hosts_coordinator else _PAUSE_S
        self._link: Link | None = None
        self._ray_instance = ""
        self._hurry = asyncio.Event()

    @property
    def is_open(self) -> bool:
        """Whether the coordinator is there now."""
        return self._link is not None

    @property
    def outside(self) -> Endpoint | None:
        """Where the coordinator was reached, not through the overlay; None while it is not."""
        link, known = self._link, self._membership.enrolment.coordinators
        return link.endpoint if link is not None and link.endpoint in known else None

    async def run(self) -> None:
        """Keeps the link until cancelled. Raises RemovedFromMesh where this node is not known any more."""
        attempt, since, taken_over = 0, time.monotonic(), 0
        self._progress.set("coordinator", "run")
        while True:
            delay_s = backoff_s(attempt, first_s=0.2, cap_s=self._longest_pause_s)
            try:
                self._link = await self._coordinator().open_link()
                attempt, opened = 0, time.monotonic()
                log.info("connected to the coordinator at %s", self._link.endpoint)
                if self.outside is not None:
                    self._membership.reached(self.outside)
                outside = Tasks()
                outside.start(self._leave_the_overlay(self._link), "a way outside of the overlay")
                try:
                    await self._use(self._link)
                finally:
                    await outside.close()
                log.warning(
                    "the link to the coordinator ended; going on with map revision %d", self._current().revision
                )
            except CoordinatorBehind as error:
                log.error("%s (%s)", error, error.hint)
                self._membership.behind(error)
                delay_s = backoff_s(attempt, first_s=2.0)
            except TakenOver as error:
                log.error("%s", error)
                self._membership.taken_over(error)
                taken_over = 1 if time.monotonic() - opened > _UNDISTURBED_S else taken_over + 1
                delay_s = _TAKEN_OVER_FIRST_S if taken_over == 1 else _TAKEN_OVER_S
            except RemovedFromMesh:
                raise
            except (UnreachableError, RefusedError) as error:
                # Another certificate: something answers in the coordinator's place, which may well come back.
                if attempt == 0:
                    log.warning("%s; going on with map revision %d", error, self._current().revision)
                if time.monotonic() - since > _AWAY_AFTER_S:
                    self._progress.set("coordinator", "ok", f"away; map revision {self._current().revision} is used")
            except (OSError, WireError, UsageError) as error:
                log.warning("the link to the coordinator broke: %s", error)
            finally:
                await self._close()
            self._membership.answered.set()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), delay_s)
            self._hurry.clear()
            attempt += 1

    async def hurry(self, addresses: Collection[str]) -> None:
        """The network changed: the next try comes at once, and a link from an address that is gone is closed.

        Args:
            addresses: that this machine has now.
        """
        self._hurry.set()
        if self._link is not None and not self._link.leaves_from(addresses):
            log.info("the link to the coordinator went with its address")
            await self._link.close_socket()

    async def move_to(self, endpoint: Endpoint) -> None:
        """The coordinator is there: the next try comes at once, and a link to another address is closed."""
        self._hurry.set()
        if self._link is not None and self._link.endpoint != endpoint:
            await self._link.close_socket()

    async def tell_ray_instance(self, instance: str) -> None:
        """The instance of this node's Ray head; it is said again whenever the link is opened."""
        self._ray_instance = instance
        await self.say(RayInstance(instance))

    async def say(self, message: Message) -> None:
        """Sends a message where there is a link; else it is lost."""
        if self._link is not None:
            with contextlib.suppress(OSError):
                await self._link.send(message)

    async def say_hello(self) -> None:
        """Says what this node is, where that changed since it was said last."""
        hello = self._hello()
        if hello != self._said and self._link is not None:
            self._said = hello
            await self.say(hello)

    async def _leave_the_overlay(self, link: Link) -> None:
        """A link through the overlay breaks together with it: it ends when the coordinator answers outside."""
        if self.outside is not None:
            return
        for attempt in itertools.count():
            await asyncio.sleep(backoff_s(attempt, first_s=_OUTSIDE_S, cap_s=_OUTSIDE_CAP_S))
            # Through the overlay came a map, perhaps with new addresses.
            known = self._membership.enrolment.coordinators
            with contextlib.suppress(MeshrayError):
                await replace(self._coordinator(), endpoints=known).call("GET", "/v1/hello")
                log.info("the coordinator answers outside of the overlay again")
                await link.close_socket()
                return

    async def _use(self, link: Link) -> None:
        self._said = None
        await self.say_hello()
        await self.say(RayInstance(self._ray_instance))
        async for message in link.messages():
            match message:
                case WholeMap():
                    self._membership.behind(None)
                    self._membership.taken_over(None)
                    await self._take_map(MeshMap.of(message.map))
                case Change():
                    await self._take_map(self._current().apply(MapChange.of(message.change)))
                case Recall():
                    await self._tell_map(link)
                case Ticket() | Restored() | TookOver():
                    self._membership.told(message)
                case _:
                    self._on_message(message)

    async def _take_map(self, mesh_map: MeshMap) -> None:
        if mesh_map.mesh != self._current().mesh:
            raise WireError(f"the map of another mesh came, {mesh_map.mesh.name}")
        if self._membership.enrolment.node_id not in mesh_map.nodes:
            # Who is removed is told so by the way in which the link is closed.
            raise WireError("the map does not hold this node")
        out_of_date = self._membership.must_ask(self._current(), mesh_map)
        self._on_map(mesh_map)
        if out_of_date:
            await self.say(TicketWanted())

    async def _tell_map(self, link: Link) -> None:
        """The coordinator has forgotten what this node's map still holds."""
        mesh_map = self._current()
        log.warning("the coordinator has lost what came before revision %d; telling it this map", mesh_map.revision)
        for node in mesh_map.nodes.values():
            await link.send(Recalled(node.form()))
        await link.send(Recalled())

    async def _close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.close()
