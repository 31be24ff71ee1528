"""Whether a time service such as chrony keeps the clock of this machine."""

from __future__ import annotations

import ctypes

#: STA_UNSYNC of linux/timex.h: no time service keeps the clock.
_UNSYNCHRONISED = 0x40
#: Larger than `struct timex`, 208 bytes with 64-bit words.
_TIMEX_BYTES = 512


class _Timex(ctypes.Structure):
    """The beginning of `struct timex` (adjtimex(2))."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * _TIMEX_BYTES),
    )


def is_synchronised() -> bool | None:
    """Return whether a time service keeps the kernel's clock; None if the kernel does not report it (adjtimex(2))."""
    state = _Timex()
    try:
        failed = ctypes.CDLL(None).adjtimex(ctypes.byref(state)) < 0
    except (AttributeError, OSError):
        return None
    return None if failed else not state.status & _UNSYNCHRONISED
