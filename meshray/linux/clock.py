"""The clocks: the one that people set, and the one that nobody can set.

>>> watch = ClockWatch(wall_s=1000.0, boot_s=10.0)
>>> watch.jumped_s(wall_s=1001.0, boot_s=11.0), watch.jumped_s(wall_s=-2598.0, boot_s=12.0)
(0.0, -3600.0)

The two have types of their own, so that mypy finds a time of one clock where a time of the other is expected.
"""

from __future__ import annotations

import time
from typing import NewType

#: Seconds since the machine was started, as `boot_s` returns them.
BootSeconds = NewType("BootSeconds", float)
#: Seconds since 1970, as `unix_s` returns them.
UnixSeconds = NewType("UnixSeconds", float)

#: What a clock may differ without having been set: NTP slews by 0.5 ms in a second.
_SET_S = 1.0


def boot_s() -> BootSeconds:
    """Seconds since the machine was started, its sleep included; whoever sets the clock does not change it."""
    return BootSeconds(time.clock_gettime(time.CLOCK_BOOTTIME))


def unix_s() -> UnixSeconds:
    """Seconds since 1970 by the wall clock, which anybody may set."""
    return UnixSeconds(time.time())


class SteadyClock:
    """Unix time as it was when this was made, and from then on by the boot clock: setting the clock changes nothing."""

    def __init__(self) -> None:
        self._apart_s = time.time() - boot_s()

    def __call__(self) -> float:
        """Unix seconds."""
        return self._apart_s + boot_s()


class ClockWatch:
    """Notices that somebody set the wall clock."""

    def __init__(self, wall_s: float, boot_s: float) -> None:
        self._apart_s = wall_s - boot_s

    def jumped_s(self, wall_s: float, boot_s: float) -> float:
        """By how much the wall clock was set since the last call, seconds, negative: back; 0 where it was not."""
        before, self._apart_s = self._apart_s, wall_s - boot_s
        jumped = self._apart_s - before
        return jumped if abs(jumped) >= _SET_S else 0.0
