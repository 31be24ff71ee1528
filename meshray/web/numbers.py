"""Numbers as the page writes them, with their units. An unknown number is shown as an en dash.

>>> duration(7500), milliseconds(12.345), size(3 * 2**30), rate(1_500_000), share(0.031)
('2 h', '12.3 ms', '3 GiB', '1.5 MB/s', '3.1 %')
"""

from __future__ import annotations

from collections.abc import Mapping

UNKNOWN = "–"
_KIB = 1024
_BINARY_UNITS = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20))
_STEPS = ((86400, "d"), (3600, "h"), (60, "min"))


def duration(seconds: float) -> str:
    """Return a duration in its largest unit."""
    for length, unit in _STEPS:
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def milliseconds(value: float | None) -> str:
    """Return a round trip time with three significant digits at most."""
    if value is None:
        return UNKNOWN
    if value >= 1000:
        return f"{value / 1000:.1f} s"
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


def share(value: float | None) -> str:
    """Return a share, such as packet loss, as a percentage."""
    if value is None:
        return UNKNOWN
    return f"{value * 100:.1f} %" if 0 < value < 0.1 else f"{value:.0%}".replace("%", " %")


def size(value: float | None) -> str:
    """Return an amount of memory in binary units, as Ray's memory is given."""
    if value is None:
        return UNKNOWN
    unit, factor = _binary_unit(value)
    return f"{value / factor:.0f} {unit}" if factor == _KIB else f"{_short(value / factor)} {unit}"


def used_size(used: float, whole: float) -> str:
    """Return how much of an amount of memory is in use, both in the unit of the whole.

    >>> used_size(2**29, 4 * 2**30)
    '0.5 / 4 GiB'
    """
    _, factor = _binary_unit(whole)
    return f"{used / factor:.1f}".removesuffix(".0") + f" / {size(whole)}"


def volume(value: float | None) -> str:
    """Return an amount of traffic in decimal units, as `meshray status` does."""
    if value is None:
        return UNKNOWN
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _binary_unit(value: float) -> tuple[str, int]:
    """Return the largest unit that the value fills, and its bytes."""
    return next((unit for unit in _BINARY_UNITS if value >= unit[1]), ("KiB", _KIB))


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}".removesuffix(".0")


def rate(value: float | None) -> str:
    """Return a bandwidth, given in bytes per second."""
    return UNKNOWN if value is None else f"{volume(value)}/s"


def amount(value: float | None) -> str:
    """Return a count that may be fractional, such as CPUs."""
    return UNKNOWN if value is None else f"{round(value, 2):g}"


def resource(name: str, value: float | None) -> str:
    """Return an amount of one of Ray's resources."""
    return size(value) if name in MEMORY else amount(value)


def used_share(name: str, resources: Mapping[str, float], used: Mapping[str, float] | None) -> float | None:
    """Return the share of a resource that is in use, 0 to 1; None: not known, or there is nothing to use."""
    whole = resources.get(name)
    if not whole or used is None or name not in used:
        return None
    return min(1.0, max(0.0, used[name] / whole))


#: Ray's resources in bytes.
MEMORY = frozenset({"memory", "object_store_memory"})
