"""`meshray doctor`: the agent's checks, and where there is no agent to ask, what can be said without it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from meshray.cli.app import App
from meshray.cli.options import json_option
from meshray.cli.results import DoctorResult, Result
from meshray.cli.tables import children
from meshray.errors import MeshrayError, UnreachableError, UsageError

if TYPE_CHECKING:
    from meshray.doctor.facts import Facts

#: All agents are asked, and each peer once more, before the agent answers.
_TIMEOUT_S = 30.0


@click.command("doctor")
@click.argument("node", required=False)
@click.option("--deep", is_flag=True, help="Run a task on every node and move 16 MiB between every two, with Ray.")
@click.option(
    "--soak", is_flag=True, help="With --deep: look again after 80 s, when Ray has dropped whom it cannot dial."
)
@json_option
@click.pass_obj
def doctor_command(app: App, node: str | None, deep: bool, soak: bool) -> Result:
    """Find out what is wrong and how to mend it.

    \b
    Examples:
      meshray doctor
      meshray doctor gpu-2 --json
      meshray doctor --deep --soak

    Names the first cause; what only follows from it is left out. On the head it covers every node and every pair,
    elsewhere this node and its way to all others; on a machine that is in no mesh, what a mesh would need. Exit
    code 3 when a check failed.
    """
    if soak and not deep:
        raise UsageError("soak_without_deep", "--soak repeats what --deep does", hint="meshray doctor --deep --soak")
    result = _examine(app, node or "")
    if not deep:
        return result
    from meshray.cli.deep import deep_checks

    return replace(result, checks=(*result.checks, *deep_checks(app, result.checks, node, soak=soak)))


def _examine(app: App, node: str) -> DoctorResult:
    try:
        answer = app.control().ask("doctor", timeout_s=_TIMEOUT_S, node=node)
    except UnreachableError as error:
        return _alone(app, error)
    except MeshrayError as error:
        if error.code != "not_root":
            raise
        return _alone(app, error)
    return DoctorResult(tuple(children(answer, "checks")), str(answer.get("self", "")))


def _alone(app: App, error: MeshrayError) -> DoctorResult:
    from meshray.doctor.report import examine

    facts = _without_agent(app, error)
    return DoctorResult(tuple(check.to_json() for check in examine(facts)), next(iter(facts.nodes), ""))


def _without_agent(app: App, error: MeshrayError) -> Facts:
    from meshray.agent.alone import look_alone
    from meshray.cli.enrolled import find_enrolment
    from meshray.doctor.facts import Facts
    from meshray.runtime.service import last_words

    home = app.home
    found = asyncio.run(look_alone(home, app.environ))
    nodes = {found.name: found}
    allowed_by = app.sudo_line() if error.code == "not_root" else ""
    try:
        enrolled = find_enrolment(home) is not None
    except MeshrayError as unreadable:
        if unreadable.code == "state_damaged":
            return Facts(agent_error=unreadable.message, nodes=nodes)
        enrolled = app.may_be_enrolled
        if enrolled and not allowed_by:
            return Facts(agent_error=unreadable.message, allowed_by=app.sudo_line(), nodes=nodes)
    words = last_words(home)
    agent_error = error.message + (f"; its last words: {words}" if words else "")
    return Facts(enrolled=enrolled, agent_error=agent_error, allowed_by=allowed_by, nodes=nodes)
