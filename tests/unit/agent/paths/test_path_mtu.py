"""A path that becomes narrower is detected by stalled TCP, and measured again at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import IPv4Address

import pytest

from meshray.agent.paths import path_mtu
from meshray.agent.paths.path_mtu import PathMtu, PeerPath
from meshray.agent.paths.prober import Prober
from meshray.agent.paths.samples import Measured
from meshray.model.address import Endpoint

HERE, THERE = IPv4Address("10.99.0.2"), IPv4Address("10.99.0.3")
#: Paths of two peers whose endpoints are unknown: the underlay is not asked.
PATHS: list[PeerPath] = [(HERE, None), (THERE, None)]


class Paths(Prober):
    """Every path carries packets up to its own size; 0: it is silent."""

    def __init__(self) -> None:
        super().__init__()
        self.carries = {HERE: 1420, THERE: 1420}
        self.probes = 0

    def measured(self, peer: IPv4Address) -> Measured:
        return Measured((1.0,))

    async def round_trip(self, peer: IPv4Address, timeout_s: float, *, size: int = 0) -> float | None:
        self.probes += 1
        await asyncio.sleep(0.001)
        return 1.0 if size <= self.carries[peer] else None


class Kernel:
    """The routes that were set, in order, and the stalled TCP."""

    def __init__(self) -> None:
        self.routes: list[dict[IPv4Address, int]] = []
        self.stalled: set[IPv4Address] = set()

    def keeper(self, prober: Prober) -> PathMtu:
        keeper = PathMtu(prober, lambda: self.routes.append(dict(keeper.narrow)))
        return keeper

    def find(self) -> set[IPv4Address]:
        return set(self.stalled)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(path_mtu, "Stalls", lambda: kernel)
    monkeypatch.setattr(path_mtu, "_CHECK_S", 0.005)
    monkeypatch.setattr(path_mtu, "_RECHECK_S", 0.01)
    return kernel


async def until(condition: Callable[[], bool]) -> None:
    async def poll() -> None:
        while not condition():  # noqa: ASYNC110 - a test's condition has no event
            await asyncio.sleep(0.001)

    await asyncio.wait_for(poll(), 5)


async def test_stalled_tcp_triggers_a_measurement_and_meanwhile_uses_the_smallest_mtu(kernel: Kernel) -> None:
    paths = Paths()
    keeper = kernel.keeper(paths)
    running = asyncio.get_running_loop().create_task(keeper.run(lambda: PATHS))
    await until(lambda: keeper.is_measured(HERE) and keeper.is_measured(THERE))
    assert kernel.routes == []
    paths.carries[HERE] = 1300
    kernel.stalled = {HERE}
    await until(lambda: keeper.mtu(HERE) == 1300)
    assert kernel.routes == [{HERE: 1200}, {HERE: 1300}]
    assert keeper.mtu(THERE) == 1420
    # It continues to shrink; a path that cannot shrink further is left alone.
    paths.carries[HERE] = 1240
    await until(lambda: keeper.mtu(HERE) == 1240)
    paths.carries[HERE] = 0
    probes = paths.probes
    await until(lambda: paths.probes > probes + 3)
    assert keeper.mtu(HERE) == 1240
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_path_that_is_fine_or_silent_costs_a_few_packets_however_long_tcp_stalls(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(path_mtu, "_RECHECK_S", 60.0)
    monkeypatch.setattr(path_mtu, "_LONGEST_RECHECK_S", 60.0)
    paths = Paths()
    keeper = kernel.keeper(paths)
    running = asyncio.get_running_loop().create_task(keeper.run(lambda: PATHS))
    await until(lambda: keeper.is_measured(HERE) and keeper.is_measured(THERE))
    kernel.stalled = {HERE, THERE, IPv4Address("192.0.2.1")}
    before = paths.probes
    await until(lambda: paths.probes == before + 2)
    await asyncio.sleep(0.1)
    assert paths.probes == before + 2
    assert kernel.routes == []
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_measurement_of_an_abandoned_path_does_not_count(kernel: Kernel) -> None:
    class Slow(Paths):
        """The path through the hub answers late; its last answers would count for the direct path."""

        async def round_trip(self, peer: IPv4Address, timeout_s: float, *, size: int = 0) -> float | None:
            if direct:
                return await super().round_trip(peer, timeout_s, size=size)
            self.probes += 1
            await asyncio.wait_for(left.wait(), 5)
            await asyncio.sleep(0.05)
            return 1.0

    paths, direct, left = Slow(), False, asyncio.Event()
    current: list[PeerPath] = [(HERE, None)]
    keeper = kernel.keeper(paths)
    running = asyncio.get_running_loop().create_task(keeper.run(lambda: current))
    await until(lambda: paths.probes == 1)
    current[:], direct, paths.carries[HERE] = [(HERE, Endpoint("127.0.0.1", 9))], True, 1300
    keeper.paths_changed()
    left.set()
    await until(lambda: keeper.mtu(HERE) == 1300)
    await asyncio.sleep(0.1)
    assert (keeper.mtu(HERE), kernel.routes) == (1300, [{HERE: 1300}])
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_paths_are_determined_again_only_after_a_change(kernel: Kernel) -> None:
    paths, current, asked = Paths(), [(HERE, None)], 0

    def current_paths() -> list[PeerPath]:
        nonlocal asked
        asked += 1
        return list(current)

    keeper = kernel.keeper(paths)
    running = asyncio.get_running_loop().create_task(keeper.run(current_paths))
    await until(lambda: keeper.is_measured(HERE))
    await asyncio.sleep(0.1)
    assert asked == 1
    current.append((THERE, None))
    keeper.paths_changed()
    await until(lambda: keeper.is_measured(THERE))
    assert asked == 2
    current.remove((HERE, None))
    keeper.paths_changed()
    await until(lambda: not keeper.is_measured(HERE))
    assert (asked, keeper.is_measured(THERE)) == (3, True)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
