"""`meshray audit`: what was done in the mesh, by whom and from where."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import click

from meshray.cli.app import App
from meshray.cli.options import json_option
from meshray.cli.result import UNHEALTHY, Result
from meshray.cli.tables import Paint, columns, plain
from meshray.errors import MeshrayError
from meshray.protocol.audit import Audit, AuditRecord


@dataclass(frozen=True)
class AuditResult(Result[Audit]):
    """``audit``."""

    @property
    def exit_code(self) -> int:
        """3 if the log was changed."""
        return 0 if self.answer.intact else UNHEALTHY

    def text(self, paint: Paint = plain) -> str:
        """Return one line per record, and whether the chain of hashes is complete."""
        answer = self.answer
        rows = [("TIME", "EVENT", "NODE", "BY", "FROM", "DETAILS"), *map(_row, answer.records)]
        if answer.intact:
            chain = f"{answer.total} records; their hashes match; the newest is {answer.newest}"
        else:
            chain = paint(f"the log was changed: {answer.broken}", "red")
        return f"{columns(rows)}\n\n{chain}"


@click.command("audit")
@click.option(
    "-n", "--lines", type=click.IntRange(0), default=100, show_default=True, help="How many records, from the end."
)
@json_option
@click.pass_obj
def audit_command(app: App, lines: int) -> AuditResult:
    """Show what was done in the mesh, by whom and from where, and verify the log. On the head.

    \b
    Examples:
      sudo meshray audit
      sudo meshray audit --lines 20 --json

    The log has enrolments with the token, removals, changes of nodes and secrets, tokens, passes, and orders with their
    results. The coordinator only appends to it. Each record has a hash that covers the record before, so a changed or
    removed record is found: the exit code is 3. Records missing at the end are found only if you keep the newest hash
    elsewhere.
    """
    from meshray.coordinator.audit_log import read_log

    path = app.home.audit_log
    try:
        return AuditResult(read_log(path, lines))
    except FileNotFoundError:
        raise MeshrayError(
            "no_audit", f"this machine has no audit log ({path})", hint="on the head: sudo meshray audit"
        ) from None
    except PermissionError:
        raise MeshrayError("not_root", f"{path} may be read by root only", hint=app.sudo_line()) from None


def _row(record: AuditRecord) -> tuple[str, ...]:
    at = datetime.fromtimestamp(record.at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    details = ", ".join(f"{name} {text}" for name, text in record.details.items())
    return at, record.event, record.node or "-", record.by, record.source or "-", details or "-"
