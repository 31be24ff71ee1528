"""Ray's ports are closed again when the listening sockets change, and only then."""

from __future__ import annotations

import asyncio
import logging
from ipaddress import IPv4Network

import pytest

from meshray.agent.device import port_guard
from meshray.agent.device.port_guard import RETRY_S, PortGuard, require_guarded
from meshray.errors import MeshrayError
from meshray.firewall import Closed
from meshray.model.problem import Problem
from meshray.raynode.listeners import ListeningSocket

MESH_PORT = 10500
NETWORK = IPv4Network("10.99.0.0/16")


class FakeFirewall:
    def __init__(self, *complaints: str) -> None:
        self.closed: list[Closed] = []
        self.complaints = complaints

    @property
    def unguarded(self) -> str:
        return "; ".join(self.complaints)

    def close(self, closed: Closed) -> list[str]:
        self.closed.append(closed)
        return []

    def problems(self) -> list[Problem]:
        return [Problem("guard", text) for text in self.complaints]


class FakeRay:
    ports = (8000, range(10002, 20000))


class Machine:
    def __init__(self) -> None:
        self.in_use: list[ListeningSocket] = []

    def listening(self) -> list[ListeningSocket]:
        return list(self.in_use)


STANDING = ((8000, 8000), (10002, 10499), (10501, 19999))


@pytest.fixture(autouse=True)
def local_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_guard, "_local_ports", lambda: range(40000, 40003))


def guard_of(firewall: FakeFirewall, machine: Machine, ray: FakeRay | None) -> PortGuard:
    return PortGuard(firewall, lambda: ray, machine.listening, {MESH_PORT}, NETWORK)


def test_ports_are_closed_again_only_after_a_change() -> None:
    firewall, machine = FakeFirewall(), Machine()
    guard = guard_of(firewall, machine, FakeRay())

    async def go() -> None:
        await guard.close()
        machine.in_use = [ListeningSocket(10010, "0.0.0.0", True), ListeningSocket(MESH_PORT, "::", False)]
        await guard.close()  # A worker's port, which is already closed.
        assert [closed.always for closed in firewall.closed] == [STANDING]
        assert firewall.closed[0].members == (*STANDING, (40000, 40002))
        machine.in_use += [ListeningSocket(50000, "0.0.0.0", True)]
        await guard.close()
        assert firewall.closed[1].in_use == (("ip", ((50000, 50000),)),)
        assert firewall.closed[1].members == (*STANDING, (40000, 40002), (50000, 50000))
        # Another program's port is not open to members, although the kernel chose it.
        machine.in_use[-1] = ListeningSocket(40001, "0.0.0.0", False)
        await guard.close()
        assert firewall.closed[2].in_use == ()
        assert firewall.closed[2].members == (*STANDING, (40000, 40000), (40002, 40002))

    asyncio.run(go())


def test_no_ray_starts_while_its_ports_are_open() -> None:
    firewall = FakeFirewall("Ray's ports are open")
    with pytest.raises(MeshrayError, match="Ray is not started: Ray's ports are open") as refused:
        require_guarded(firewall, unguarded=False)
    assert refused.value.code == "unguarded"
    require_guarded(firewall, unguarded=True)
    require_guarded(FakeFirewall(), unguarded=False)
    require_guarded(None, unguarded=False)


def test_without_a_ray_of_the_mesh_another_ray_is_closed() -> None:
    firewall, machine = FakeFirewall(), Machine()
    guard = guard_of(firewall, machine, None)

    async def go() -> None:
        await guard.close()
        assert not any(firewall.closed)
        machine.in_use = [ListeningSocket(6379, "::", True), ListeningSocket(8000, "0.0.0.0", False)]
        await guard.close()

    asyncio.run(go())
    assert firewall.closed[-1] == Closed(
        (), (("ip", ((6379, 6379),)), ("ip6", ((6379, 6379),))), members=((6379, 6379),)
    )


def test_a_port_that_cannot_be_closed_is_logged_once_and_retried(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("meshray.agent.device.port_guard.time.monotonic", lambda: now[0])
    firewall = FakeFirewall("Ray's ports are open")
    guard = guard_of(firewall, Machine(), FakeRay())

    async def go() -> None:
        await guard.close()
        await guard.close()
        assert len(firewall.closed) == 1
        now[0] += RETRY_S + 1
        await guard.close()
        assert len(firewall.closed) == 2

    with caplog.at_level(logging.ERROR):
        asyncio.run(go())
    assert [record.getMessage() for record in caplog.records] == ["firewall: Ray's ports are open"]
