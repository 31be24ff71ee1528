"""Whether a machine answers at an address, tested on this machine's own."""

from __future__ import annotations

import gc
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from meshray.linux import overlay_netns

LOOPBACK = IPv4Address("127.0.0.1")


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Yield a TCP port on which nothing listens, in place of the probes' port."""
    with socket.socket() as holder:
        holder.bind((str(LOOPBACK), 0))
        monkeypatch.setattr(overlay_netns, "PROBE_PORT", holder.getsockname()[1])
        yield holder.getsockname()[1]


async def test_a_machine_that_refuses_answers_and_leaves_no_error_behind(port: int) -> None:
    gc.collect()
    gc.disable()
    try:
        assert await overlay_netns.machine_answers(LOOPBACK, 5.0)
        assert not [found for found in gc.get_objects() if type(found) is ConnectionRefusedError]
    finally:
        gc.enable()


async def test_a_machine_on_which_something_listens_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((str(LOOPBACK), 0)) as server:
        monkeypatch.setattr(overlay_netns, "PROBE_PORT", server.getsockname()[1])
        assert await overlay_netns.machine_answers(LOOPBACK, 5.0)


async def test_an_address_without_a_route_does_not_answer(port: int) -> None:
    assert not await overlay_netns.machine_answers(IPv4Address("255.255.255.255"), 5.0)


async def test_a_silent_machine_counts_as_not_answering(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server, socket.socket() as first, socket.socket() as second:
        server.bind((str(LOOPBACK), 0))
        server.listen(0)
        # The queue accepts one connection; the kernel drops the next.
        for stream in (first, second):
            stream.setblocking(False)
            stream.connect_ex(server.getsockname())
        monkeypatch.setattr(overlay_netns, "PROBE_PORT", server.getsockname()[1])
        assert not await overlay_netns.machine_answers(LOOPBACK, 0.2)
