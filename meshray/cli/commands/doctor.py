"""`meshray doctor`: the agent's checks, and where there is no agent to ask, what can be said without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from meshray.cli.app import App
from meshray.cli.options import json_option
from meshray.cli.results import DoctorResult, Result
from meshray.cli.tables import children
from meshray.errors import MeshrayError, UnreachableError

if TYPE_CHECKING:
    from meshray.doctor.facts import Facts

#: Every peer is asked once more before the agent answers.
_TIMEOUT_S = 30.0


@click.command("doctor")
@click.argument("node", required=False)
@json_option
@click.pass_obj
def doctor_command(app: App, node: str | None) -> Result:
    """Find out what is wrong and how to mend it.

    \b
    Examples:
      meshray doctor
      meshray doctor gpu-2 --json

    Names the first cause; what only follows from it is left out. Exit code 3 when a check failed.
    """
    from meshray.doctor.report import examine

    try:
        answer = app.control().ask("doctor", timeout_s=_TIMEOUT_S, node=node or "")
    except UnreachableError as error:
        return DoctorResult(tuple(check.to_json() for check in examine(_without_agent(app, error))))
    return DoctorResult(tuple(children(answer, "checks")))


def _without_agent(app: App, error: UnreachableError) -> Facts:
    from meshray.cli.enrolled import find_enrolment
    from meshray.doctor.facts import Facts
    from meshray.runtime.service import last_words

    home = app.home
    enrolled = True
    try:
        enrolled = find_enrolment(home) is not None
    except MeshrayError as unreadable:
        if unreadable.code == "not_root" and not home.state.exists():
            enrolled = False
        elif unreadable.code == "state_damaged":
            return Facts(agent_error=unreadable.message)
    words = last_words(home)
    return Facts(enrolled=enrolled, agent_error=error.message + (f"; its last words: {words}" if words else ""))
