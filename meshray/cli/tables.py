"""Answers as aligned plain text, which looks the same in a log, a mail and a terminal. Pure.

>>> print(columns([("NODE", "IP"), ("gpu-1", "10.99.0.2")]))
NODE   IP
gpu-1  10.99.0.2
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

Object = Mapping[str, object]
#: A function that colours a text.
Paint = Callable[[str, str], str]


def plain(text: str, colour: str) -> str:
    """Return the text without colour: for files, scripts and pipes."""
    return text


def columns(
    rows: Sequence[Sequence[str]], colour: Callable[[int, int], str] = lambda row, column: "", paint: Paint = plain
) -> str:
    """Return the rows with aligned columns and two blanks between them.

    Args:
        colour: returns the colour of the cell in this row and column; empty: none.
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for line, row in enumerate(rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        cells[-1] = cells[-1].rstrip()
        shown = (paint(cell, name) if (name := colour(line, at)) else cell for at, cell in enumerate(cells))
        lines.append("  ".join(shown).rstrip())
    return "\n".join(lines)


def age(seconds: float) -> str:
    """Return a time relative to now in one unit: ``in 23 h``, ``5 min ago``."""
    value = duration(abs(seconds))
    return f"in {value}" if seconds >= 0 else f"{value} ago"


def duration(seconds: float) -> str:
    """Return a duration in the largest unit of which it contains at least two.

    >>> duration(24.4), duration(150), duration(86400 * 3)
    ('24 s', '2 min', '3 d')
    """
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def number(value: object, form: str) -> str:
    """Return a number in this format; ``-`` if it was not measured."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return form.format(value)
    return "-"


def gib(value: object, decimals: int = 1) -> str:
    """Return bytes as GiB."""
    return f"{value / 2**30:.{decimals}f} GiB" if isinstance(value, (int, float)) else "-"


def chosen_ports(ports: Object) -> str:
    """Return the ports of Ray that differ from the defaults, with their purposes; empty if none does.

    >>> chosen_ports({"gcs": 6379, "metrics_export": 8500})
    'metrics export 8500'
    """
    from meshray.model.ray_ports import PURPOSES, RayPorts

    default = RayPorts().to_json(head=True)
    chosen = {name: port for name, port in ports.items() if isinstance(port, int) and port != default.get(name, port)}
    return ", ".join(f"{PURPOSES[name]} {port}" for name, port in chosen.items())


def children(value: Object, key: str) -> list[Object]:
    """Return the objects of the list under this key."""
    items = value.get(key)
    return [item for item in items if isinstance(item, Mapping)] if isinstance(items, (list, tuple)) else []
