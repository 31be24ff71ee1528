"""The notices of `meshray status` about tasks and actors that wait, and why (pure).

>>> waiting_notices({head: RayState(True, {"CPU": 2.0}, {"CPU": 2.0}, waiting=(Waiting({"CPU": 1.0}, 58),))})
('58 tasks or actors wait for 1 CPU each: 2 of 2 CPU are in use',)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address

from meshray.model.ray_state import RayState, Waiting

#: More different requests are not listed one by one.
_MOST_LINES = 3


def waiting_notices(table: Mapping[IPv4Address, RayState] | None) -> tuple[str, ...]:
    """Return one line for each kind of request that waits; nothing if none does, or Ray did not answer."""
    rows = [row for row in (table or {}).values() if row.alive]
    waiting = sorted((item for row in rows for item in row.waiting), key=lambda item: -item.count)
    lines = [_line(item, rows) for item in waiting[:_MOST_LINES]]
    if rest := sum(item.count for item in waiting[_MOST_LINES:]):
        lines.append(f"{rest} more tasks or actors wait for other resources (meshray run -- ray status)")
    return tuple(lines)


def _line(item: Waiting, rows: Iterable[RayState]) -> str:
    wanted = " and ".join(_amount(name, amount) for name, amount in sorted(item.resources.items())) or "a free place"
    one = item.count == 1
    who = "1 task or actor waits" if one else f"{item.count} tasks or actors wait"
    able = [row for row in rows if all(row.resources.get(name, 0.0) >= need for name, need in item.resources.items())]
    if not able:
        return f"{who} for {wanted}{'' if one else ' each'}, which no node has: add such a node, or ask for less"
    name = next((name for name in ("GPU", "CPU", "memory") if name in item.resources), "")
    used = sum((row.used or {}).get(name, 0.0) for row in able)
    total = sum(row.resources.get(name, 0.0) for row in able)
    why = f": {used:g} of {total:g} {name} are in use" if name in ("GPU", "CPU") else ": the nodes are in use"
    return f"{who} for {wanted}{'' if one else ' each'}{why}"


def _amount(name: str, amount: float) -> str:
    return f"{amount / 2**30:.1f} GiB memory" if name == "memory" else f"{amount:g} {name}"
