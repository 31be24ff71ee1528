"""The coordinator as a process: `python -m meshray.coordinator [--port N]`.

It finds its mesh through MESHRAY_HOME, logs to stderr, and ends cleanly on SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from meshray.coordinator.server import EVERYWHERE, Server
from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.model.printable import escaped
from meshray.runtime.log_output import given_descriptor, start_logging

#: Each agent holds one; the usual soft limit of 1024 would limit the size of the mesh.
_OPEN_FILES = 65536


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m meshray.coordinator", description="The coordinator of a mesh.")
    parser.add_argument("--port", type=int, help="TCP port (default: the port of the mesh)")
    parser.add_argument("--listen", action="append", metavar="ADDRESS", help="an address to listen on (default: all)")
    parser.add_argument(
        "--overlay-sockets",
        type=Path,
        metavar="SOCKET",
        help="the Unix socket at which the agent passes sockets of the overlay",
    )
    options = parser.parse_args(arguments)
    # aiohttp would log a traceback for every malformed request of an unauthenticated client.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    _allow_many_connections()
    server = Server(
        Home.from_environment(),
        port=options.port,
        hosts=options.listen or EVERYWHERE,
        overlay_sockets=options.overlay_sockets,
    )
    try:
        start_logging(logging.StreamHandler(sys.stderr), os.environ, given_descriptor(os.environ))
        asyncio.run(_serve(server))
    except MeshrayError as error:
        hint = f"\n  {escaped(error.hint)}" if error.hint else ""
        sys.stderr.write(f"meshray coordinator: {escaped(error.message)}{hint}\n")
        return error.exit_code
    return 0


async def _serve(server: Server) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await server.start()
    await server.run_until(stop)


def _allow_many_connections() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))


if __name__ == "__main__":
    sys.exit(main())
