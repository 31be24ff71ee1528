"""Grade fixes by what they cost if they are carried out as printed (pure).

A fix is graded by the commands that it names, from one table, because it may come from a check, from a part of the
agent, or from a node with another meshray.

    >>> grade("on gpu-1: ip link set meshray0 up"), grade("meshray down; meshray up"), grade("meshray leave")
    ('harmless', 'restart', 'destructive')
"""

from __future__ import annotations

import re
from collections.abc import Sequence

#: It interrupts nothing.
HARMLESS = "harmless"
#: It ends programs that can be started again: a node with its tunnel, its Ray, another program that has a port.
RESTART = "restart"
#: It ends a node's membership or the mesh, or deletes state.
DESTRUCTIVE = "destructive"
GRADES: Sequence[str] = (HARMLESS, RESTART, DESTRUCTIVE)

#: The commands and phrases of each grade. What is in none is harmless: `tests/unit/doctor/test_fix_grades.py` examines
#: all texts of the program for commands that are not in the table and should be.
_COMMANDS: Sequence[tuple[str, re.Pattern[str]]] = (
    (
        DESTRUCTIVE,
        re.compile(
            r"\bmeshray (leave|node rm|restore)\b|\bmeshray init --network\b|\bcreate the mesh again\b"
            r"|\brecreate the one with\b|\bdocker (rm|network rm)\b"
        ),
    ),
    (
        RESTART,
        re.compile(
            r"\bmeshray (down|node restart)\b|\bstart Ray again\b|\bend (it|\S+ \(pid|PID)\b|\bkill (-(TERM|KILL) )?\d"
            r"|\bpip install\b|\brecreate (it|this container)\b|\bdocker restart\b|\breboot\b"
        ),
    ),
)


def grade(fix: str) -> str:
    """Return the grade of the costliest command in a fix."""
    return next((name for name, commands in _COMMANDS if commands.search(fix)), HARMLESS)
