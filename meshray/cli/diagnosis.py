"""The doctor's report for users: failures first, then warnings, then a verdict. Pure.

FAIL  answer of the node's agent [w2]: its agent has stopped, but the machine and its tunnel work
      fix: on w2: meshray up; meshray logs agent
--    7 checks only follow from that

1 check failed (43 are fine, 14 not applicable).

`--all` adds a line for each check that is fine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from meshray.cli.tables import Paint, plain
from meshray.doctor.fix_grades import DESTRUCTIVE, RESTART
from meshray.model.amounts import counted

if TYPE_CHECKING:
    from meshray.protocol.answers import Doctor
    from meshray.protocol.doctor import Check

#: The beginning of a hidden check's evidence, see `meshray.doctor.report`.
_FOLLOWS = "follows from: "
_MARKS = {
    "ok": ("ok  ", "green"),
    "warn": ("WARN", "yellow"),
    "fail": ("FAIL", "red"),
    "skip": ("--  ", "bright_black"),
}
#: Of a long list only the first items are useful.
_NAMES = 3


def doctor_text(answer: Doctor, *, show_all: bool = False, paint: Paint = plain) -> str:
    """Return the repairs, the faults, and the verdict; checks hidden by a failed one are only counted."""
    by_status: dict[str, list[Check]] = {}
    for check in answer.checks:
        by_status.setdefault(check.status, []).append(check)
    skipped = by_status.get("skip", [])
    followers = [check for check in skipped if check.evidence.startswith(_FOLLOWS)]
    closed = [check for check in skipped if check.fix]
    lines = [f"{paint('done', 'green')}  {what}" for what in answer.repaired]
    for check in (*by_status.get("fail", []), *by_status.get("warn", []), *closed):
        lines += _in_full(check, paint)
    if followers:
        follow = "check only follows" if len(followers) == 1 else "checks only follow"
        lines.append(f"{_mark('skip', paint)}  {len(followers)} {follow} from that (--json lists them)")
    if show_all:
        lines += _healthy(by_status.get("ok", []), paint)
    lines += [*([""] if lines else []), _verdict(answer, paint)]
    if answer.bundle:
        lines.append(
            f"{paint('done', 'green')}  {answer.bundle} contains this report, logs and settings, to share with others"
        )
    return "\n".join(lines)


def explanation_text(answer: Doctor, code: str, paint: Paint = plain) -> str:
    """Return every result of one check, each with what it depends on and the causes that it weighed."""
    lines = []
    for check in answer.checks:
        if check.code == code:
            lines += _in_full(check, paint)
            lines += [f"      {line}" for line in check.explanation]
    depends_on = next((check.depends_on for check in answer.checks if check.code == code), ())
    if depends_on:
        lines.append(f"It is judged only if these pass: {', '.join(depends_on)}.")
    return "\n".join(lines or [f"The check {code} does not apply to this mesh."])


def _verdict(answer: Doctor, paint: Paint) -> str:
    count = Counter(check.status for check in answer.checks)
    fine, wrong, doubts, others = count["ok"], count["fail"], count["warn"], f"{count['skip']} not applicable"
    if not (wrong or doubts):
        return paint(f"{_all(answer)} healthy", "green") + f" ({counted(fine, 'check')}, {others})."
    failed = f"{counted(wrong, 'check')} failed" if wrong else "No check failed"
    warned = f", {counted(doubts, 'warning')}" if doubts else ""
    verb = "is" if fine == 1 else "are"
    return paint(failed + warned, "red" if wrong else "yellow") + f" ({fine} {verb} fine, {others})."


def _all(answer: Doctor) -> str:
    """Return the nodes that were checked, with the verb."""
    nodes = {check.node for check in answer.checks if check.node}
    pairs = {(check.node, check.peer) for check in answer.checks if check.peer}
    nodes |= {peer for _, peer in pairs if peer}
    if len(nodes) <= 1:
        return f"{next(iter(nodes), 'This machine')} is"
    return f"All {len(nodes)} nodes" + (f" and {counted(len(pairs), 'pair')}" if pairs else "") + " are"


def _in_full(check: Check, paint: Paint) -> list[str]:
    lines = [f"{_mark(check.status, paint)}  {check.title}{_where(check)}: {check.evidence}"]
    if check.fix:
        costs = f" ({check.fix_grade})" if check.fix_grade in (RESTART, DESTRUCTIVE) else ""
        lines.append(f"      fix{costs}: {check.fix}")
    return lines


def _where(check: Check) -> str:
    if not check.node:
        return ""
    return f" [{check.node} → {check.peer}]" if check.peer else f" [{check.node}]"


def _healthy(checks: Sequence[Check], paint: Paint) -> list[str]:
    """Return one line per check; of a check of many nodes or pairs only their number."""
    by_code: dict[str, list[Check]] = {}
    for check in checks:
        by_code.setdefault(check.code, []).append(check)
    return [f"{_mark('ok', paint)}  {same[0].title}{_of_all(same)}" for same in by_code.values()]


def _of_all(same: Sequence[Check]) -> str:
    if len(same) == 1:
        return f"{_where(same[0])}: {same[0].evidence}"
    if any(check.peer for check in same):
        return f": {len(same)} pairs"
    if len(same) <= _NAMES:
        return ": " + ", ".join(str(check.node) for check in same)
    return f": {len(same)} nodes"


def _mark(status: str, paint: Paint) -> str:
    mark, colour = _MARKS.get(status, (status, ""))
    return paint(mark, colour)
