"""The results of the doctor, as the agent answers them and ``doctor --json`` prints them."""

from __future__ import annotations

import msgspec


class Check(msgspec.Struct, frozen=True):
    """One line of the doctor's report.

    Attributes:
        code: a stable word for the check; docs/troubleshooting.md explains each.
        title: the subject of the check.
        status: ``ok``, ``warn``, ``fail`` or ``skip`` (hidden by a failed check, or not applicable).
        node: the node that it concerns; None: the mesh as a whole.
        peer: the other end, if the check concerns the path from ``node`` to it.
        evidence: the observations, with numbers and names.
        fix: the next command, with the node on which to run it if that is another.
        fix_grade: the cost of the fix as printed: ``harmless`` (interrupts nothing), ``restart`` (ends programs that
            can be started again) or ``destructive`` (ends a membership or the mesh, or deletes state); null without a
            fix.
        repair: the repair that ``doctor --fix`` makes on that node, by its key.
        depends_on: the codes of the checks that must succeed before this one is meaningful.
        explanation: the possible causes that were weighed, one line each: ``possible: …, because …`` or ``not: …,
            because …``; ``doctor --explain CODE`` prints them.
    """

    code: str = ""
    title: str = ""
    status: str = ""
    node: str | None = None
    peer: str | None = None
    evidence: str = ""
    fix: str = ""
    fix_grade: str | None = None
    repair: str | None = None
    depends_on: tuple[str, ...] = ()
    explanation: tuple[str, ...] = ()


class DoctorReport(msgspec.Struct, frozen=True):
    """The agent's answer.

    Attributes:
        node: the name of the node that was asked.
        checks: every check, after those that it depends on.
    """

    node: str = msgspec.field(default="", name="self")
    checks: tuple[Check, ...] = ()


CHECK_EXAMPLE = Check(
    code="handshake_fresh",
    title="the last WireGuard handshake is fresh",
    status="fail",
    node="head",
    peer="gpu-1",
    evidence="no handshake",
    fix="on head: meshray status; between here and there: is the mesh's UDP port open?",
    fix_grade="harmless",
    depends_on=("agent_running",),
    explanation=("possible: the mesh's UDP port is closed on the path, because the agent answers the coordinator",),
)
