"""Ray's ports are closed anew when what listens has changed, and only then."""

from __future__ import annotations

import asyncio
import logging

import pytest

from meshray.agent import portguard
from meshray.agent.portguard import PortGuard
from meshray.firewall import Closed
from meshray.raynode.listeners import Heard

MESH_PORT = 10500


class FakeFirewall:
    def __init__(self, *complaints: str) -> None:
        self.closed: list[Closed] = []
        self.complaints = complaints

    def close(self, closed: Closed) -> list[str]:
        self.closed.append(closed)
        return []

    def problems(self) -> list[str]:
        return list(self.complaints)


class FakeRay:
    ports = (8000, range(10002, 20000))

    def __init__(self) -> None:
        self.heard: list[Heard] = []

    def listening(self) -> list[Heard]:
        return list(self.heard)


STANDING = ((8000, 8000), (10002, 10499), (10501, 19999))


def test_closed_anew_only_when_something_changed() -> None:
    firewall, ray = FakeFirewall(), FakeRay()
    guard = PortGuard(firewall, lambda: ray, {MESH_PORT})

    async def go() -> None:
        await guard.close()
        ray.heard = [Heard(10010, "0.0.0.0", True), Heard(MESH_PORT, "::", False)]
        await guard.close()  # a worker's port: closed already
        assert firewall.closed == [Closed(STANDING)]
        ray.heard += [Heard(40000, "::", True)]
        await guard.close()
        assert firewall.closed[1:] == [Closed(STANDING, ((40000, 40000),))]
        ray.heard.pop()
        await guard.close()
        assert firewall.closed[2:] == [Closed(STANDING)]

    asyncio.run(go())


class Enough(Exception):
    pass


def test_it_goes_on_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portguard, "LOOK_S", 0)
    firewall = FakeFirewall()

    class Opening(FakeRay):
        """Opens one port after the other."""

        def listening(self) -> list[Heard]:
            if len(self.heard) == 3:
                raise Enough
            self.heard.append(Heard(40000 + 10 * len(self.heard), "::", True))
            return list(self.heard)

    ray = Opening()
    with pytest.raises(Enough):
        asyncio.run(PortGuard(firewall, lambda: ray, ()).run())
    assert [len(closed.heard) for closed in firewall.closed] == [1, 2, 3]


def test_without_ray_nothing_is_closed() -> None:
    firewall = FakeFirewall()
    asyncio.run(PortGuard(firewall, lambda: None, ()).close())
    assert firewall.closed == []


def test_what_cannot_be_closed_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    firewall, ray = FakeFirewall("Ray's ports are open"), FakeRay()
    guard = PortGuard(firewall, lambda: ray, ())

    async def go() -> None:
        await guard.close()
        await guard.close()

    with caplog.at_level(logging.ERROR):
        asyncio.run(go())
    assert [record.getMessage() for record in caplog.records] == ["firewall: Ray's ports are open"]
