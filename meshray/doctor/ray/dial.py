"""Dial TCP ports, and ask those that speak gRPC for a sign of life.

The kernel accepts connections for a process that hangs or was stopped, so a connection alone proves little. A gRPC
server must first send its SETTINGS frame on a connection (RFC 9113, section 3.4), before any authentication.

    >>> await dial("10.99.0.2", Target(20101, "node manager", greets=True), 2.0)
    PortAnswer(port=20101, what='node manager', answer='open', ms=0.6)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from meshray.doctor.ray.facts import DROPPED, FOREIGN, OPEN, REFUSED, SILENT, WORKERS, PortAnswer
from meshray.linux import overlay_netns
from meshray.model.ray_ports import RayPorts

#: The client's preface and an empty SETTINGS frame (RFC 9113, sections 3.4 and 6.5).
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_FRAME_HEADER_BYTES = 9
_SETTINGS = 4


@dataclass(frozen=True)
class Target:
    """A port. ``greets``: it speaks gRPC, so its server sends something first."""

    port: int
    what: str
    greets: bool = False


def ray_targets(ports: RayPorts, *, head: bool, workers: bool = True) -> Iterator[Target]:
    """Return the ports of a node that Ray dials from others. ``workers``: include a sample of its workers' ports."""
    if head:
        yield Target(ports.gcs, "GCS", greets=True)
        yield Target(ports.dashboard, "dashboard")
    yield Target(ports.node_manager, "node manager", greets=True)
    yield Target(ports.object_manager, "object manager", greets=True)
    yield Target(ports.dashboard_agent_grpc, "agent", greets=True)
    yield Target(ports.dashboard_agent_listen, "agent's HTTP")
    yield Target(ports.metrics_export, "metrics")
    if workers:
        yield from (Target(port, WORKERS) for port in ports.worker_sample)


async def dial(address: str, target: Target, timeout_s: float) -> PortAnswer:
    """Return how the port answers within the time; never raises for network errors."""
    start = time.monotonic()
    try:
        answer = await asyncio.wait_for(_answer(address, target, start + timeout_s * 0.9), timeout_s)
    except asyncio.TimeoutError:
        answer = DROPPED
    except ConnectionRefusedError:
        answer = REFUSED
    except OSError as error:
        answer = os.strerror(error.errno) if error.errno else str(error)
    return PortAnswer(target.port, target.what, answer, round((time.monotonic() - start) * 1000, 2))


async def _answer(address: str, target: Target, until: float) -> str:
    reader, writer = await overlay_netns.open_connection(address, target.port)
    try:
        if not target.greets:
            return OPEN
        writer.write(_PREFACE)
        # A late connection gets its chance as well.
        greeting_s = max(0.1, until - time.monotonic())
        frame = await asyncio.wait_for(reader.readexactly(_FRAME_HEADER_BYTES), greeting_s)
        return OPEN if frame[3] == _SETTINGS else FOREIGN
    except asyncio.TimeoutError:
        return SILENT
    except (asyncio.IncompleteReadError, ConnectionError):
        return FOREIGN
    finally:
        with contextlib.suppress(OSError):
            writer.transport.abort()
