"""From where this process reaches the overlay.

On a node with root: from where it is, and nothing here does anything. Without root the overlay's interface is in a
network namespace of its own (`meshray.runtime.rootless`), which the agent stays out of: it lives in a thread that has
entered. A socket belongs for ever to the namespace in which it was made, so what was made inside can be used anywhere.

>>> overlay_netns.run(device.read)                         # blocks until done
>>> reader, writer = await overlay_netns.open_connection(IPv4Address("10.99.0.1"), 6379)
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from meshray.defaults import PROBE_PORT

if TYPE_CHECKING:
    from aiohttp import TCPConnector

    from meshray.linux.process import ManagedProcess


P = ParamSpec("P")
T = TypeVar("T")


class OverlayNamespace(Protocol):
    """A network namespace that threads of this process have entered."""

    @property
    def engine_inside(self) -> bool:
        """Whether WireGuard's engine is inside with its UDP socket; else that is in the machine's own network."""

    @property
    def internet_helper(self) -> str:
        """The program that leads from inside to the machine's own network; empty: nothing does."""

    def run(self, function: Callable[[], T]) -> T:
        """In a thread that is inside. Blocks; raises what the function raises."""

    def run_outside(self, function: Callable[[], T]) -> T:
        """In a thread that is not, for functions that run inside."""

    def path(self, path: str) -> Path:
        """A file inside, as this process sees it."""

    def wrap(self, argv: list[str], sockets: Path | None = None) -> list[str]:
        """The command that runs this one inside, started by `run_as_child`; as the user, with no other right.

        Args:
            sockets: the command is WireGuard's engine: it may make an interface, and its socket appears in this folder.
        """

    def run_as_child(self, function: Callable[[], T]) -> T:
        """In a thread whose child processes are inside."""


_entered: OverlayNamespace | None = None


def enter(namespace: OverlayNamespace | None) -> None:
    """Make this the namespace of the overlay for this process; None: its own, as on every node with root."""
    global _entered  # noqa: PLW0603 - a process has one, like its working directory
    _entered = namespace


def entered() -> OverlayNamespace | None:
    """Return the namespace of the overlay; None: this process's own."""
    return _entered


def run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls the function where the overlay is."""
    return function(*args, **kwargs) if _entered is None else _entered.run(lambda: function(*args, **kwargs))


def path(path: str) -> Path:
    """A file as Ray sees it: where the overlay is, some folders are others."""
    return Path(path) if _entered is None else _entered.path(path)


def run_outside(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls the function where the machine's own network is."""
    return function(*args, **kwargs) if _entered is None else _entered.run_outside(lambda: function(*args, **kwargs))


def run_beside_engine(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls the function where WireGuard's UDP socket is, and with it the loopback that it can reach."""
    inner = _entered is not None and _entered.engine_inside
    return run(function, *args, **kwargs) if inner else function(*args, **kwargs)


def spawn(process: ManagedProcess, argv: list[str], *, sockets: Path | None = None, **options: Any) -> None:
    """`ManagedProcess.spawn` of a command that is to run where the overlay is; ``sockets`` as `OverlayNamespace.wrap`.

    Raises:
        OSError: as there.
    """
    if _entered is None:
        process.spawn(argv, **options)
    else:
        command = _entered.wrap(argv, sockets)
        _entered.run_as_child(lambda: process.spawn(command, **options))


def udp(address: IPv4Address, port: int) -> socket.socket:
    """A socket on an overlay address of this node. Raises OSError where that cannot be bound."""
    return run(_bound, str(address), port)


def listener(ip: IPv4Address, port: int) -> socket.socket:
    """A TCP socket that listens on an address of this node; port 0: any. Raises OSError."""
    return run(socket.create_server, (str(ip), port))


async def open_connection(ip: IPv4Address | str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """``asyncio.open_connection`` to an overlay address. Raises OSError."""
    if _entered is None:
        return await asyncio.open_connection(str(ip), port)
    stream = _stream()
    try:
        await asyncio.get_running_loop().sock_connect(stream, (str(ip), port))
    except BaseException:
        stream.close()
        raise
    return await asyncio.open_connection(sock=stream)


async def machine_answers(ip: IPv4Address, timeout_s: float) -> bool:
    """Whether a machine answers at this overlay address at all: it refuses the TCP port of the number of the probes'
    UDP port, on which nothing listens and which the mesh's members reach whatever its firewall drops."""
    # asyncio.open_connection raises an error for each refusal, and the reference cycles with its frames take megabytes
    # until they are collected.
    try:
        with _stream() as stream:
            number = stream.connect_ex((str(ip), PROBE_PORT))
            if number == errno.EINPROGRESS:
                number = await _connected(stream, timeout_s)
    except OSError:  # no socket could be made
        return False
    return number in (0, errno.ECONNREFUSED)


async def _connected(stream: socket.socket, timeout_s: float) -> int:
    """Return the errno with which connecting ended, 0 where it succeeded."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def end() -> None:
        loop.remove_writer(stream)
        ended.set_result(None)

    loop.add_writer(stream, end)
    try:
        await asyncio.wait([ended], timeout=timeout_s)
    finally:
        loop.remove_writer(stream)
    return stream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if ended.done() else errno.ETIMEDOUT


def connector() -> TCPConnector | None:
    """For an aiohttp session with overlay addresses only; None: aiohttp's own will do."""
    if _entered is None:
        return None
    from aiohttp import TCPConnector

    return TCPConnector(socket_factory=lambda address: _stream())


def _bound(address: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        made.bind((address, port))
    except BaseException:
        made.close()
        raise
    return made


def _stream() -> socket.socket:
    stream = run(socket.socket, socket.AF_INET, socket.SOCK_STREAM)
    stream.setblocking(False)
    return stream
