"""Access to the overlay's network namespace.

On a node with root this is the process's own namespace, and the functions here are plain calls. Without root the
overlay's interface is in a separate network namespace (`meshray.runtime.rootless`). The agent stays outside, and one of
its threads has entered. A socket belongs to the namespace in which it was created, and any thread can use it.

>>> overlay_netns.run(socket.if_nametoindex, "meshray0")   # blocks until done
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
        """Whether WireGuard's engine and its UDP socket are inside, and not in the machine's own network."""

    @property
    def internet_helper(self) -> str:
        """The program that connects the inside to the machine's own network; empty if there is none."""

    def run(self, function: Callable[[], T]) -> T:
        """Call the function in a thread that is inside. Blocks; raises the function's exceptions."""

    def run_outside(self, function: Callable[[], T]) -> T:
        """Call the function in a thread that is outside, from a function that runs inside."""

    def path(self, path: str) -> Path:
        """Return the path by which this process sees a file inside."""

    def wrap(self, argv: list[str], sockets: Path | None = None) -> list[str]:
        """Return the command that runs this one inside, as the user without other rights; for `run_as_child`.

        Args:
            sockets: given if the command is WireGuard's engine: it may create an interface, and its socket appears in
                this folder.
        """

    def run_as_child(self, function: Callable[[], T]) -> T:
        """Call the function in a thread whose child processes are inside."""


_entered: OverlayNamespace | None = None


def enter(namespace: OverlayNamespace | None) -> None:
    """Make this the overlay's namespace for this process; None for its own, as on nodes with root."""
    global _entered  # noqa: PLW0603 - a process has one, like its working directory
    _entered = namespace


def entered() -> OverlayNamespace | None:
    """Return the overlay's namespace; None if it is this process's own."""
    return _entered


def run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call the function in the overlay's namespace."""
    return function(*args, **kwargs) if _entered is None else _entered.run(lambda: function(*args, **kwargs))


def path(path: str) -> Path:
    """Return the path of a file as Ray sees it, since some folders differ in the overlay's namespace."""
    return Path(path) if _entered is None else _entered.path(path)


def run_outside(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call the function in the machine's own network namespace."""
    return function(*args, **kwargs) if _entered is None else _entered.run_outside(lambda: function(*args, **kwargs))


def run_in_engine_namespace(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call the function in the namespace of WireGuard's UDP socket, whose loopback it can reach."""
    inner = _entered is not None and _entered.engine_inside
    return run(function, *args, **kwargs) if inner else function(*args, **kwargs)


def spawn(process: ManagedProcess, argv: list[str], *, sockets: Path | None = None, **options: Any) -> None:
    """Start a command in the overlay's namespace; see `ManagedProcess.spawn` and `OverlayNamespace.wrap`.

    Raises:
        OSError: the program is missing or may not be executed.
    """
    if _entered is None:
        process.spawn(argv, **options)
    else:
        command = _entered.wrap(argv, sockets)
        _entered.run_as_child(lambda: process.spawn(command, **options))


def udp(address: IPv4Address, port: int) -> socket.socket:
    """Return a UDP socket on an overlay address of this node. Raises OSError if it cannot be bound."""
    return run(_bound, str(address), port)


def listener(ip: IPv4Address, port: int) -> socket.socket:
    """Return a listening TCP socket on an address of this node; port 0 for any. Raises OSError."""
    return run(socket.create_server, (str(ip), port))


async def open_connection(ip: IPv4Address | str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection to an overlay address, like ``asyncio.open_connection``. Raises OSError."""
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
    """Return whether any machine answers at this overlay address. It refuses a connection to TCP port `PROBE_PORT`, on
    which nothing listens and which every node's firewall admits for members."""
    # asyncio.open_connection raises an error for each refusal, and the reference cycles with its frames take megabytes
    # until they are collected.
    try:
        with _stream() as stream:
            number = stream.connect_ex((str(ip), PROBE_PORT))
            if number == errno.EINPROGRESS:
                number = await _connected(stream, timeout_s)
    except OSError:  # no socket is available
        return False
    return number in (0, errno.ECONNREFUSED)


async def _connected(stream: socket.socket, timeout_s: float) -> int:
    """Return the errno of the connection attempt, 0 on success."""
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
    """Return a connector for an aiohttp session to overlay addresses; None if aiohttp's default is sufficient."""
    if _entered is None:
        return None
    from aiohttp import TCPConnector

    return TCPConnector(socket_factory=lambda address: _stream())


def _bound(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.bind((address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _stream() -> socket.socket:
    stream = run(socket.socket, socket.AF_INET, socket.SOCK_STREAM)
    stream.setblocking(False)
    return stream
