"""What the doctor found, as the agent answers it and ``doctor --json`` prints it."""

from __future__ import annotations

import msgspec


class Check(msgspec.Struct, frozen=True):
    """One line of the doctor's report.

    Attributes:
        code: a stable word for the check; docs/troubleshooting.md explains each.
        title: what was checked.
        status: ``ok``, ``warn``, ``fail`` or ``skip`` (hidden by a failed check, or not applicable).
        node: where it was found; None: the mesh as a whole.
        peer: the other end, where the check is about the path from ``node`` to it.
        evidence: what was seen, with numbers and names.
        fix: the next command, with the node on which to run it where that is another.
        repair: the repair that ``doctor --fix`` makes on that node, by its key.
        depends_on: the codes of the checks that must be fine before this one means anything.
    """

    code: str = ""
    title: str = ""
    status: str = ""
    node: str | None = None
    peer: str | None = None
    evidence: str = ""
    fix: str = ""
    repair: str | None = None
    depends_on: tuple[str, ...] = ()


class DoctorReport(msgspec.Struct, frozen=True):
    """The agent's answer.

    Attributes:
        node: the name of the node that was asked.
        checks: every check, after those that it depends on.
    """

    node: str = msgspec.field(default="", name="self")
    checks: tuple[Check, ...] = ()
