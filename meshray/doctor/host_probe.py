"""Examine the machine itself: five parts concurrently, each in its own thread with its own timeout."""

from __future__ import annotations

import asyncio
from functools import partial

from meshray.doctor.context import Context
from meshray.doctor.deadlines import in_thread, in_time
from meshray.doctor.device import probe as device
from meshray.doctor.facts import HostFacts
from meshray.doctor.firewall import probe as firewall
from meshray.doctor.machine import probe as machine
from meshray.doctor.pod import probe as pod
from meshray.doctor.routes import probe as routes
from meshray.linux import overlay_netns

#: The timeout: the user waits for the slowest part of the slowest node.
_PART_S = 4.0


async def measure(context: Context) -> HostFacts:
    """Return the facts of this node within a few seconds; unknown values keep their defaults."""
    found = await asyncio.gather(
        in_time(device.measure(context), _PART_S),
        in_time(machine.measure(context), _PART_S),
        in_time(in_thread(partial(overlay_netns.run, routes.measure, context)), _PART_S),
        in_time(in_thread(partial(firewall.measure, context)), _PART_S),
        in_time(in_thread(partial(pod.measure, context)), _PART_S),
    )
    return HostFacts(*found)
