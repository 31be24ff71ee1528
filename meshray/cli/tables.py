"""Answers as aligned text. Pure; plain characters, so that it looks the same in a log, a mail and a terminal.

>>> print(columns([("NODE", "IP"), ("gpu-1", "10.99.0.2")]))
NODE   IP
gpu-1  10.99.0.2
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshray.protocol.answers import TokenEntry
    from meshray.protocol.control import OtherPath
    from meshray.protocol.status import PathStatus

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


def _path_kind(path: PathStatus) -> str:
    return f"{path.kind}/{path.transport}" if path.transport else str(path.kind)


def other_path_text(path: OtherPath) -> str:
    """Return the text of a path that packets could take, but do not."""
    line = f"not in use: {path.kind}"
    if path.to:
        answer = f"{path.rtt_ms:.1f} ms to there" if path.rtt_ms is not None else "which does not answer"
        line += f" by {path.to}, {answer}"
    return f"{line}: {path.reason}" if path.reason else line


def path_text(path: PathStatus) -> str:
    """Return one path as a line."""
    endpoint = f" to {path.endpoint}" if path.endpoint else ""
    mtu = f", mtu {path.mtu}" if path.mtu is not None else ""
    handshake = f", handshake {path.handshake_age_s:.0f} s ago" if path.handshake_age_s is not None else ""
    return _path_kind(path) + endpoint + mtu + handshake


def tokens_text(tokens: Iterable[TokenEntry], now: float) -> str:
    """Return one line per token; never a secret."""
    rows = [("TOKEN", "USED", "EXPIRES", "EPHEMERAL", "ROLES", "NODE", "STATE")]
    for token in tokens:
        rows.append(
            (
                token.id,
                f"{token.used} of {token.uses or 'any number'}",
                "never" if token.expires is None else age(token.expires - now),
                "yes" if token.ephemeral else "no",
                ", ".join(token.roles) or "-",
                _token_node(token),
                _token_state(token, now),
            )
        )
    return columns(rows)


def _token_node(token: TokenEntry) -> str:
    """Return the name of the node that joins with the token, and whether it replaces one."""
    return f"{token.name} (replaces it)" if token.name and token.replace else token.name or "-"


def _token_state(token: TokenEntry, now: float) -> str:
    if token.revoked:
        return "revoked"
    if token.expires is not None and token.expires <= now:
        return "expired"
    return "used up" if 0 < token.uses <= token.used else "valid"


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


def child(value: Object, key: str) -> Object:
    """Return the object under this key; an empty one if there is none."""
    item = value.get(key)
    return item if isinstance(item, Mapping) else {}


def children(value: Object, key: str) -> list[Object]:
    """Return the objects of the list under this key."""
    items = value.get(key)
    return [item for item in items if isinstance(item, Mapping)] if isinstance(items, (list, tuple)) else []
