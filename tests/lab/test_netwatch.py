"""A real kernel's notifications about a host's network, while a laptop moves."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.lab.host import REPOSITORY, Host, HostProcess
from tests.lab.waiting import wait_until
from tests.lab.world import World

WATCH = """
import asyncio
from meshray.linux.network_monitor import network_changes
async def main():
    async for reason in network_changes():
        print(reason, flush=True)
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def laptop() -> Iterator[Host]:
    with World("test-netwatch") as world:
        wan = world.switch("wan", "203.0.113.0/24", gateway="203.0.113.1")
        yield world.host("laptop", wan, "203.0.113.10")


@pytest.fixture
def watch(laptop: Host) -> Iterator[HostProcess]:
    process = laptop.popen(["python", "-c", WATCH], env={"PYTHONPATH": str(REPOSITORY)}, name="watch")
    # It listens once it has reported a change.
    toggle = "ip address add 192.0.2.1/32 dev eth0 || ip address delete 192.0.2.1/32 dev eth0"
    wait_until(lambda: laptop.shell(toggle) and process.output, 10, "the watch to listen")
    laptop.shell("ip address add 192.0.2.2/32 dev eth0")
    wait_until(lambda: "192.0.2.2" in process.output, 5, "the last of its first news")
    yield process
    process.stop()
    laptop.shell("ip address delete 192.0.2.1/32 dev eth0; ip address delete 192.0.2.2/32 dev eth0; true")


def test_each_move_is_reported_once_and_soon(laptop: Host, watch: HostProcess) -> None:
    def reports(command: str, *words: str) -> None:
        before = len(watch.output.splitlines())
        start = time.monotonic()
        laptop.shell(command)
        line = wait_until(lambda: watch.output.splitlines()[before:], 5, f"news of: {command}")
        assert all(word in line[0] for word in words), line
        assert len(line) == 1
        assert time.monotonic() - start < 2

    reports("ip address add 203.0.113.77/24 dev eth0", "new address 203.0.113.77 on eth0")
    reports("ip route replace default via 203.0.113.2", "new default route via eth0")
    reports("ip route replace default via 203.0.113.1", "new default route via eth0")
    reports("ip link set eth0 down", "eth0 is down")
    reports("ip link set eth0 up", "eth0 is up")
    reports("ip route add default via 203.0.113.1", "new default route via eth0")
    reports("ip address flush dev eth0; ip address add 203.0.113.10/24 dev eth0", "lost address 203.0.113.10")


def test_changes_of_the_overlay_and_of_containers_are_ignored(laptop: Host, watch: HostProcess) -> None:
    before = watch.output
    laptop.shell(
        "ip link add meshray0 type bridge; ip link set meshray0 up; ip address add 10.99.0.7/16 dev meshray0;"
        "ip route add 10.99.0.9/32 dev meshray0 mtu 1280; ip address add 10.99.128.7/32 dev meshray0;"
        "ip link add veth0 type veth peer name veth1; ip link set veth0 up; ip address add 172.17.0.1/16 dev veth0;"
        "ip link delete veth0; ip link delete meshray0"
    )
    laptop.shell("ip address add 198.51.100.7/24 dev eth0")
    wait_until(lambda: watch.output != before, 5, "the one thing that counts")
    assert watch.output == f"{before}new address 198.51.100.7 on eth0\n"
