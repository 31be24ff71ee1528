"""The wall clock, which users can set, and the boot clock, which they cannot.

>>> watch = ClockWatch(wall_s=1000.0, boot_s=10.0)
>>> watch.jumped_s(wall_s=1001.0, boot_s=11.0), watch.jumped_s(wall_s=-2598.0, boot_s=12.0)
(0.0, -3600.0)

Their times have different types, so that mypy detects a confusion of the two.
"""

from __future__ import annotations

import time
from typing import NewType

#: Seconds since the machine was started, as `boot_s` returns them.
BootSeconds = NewType("BootSeconds", float)
#: Seconds since 1970, as `unix_s` returns them.
UnixSeconds = NewType("UnixSeconds", float)

#: The largest change that is not a jump: NTP slews by 0.5 ms per second.
_SET_S = 1.0


def boot_s() -> BootSeconds:
    """Return the seconds since boot, including sleep. Setting the wall clock does not change them."""
    return BootSeconds(time.clock_gettime(time.CLOCK_BOOTTIME))


def unix_s() -> UnixSeconds:
    """Return the seconds since 1970 by the wall clock, which users may set."""
    return UnixSeconds(time.time())


class SteadyClock:
    """Unix time that starts with the wall clock and continues with the boot clock, so that setting the clock has no
    effect."""

    def __init__(self) -> None:
        self._offset_s = time.time() - boot_s()

    def __call__(self) -> float:
        """Return unix seconds."""
        return self._offset_s + boot_s()


class ClockWatch:
    """Detects that the wall clock was set."""

    def __init__(self, wall_s: float, boot_s: float) -> None:
        self._offset_s = wall_s - boot_s

    def jumped_s(self, wall_s: float, boot_s: float) -> float:
        """Return by how much the wall clock was set since the last call, seconds; negative for back, 0 if it was not
        set."""
        before, self._offset_s = self._offset_s, wall_s - boot_s
        jumped = self._offset_s - before
        return jumped if abs(jumped) >= _SET_S else 0.0
