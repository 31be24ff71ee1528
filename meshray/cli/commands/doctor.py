"""`meshray doctor`: the checks over what the agent sees, also where there is no agent."""

from __future__ import annotations

from dataclasses import replace

import click

from meshray.cli.app import App
from meshray.cli.options import json_option
from meshray.cli.results import DoctorResult, Result
from meshray.cli.tables import child
from meshray.doctor.report import Facts, examine
from meshray.errors import MeshrayError, UnreachableError
from meshray.model.status import NodeStatus

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
    return DoctorResult(tuple(check.to_json() for check in examine(_facts(app), node)))


def _facts(app: App) -> Facts:
    try:
        answer = app.control().ask("doctor", timeout_s=_TIMEOUT_S)
    except UnreachableError as error:
        return _without_agent(app, error)
    from meshray.cli.answers import status_from_json

    status = status_from_json(child(answer, "status"))
    expected = answer.get("ray_nodes")
    if isinstance(expected, (list, tuple)):
        ray_nodes = frozenset(map(str, expected))
    else:
        ray_nodes = frozenset(node.name for node in status.nodes if node.ray.alive is not None)
    answers = child(answer, "answers")
    nodes = tuple(_with_answer(node, answers[node.name]) if node.name in answers else node for node in status.nodes)
    return Facts(status=replace(status, nodes=nodes), ray_nodes=ray_nodes)


def _with_answer(node: NodeStatus, rtt_ms: object) -> NodeStatus:
    """The node with what it answered right now, which counts more than the last minutes."""
    if isinstance(rtt_ms, (int, float)):
        path = replace(node.path, rtt_ms=float(rtt_ms), loss=0.0 if node.path.loss == 1.0 else node.path.loss)
    else:
        path = replace(node.path, rtt_ms=None, loss=1.0)
    return replace(node, path=path)


def _without_agent(app: App, error: UnreachableError) -> Facts:
    from meshray.cli.enrolled import find_enrolment
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
