"""`meshray doctor`: the agent's checks, and without an agent those that are possible without it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from meshray.cli.app import App
from meshray.cli.complete import node_names
from meshray.cli.diagnosis import doctor_text, explanation_text
from meshray.cli.options import json_option, yes_option
from meshray.cli.result import UNHEALTHY, Result
from meshray.cli.tables import Paint, plain
from meshray.errors import MeshrayError, UnreachableError, UsageError
from meshray.protocol.answers import Doctor
from meshray.protocol.codec import to_json
from meshray.protocol.doctor import DoctorReport

if TYPE_CHECKING:
    from meshray.doctor.facts import Facts

#: All agents are asked, and each peer once more, before the agent answers.
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class DoctorResult(Result[Doctor]):
    """``doctor``: every check.

    Attributes:
        show_all: users also see the checks that are fine.
        explain: the code of the only check to show, with the causes that it weighed; empty: all checks.
    """

    show_all: bool = False
    explain: str = ""

    @property
    def exit_code(self) -> int:
        """3 if a check failed."""
        return 0 if self.answer.healthy else UNHEALTHY

    def text(self, paint: Paint = plain) -> str:
        """Return the faults and a verdict."""
        if self.explain:
            return explanation_text(self.answer, self.explain, paint)
        return doctor_text(self.answer, show_all=self.show_all, paint=paint)


@dataclass(frozen=True)
class DoctorOptions:
    """The options, which the user may combine."""

    deep: bool
    soak: bool
    fix: bool
    bundle: str | None
    with_addresses: bool
    yes: bool

    def check(self, app: App) -> None:
        """Raise UsageError if options contradict each other, or FILE exists; MeshrayError if they need root."""
        if self.soak and not self.deep:
            hint = "meshray doctor --deep --soak"
            raise UsageError("soak_without_deep", "--soak needs --deep", hint=hint)
        if self.yes and not self.fix:
            raise UsageError(
                "yes_without_fix", "--yes answers the questions of --fix", hint="meshray doctor --fix --yes"
            )
        if self.with_addresses and self.bundle is None:
            raise UsageError("no_bundle", "--with-addresses needs --bundle", hint="meshray doctor --bundle FILE")
        if self.fix:
            app.require_root()
        if self.bundle is not None:
            from meshray.cli.bundle import require_free

            require_free(Path(self.bundle))


@click.command("doctor")
@click.argument("node", shell_complete=node_names, required=False)
@click.option("--all", "show_all", is_flag=True, help="Also list the checks that passed.")
@click.option("--explain", metavar="CODE", help="Show the causes that this check weighed, with the evidence for each.")
@click.option(
    "--deep", is_flag=True, help="Run a task on every node and move 16 MiB between every two nodes, with Ray."
)
@click.option(
    "--soak",
    is_flag=True,
    help="With --deep: check again after 80 s, when Ray has dropped the nodes that it cannot dial.",
)
@click.option(
    "--fix", is_flag=True, help="Repair what meshray can repair on this machine; asks before each repair. Needs root."
)
@click.option("--bundle", metavar="FILE", help="Write the report with logs and settings to a .tar.gz, without secrets.")
@click.option("--with-addresses", is_flag=True, help="Leave public addresses in the bundle.")
@yes_option
@json_option
@click.pass_obj
def doctor_command(app: App, /, node: str | None, show_all: bool, explain: str | None, **options: Any) -> DoctorResult:
    """Find out what is wrong and how to fix it.

    \b
    Examples:
      meshray doctor
      meshray doctor gpu-2 --json
      meshray doctor --explain coordinator_tcp
      meshray doctor --deep --soak
      sudo meshray doctor --fix
      sudo meshray doctor --bundle report.tar.gz

    Reports the root cause first and leaves out what only follows from it. On the head it covers every node and every
    pair of nodes, on another node that node and its paths to all others, and on a machine outside any mesh what a mesh
    would need. Exit code 3 when a check failed.
    """
    chosen = DoctorOptions(**options)
    chosen.check(app)
    if explain is not None:
        _require_code(explain)
    report, repaired = _examine(app, node or ""), list[str]()
    if chosen.fix:
        report, repaired = _repair(app, report, node or "", chosen.yes)
    checks = report.checks
    if chosen.deep:
        from meshray.cli.deep_job import deep_checks

        checks = (*checks, *deep_checks(app, checks, node, soak=chosen.soak))
    is_healthy = all(check.status != "fail" for check in checks)
    answer = Doctor(healthy=is_healthy, node=report.node or None, checks=checks, repaired=tuple(repaired))
    if chosen.bundle is not None:
        from meshray.cli.bundle import write_bundle

        write_bundle(app, Path(chosen.bundle), to_json(answer), with_addresses=chosen.with_addresses)
        answer = msgspec.structs.replace(answer, bundle=chosen.bundle)
    return DoctorResult(answer, show_all, explain or "")


def _require_code(code: str) -> None:
    """Raise UsageError if no check has this code."""
    from difflib import get_close_matches

    from meshray.doctor.check_order import SPECS

    codes = [spec.code for spec in SPECS]
    if code not in codes:
        near = get_close_matches(code, codes, 1)
        hint = f"meshray doctor --explain {near[0]}" if near else "meshray doctor --json lists the codes"
        raise UsageError("unknown_check", f"the doctor has no check {code!r}", hint=hint)


def _repair(app: App, found: DoctorReport, node: str, yes: bool) -> tuple[DoctorReport, list[str]]:
    """Return the report after the possible repairs were made, from new checks, and the repairs in sentences."""
    from meshray.cli.commands.lifecycle import start_node
    from meshray.cli.doctor_fix import carry_out
    from meshray.doctor.repairs import planned

    keys = planned(found.checks, found.node)
    done = carry_out(app, keys, yes, start_node)
    return (_examine(app, node) if done else found), done


def _examine(app: App, node: str) -> DoctorReport:
    from meshray.protocol.control import RunDoctor

    try:
        return app.control().request(RunDoctor(node), timeout_s=_TIMEOUT_S)
    except UnreachableError as error:
        return _report_without_agent(app, error)
    except MeshrayError as error:
        if error.code != "not_root":
            raise
        return _report_without_agent(app, error)


def _report_without_agent(app: App, error: MeshrayError) -> DoctorReport:
    from meshray.doctor.examine import examine

    facts = _facts_without_agent(app, error)
    return DoctorReport(next(iter(facts.nodes), ""), tuple(examine(facts)))


def _facts_without_agent(app: App, error: MeshrayError) -> Facts:
    from meshray.agent.status.without_agent import survey_without_agent
    from meshray.doctor.facts import Facts

    found = asyncio.run(survey_without_agent(app.home, app.environ))
    fix = error.hint if error.code == "agent_stopped" else ""
    facts = Facts(agent_error=error.message, agent_fix=fix, nodes={found.name: found})
    if error.code == "not_root":
        return replace(facts, enrolled=app.may_be_enrolled, allowed_by=app.sudo_line())
    return _with_reason(app, facts)


def _with_reason(app: App, facts: Facts) -> Facts:
    from meshray.cli.membership_checks import find_enrolment
    from meshray.node.map_cache import load_map
    from meshray.runtime.agent_service import last_logged_error

    home = app.home
    try:
        if find_enrolment(home) is None:
            return replace(facts, enrolled=False)
        load_map(home)
    except MeshrayError as error:
        if error.code == "not_root":
            allowed_by = app.sudo_line() if app.may_be_enrolled else ""
            return replace(facts, enrolled=app.may_be_enrolled, agent_error=error.message, allowed_by=allowed_by)
        if error.code != "no_map":
            repair = "map" if error.code == "cache_damaged" else ""
            return replace(facts, agent_error=error.message, agent_repair=repair)
    words = last_logged_error(home)
    return replace(facts, agent_error=facts.agent_error + (f"; the last line of its log: {words}" if words else ""))
