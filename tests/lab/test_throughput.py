"""A packet train over a link of known speed; the oracle is the kernel's own shaper."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.host import REPOSITORY, Host
from tests.lab.waiting import wait_until
from tests.lab.world import World

METER = """
import asyncio, sys
from ipaddress import IPv4Address
from meshray.agent.paths.throughput import ThroughputMeter
async def main():
    meter = ThroughputMeter()
    await meter.open(IPv4Address(sys.argv[1]))
    if len(sys.argv) > 2:
        print(sorted([await meter.sample(IPv4Address(sys.argv[2])) or 0.0 for _ in range(3)])[1])
    else:
        print("ready", flush=True)
        await asyncio.sleep(600)
    meter.close()
asyncio.run(main())
"""
PATH = {"PYTHONPATH": str(REPOSITORY)}


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Host, Host]]:
    with World("test-throughput") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        one, two = world.host("one", wan, "203.0.113.10"), world.host("two", wan, "203.0.113.20")
        far = two.popen(["python", "-c", METER, str(two.address)], env=PATH)
        wait_until(lambda: "ready" in far.output, 10, "the far side")
        yield one, two


@pytest.mark.parametrize("mbit_s", [2, 20, 90])
def test_a_shaped_link(pair: tuple[Host, Host], mbit_s: int) -> None:
    one, two = pair
    one.shell(f"tc qdisc replace dev eth0 root tbf rate {mbit_s}mbit burst 3000 limit 400000")
    sample = float(one.run(["python", "-c", METER, str(one.address), str(two.address)], env=PATH).stdout)
    # A busy machine makes it lower, nothing makes it much higher.
    assert mbit_s * 0.5 < sample < mbit_s * 1.4
