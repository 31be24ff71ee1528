"""Names are looked up without holding up the event loop or its threads."""

from __future__ import annotations

import asyncio
import socket
import threading
from ipaddress import ip_address
from typing import Any

import pytest

from meshray.linux import dns


async def test_addresses_come_in_the_resolvers_order_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*args: Any, **options: Any) -> Any:
        return [(0, 0, 0, "", (ip, 0)) for ip in ("2001:db8::7", "192.0.2.7", "192.0.2.7")]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert await dns.addresses("vm.example.org") == (ip_address("2001:db8::7"), ip_address("192.0.2.7"))


@pytest.mark.parametrize("error", [socket.gaierror(socket.EAI_NONAME, "no such name"), UnicodeError("label too long")])
async def test_an_unresolvable_name_is_an_os_error(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def look_up(*args: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(OSError, match=r"name"):
        await dns.addresses("vm.example.org")


async def test_slow_names_keep_no_thread_from_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    answering = threading.Event()

    def look_up(*args: Any, **options: Any) -> Any:
        answering.wait(20)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    loop = asyncio.get_running_loop()
    waiting = [loop.create_task(dns.addresses(f"n{number}.example")) for number in range(dns.MAX_CONCURRENT + 8)]
    try:
        await asyncio.sleep(0.1)
        # Those beyond the limit have failed, the others wait.
        assert sum(task.done() for task in waiting) == 8
        assert await asyncio.wait_for(asyncio.to_thread(lambda: 7), 5) == 7
    finally:
        answering.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert sum(result == () for result in results) == dns.MAX_CONCURRENT
