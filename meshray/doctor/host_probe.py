"""Examine the machine itself: seven parts concurrently, each in its own thread with its own timeout."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial

from meshray.doctor.context import Context
from meshray.doctor.deadlines import in_thread, in_time
from meshray.doctor.device import probe as device
from meshray.doctor.facts import HostFacts
from meshray.doctor.firewall import probe as firewall
from meshray.doctor.lan import probe as lan
from meshray.doctor.machine import probe as machine
from meshray.doctor.outer import probe as outer
from meshray.doctor.pod import probe as pod
from meshray.doctor.routes import probe as routes
from meshray.firewall.inspect import HostRules, read_host_rules
from meshray.linux import overlay_netns

#: The timeout: the user waits for the slowest part of the slowest node.
_PART_S = 4.0


class _Once:
    """The host's rules, which two parts need and which are read once."""

    def __init__(self, read: Callable[[], HostRules]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._rules: HostRules | None = None

    def __call__(self) -> HostRules:
        """Return them; the first caller reads them, another waits for it."""
        with self._lock:
            if self._rules is None:
                self._rules = self._read()
            return self._rules


async def measure(context: Context) -> HostFacts:
    """Return the facts of this node within a few seconds; unknown values keep their defaults."""
    rules = _Once(read_host_rules)
    # mypy knows the types of no more than six results of one gather.
    found, on_lan = await asyncio.gather(
        asyncio.gather(
            in_time(device.measure(context), _PART_S),
            in_time(machine.measure(context), _PART_S),
            in_time(in_thread(partial(overlay_netns.run, routes.measure, context)), _PART_S),
            in_time(in_thread(partial(firewall.measure, context, rules)), _PART_S),
            in_time(in_thread(partial(pod.measure, context)), _PART_S),
            in_time(in_thread(partial(outer.measure, context, rules)), _PART_S),
        ),
        in_time(in_thread(partial(lan.measure, context)), _PART_S),
    )
    return HostFacts(*found, lan=on_lan)
