"""``doctor --deep``: run a job on all nodes with this node's Ray, as the user who runs Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from meshray.cli.app import App
from meshray.errors import MeshrayError
from meshray.runtime.selection import agent_runtime

if TYPE_CHECKING:
    from meshray.doctor.job.facts import DeepFacts
    from meshray.protocol.doctor import Check

#: The checks that must succeed for a job to begin.
_NEEDED = ("agent_running", "ray_head_answers")


def deep_checks(app: App, known: Sequence[Check], node: str | None, *, soak: bool) -> tuple[Check, ...]:
    """Return the checks of ``--deep``.

    Args:
        known: the findings of the agent's checks; their consequences are not reported again.
        node: report only what concerns this node.
    """
    from meshray.doctor.examine import examine
    from meshray.doctor.facts import Facts
    from meshray.doctor.job.checks import SPECS

    found = _look(app, known, soak)
    return examine(Facts(deep=found), node, SPECS if soak else SPECS[:1], known)


def _look(app: App, known: Sequence[Check], soak: bool) -> DeepFacts:
    from meshray.doctor.job.facts import DeepFacts
    from meshray.doctor.job.probe import move_between_all
    from meshray.doctor.report import FAIL
    from meshray.linux.user import User
    from meshray.protocol.control import GetEnvironment, GetStatus

    if any(check.code in _NEEDED and check.status == FAIL for check in known):
        return DeepFacts(soak, skipped="the agent or the Ray head does not answer")
    try:
        found = app.control().request(GetEnvironment())
    except MeshrayError as error:
        return DeepFacts(soak, skipped=f"no Ray job can be started here: {error.message}")
    nodes = {
        node.ip: node.name
        for node in app.control().request(GetStatus()).nodes
        if node.ray.alive  # ray_alive reports the others.
    }
    environ = {**app.environ, **found.env}
    user = User.by_uid(found.user_uid) if app.euid == 0 and found.user_uid else None
    if user is not None:
        environ.update(HOME=str(user.home), USER=user.name, LOGNAME=user.name)
    return move_between_all(
        Path(found.python),
        environ,
        user,
        nodes,
        soak=soak,
        report=app.note,
        wrap=agent_runtime(app.home, app.environ).inside,
    )
