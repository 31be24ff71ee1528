"""Looks at the machine itself: four parts beside each other, each in a thread with a time of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from functools import partial
from typing import TypeVar

from meshray.doctor.host import HostFacts
from meshray.doctor.probes import host_device, host_firewall, host_machine, host_routes
from meshray.doctor.probes.context import Context
from meshray.doctor.probes.threads import in_thread
from meshray.runtime import inside

log = logging.getLogger(__name__)

#: Whoever asks waits for the slowest part of the slowest node.
_PART_S = 4.0

T = TypeVar("T")


async def look(context: Context) -> HostFacts:
    """The facts of this node, within a few seconds; what could not be found out keeps its default."""
    device, machine, routing, firewall = await asyncio.gather(
        _in_time(host_device.look(context)),
        _in_time(host_machine.look(context)),
        _in_time(in_thread(partial(inside.run, host_routes.look, context))),
        _in_time(in_thread(partial(host_firewall.look, context))),
    )
    return HostFacts(device, machine, routing, firewall)


async def _in_time(look: Awaitable[T]) -> T | None:
    try:
        return await asyncio.wait_for(look, _PART_S)
    except asyncio.TimeoutError:
        return None
    except Exception:  # the other parts are still worth a look
        log.exception("a probe of the host failed")
        return None
