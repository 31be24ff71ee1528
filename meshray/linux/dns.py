"""Look up DNS names without blocking anything else.

A name server that does not answer blocks its caller for half a minute. The event loop has few threads, which the
WireGuard device and files need, so each lookup has its own thread.

>>> await addresses("head.example.org")
(IPv4Address('203.0.113.7'), IPv6Address('2001:db8::7'))
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
from ipaddress import IPv4Address, IPv6Address, ip_address

Address = IPv4Address | IPv6Address

#: The maximum number of concurrent lookups; further ones fail at once.
MAX_CONCURRENT = 64

_slots = threading.BoundedSemaphore(MAX_CONCURRENT)


async def addresses(host: str, family: int = socket.AF_UNSPEC) -> tuple[Address, ...]:
    """Return the host's addresses, the preferred ones first. A lookup continues in the background if its caller is
    cancelled.

    Raises:
        OSError: the name does not resolve, or too many lookups are running.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[tuple[Address, ...]] = loop.create_future()
    if not _slots.acquire(blocking=False):
        raise OSError(errno.EAGAIN, "too many names are being looked up")

    def deliver(found: tuple[Address, ...], error: OSError | None) -> None:
        if result.done():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(found)

    def look_up() -> None:
        found: tuple[Address, ...] = ()
        failure: OSError | None = None
        try:
            found = _look_up(host, family)
        except OSError as error:
            failure = error
        except UnicodeError:  # a label that DNS cannot have
            failure = socket.gaierror(socket.EAI_NONAME, "not a DNS name")
        finally:
            _slots.release()
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(deliver, found, failure)

    # A daemon thread, so that the program's end does not wait for a name server.
    threading.Thread(target=look_up, name="lookup", daemon=True).start()
    return await result


def _look_up(host: str, family: int) -> tuple[Address, ...]:
    found = socket.getaddrinfo(host, None, family=family, type=socket.SOCK_DGRAM)
    return tuple(dict.fromkeys(ip_address(item[4][0]) for item in found))
