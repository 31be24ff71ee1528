"""Looks at the machine itself: four parts beside each other, each in a thread with a time of its own."""

from __future__ import annotations

import asyncio
from functools import partial

from meshray.doctor.host import HostFacts
from meshray.doctor.probes import host_device, host_firewall, host_machine, host_routes
from meshray.doctor.probes.context import Context
from meshray.doctor.probes.patience import in_thread, in_time
from meshray.runtime import inside

#: Whoever asks waits for the slowest part of the slowest node.
_PART_S = 4.0


async def look(context: Context) -> HostFacts:
    """The facts of this node, within a few seconds; what could not be found out keeps its default."""
    device, machine, routing, firewall = await asyncio.gather(
        in_time(host_device.look(context), _PART_S),
        in_time(host_machine.look(context), _PART_S),
        in_time(in_thread(partial(inside.run, host_routes.look, context)), _PART_S),
        in_time(in_thread(partial(host_firewall.look, context)), _PART_S),
    )
    return HostFacts(device, machine, routing, firewall)
