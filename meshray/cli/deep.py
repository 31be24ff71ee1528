"""``doctor --deep``: this node's Ray is given a job that goes over all nodes, as the user as whom Ray runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from meshray.cli.app import App
from meshray.cli.tables import child, children
from meshray.errors import MeshrayError
from meshray.runtime.select import agent_runtime

if TYPE_CHECKING:
    from meshray.doctor.job.facts import DeepFacts

#: Without these no job can begin.
_NEEDED = ("agent_running", "ray_head_answers")


def deep_checks(
    app: App, known: Sequence[Mapping[str, object]], node: str | None, *, soak: bool
) -> list[Mapping[str, object]]:
    """The checks of ``--deep``, in the form of ``doctor --json``.

    Args:
        known: what the agent's checks found; what follows from that is not told again.
        node: only what concerns this node.
    """
    from meshray.doctor.examine import examine
    from meshray.doctor.facts import Facts
    from meshray.doctor.job.checks import SPECS
    from meshray.doctor.report import Check

    found = _look(app, known, soak)
    report = examine(Facts(deep=found), node, SPECS if soak else SPECS[:1], map(Check.from_json, known))
    return [check.to_json() for check in report]


def _look(app: App, known: Sequence[Mapping[str, object]], soak: bool) -> DeepFacts:
    from meshray.doctor.job.facts import DeepFacts
    from meshray.doctor.job.probe import move_between_all
    from meshray.linux.user import User

    if any(check.get("code") in _NEEDED and check.get("status") == "fail" for check in known):
        return DeepFacts(soak, skipped="the agent or the Ray head does not answer")
    try:
        answer = app.control().ask("env")
    except MeshrayError as error:
        return DeepFacts(soak, skipped=f"no Ray job can be begun here: {error.message}")
    nodes = {
        str(entry.get("ip")): str(entry.get("name"))
        for entry in children(app.control().ask("status"), "nodes")
        # Whom Ray does not count is told by ray_alive.
        if child(entry, "ray").get("alive")
    }
    environ = {**app.environ, **{name: str(value) for name, value in child(answer, "env").items()}}
    uid = answer.get("person_uid")
    user = User.by_uid(uid) if app.euid == 0 and isinstance(uid, int) and uid != 0 else None
    if user is not None:
        environ.update(HOME=str(user.home), USER=user.name, LOGNAME=user.name)
    return move_between_all(
        Path(str(answer.get("python"))),
        environ,
        user,
        nodes,
        soak=soak,
        say=app.note,
        wrap=agent_runtime(app.home, app.environ).inside,
    )
