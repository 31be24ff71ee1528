"""The connection to the coordinator: one through the overlay is only temporary."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from meshray.agent.connection import coordinator_connection
from meshray.agent.connection.coordinator_connection import CoordinatorConnection
from meshray.agent.status.startup_progress import Progress
from meshray.client.coordinator import Coordinator
from meshray.client.dialer import ComeAgainError
from meshray.errors import UnreachableError
from meshray.home import Home
from meshray.model.address import Endpoint
from meshray.node.membership import Membership
from meshray.node.state_writer import StateWriter
from meshray.protocol.connection import Hello
from tests.unit.agent.sample import MAP, WORKER_A, enrolment

INSIDE = Endpoint("10.99.0.1", 51888)


class Open:
    """A connection that sends nothing and lasts until it is closed."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.resolved: Endpoint | None = None
        self._closed = asyncio.Event()

    async def messages(self) -> AsyncIterator[Mapping[str, object]]:
        await self._closed.wait()
        return
        yield {}

    async def send(self, message: object) -> None:
        pass

    async def close_socket(self) -> None:
        self._closed.set()

    async def close(self) -> None:
        pass


@dataclass
class Place:
    """A coordinator: its address, the number of unanswered attempts outside, and its requests."""

    endpoints: tuple[Endpoint, ...]
    answers: list[Endpoint]
    silent: list[None] = field(default_factory=list)
    dialled: list[tuple[Endpoint, ...]] = field(default_factory=list)
    busy_s: list[float] = field(default_factory=list)
    opened_at: list[float] = field(default_factory=list)

    async def open_connection(self, accepts: str) -> Open:
        self.opened_at.append(asyncio.get_running_loop().time())
        if self.busy_s:
            raise ComeAgainError(self.busy_s.pop(0))
        return Open(self.answers.pop(0))

    async def call(self, method: str, path: str) -> Mapping[str, object]:
        self.dialled.append(self.endpoints)
        if self.silent:
            self.silent.pop()
            raise UnreachableError("coordinator_unreachable", "silence")
        return {}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "state", tmp_path / "run")


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator_connection, "backoff_s", lambda attempt, **limits: 0.0)


def connection_to(place: Place, home: Home) -> CoordinatorConnection:
    return CoordinatorConnection(
        lambda: cast(Coordinator, place),
        lambda: MAP,
        on_map=lambda new: None,
        on_message=lambda message: None,
        hello=Hello,
        progress=Progress(),
        membership=Membership(home, enrolment(WORKER_A), StateWriter(home)),
    )


async def opened(home: Home, place: Place) -> list[Endpoint]:
    """Return the endpoints of the keeper's connections, until one lasts."""
    keeper = connection_to(place, home)
    running = asyncio.get_running_loop().create_task(keeper.run())
    endpoints: list[Any] = []
    for _ in range(1000):
        await asyncio.sleep(0)
        current = keeper._connection
        if current is not None and current.endpoint not in endpoints:
            endpoints.append(current.endpoint)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return endpoints


async def test_a_link_through_the_overlay_ends_when_the_coordinator_answers_outside(home: Home) -> None:
    outside = enrolment(WORKER_A).coordinators
    place = Place((*outside, INSIDE), [INSIDE, outside[0]], [None, None])
    assert await opened(home, place) == [INSIDE, outside[0]]
    assert place.dialled == [outside] * 3


async def test_a_link_outside_stays(home: Home) -> None:
    outside = enrolment(WORKER_A).coordinators
    place = Place((*outside, INSIDE), [outside[0]])
    assert await opened(home, place) == [outside[0]]
    assert not place.dialled


async def test_an_agent_comes_again_when_the_coordinator_asked_it_to(home: Home) -> None:
    outside = enrolment(WORKER_A).coordinators
    place = Place((*outside, INSIDE), [outside[0]], busy_s=[0.3, 0.2])
    keeper = connection_to(place, home)
    running = asyncio.get_running_loop().create_task(keeper.run())
    for _ in range(1000):
        if keeper.is_open:
            break
        await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    first, second, third = place.opened_at
    assert second - first >= 0.3 and third - second >= 0.2
