"""`meshray doctor --fix`: ask before each repair, make it, and report the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from meshray.cli.app import App
from meshray.doctor import repairs
from meshray.errors import MeshrayError, UsageError
from meshray.home import Home
from meshray.protocol.control import GetStatus, Repair

#: A repair of Ray takes the longest, see `meshray.agent.repair_actions`.
_AGENT_S = 120.0
#: The time in which the agent must answer; otherwise it counts as hung.
_ANSWER_S = 5.0
#: An agent that hangs is killed after this; the processes that it supervises continue and are adopted.
_GRACE_S = 3.0


def carry_out(app: App, keys: Sequence[str], yes: bool, start: Callable[[App, Home], object]) -> list[str]:
    """Make these repairs, each after the user agreed; return what was done.

    Args:
        start: starts this node, like `meshray up`.

    Raises:
        UsageError: ``needs_yes``: there is no terminal on which to confirm; nothing was done.
        MeshrayError: a repair failed; earlier ones stay in effect.
    """
    done = []
    for key in keys:
        repair = repairs.REPAIRS[key]
        try:
            app.confirm(_question(repair), yes)
        except UsageError:
            raise
        except MeshrayError:  # The user declined this one, and may agree to the next.
            continue
        app.note(f"{repair.what} …")
        if repair.by == repairs.AGENT:
            done.append(app.control().request(Repair(key), timeout_s=_AGENT_S).done)
        else:
            done.append(HERE[key](app, start))
    return done


def _question(repair: repairs.Repair) -> str:
    what = repair.what[0].upper() + repair.what[1:]
    return f"{what}." + (f" This interrupts {repair.interrupts}." if repair.interrupts else "")


def _start_agent(app: App, start: Callable[[App, Home], object]) -> str:
    from meshray.runtime import agent_service

    home = app.own_home
    if _answers(app):  # The agent runs, so only its device is missing.
        return app.control().request(Repair("device"), timeout_s=_AGENT_S).done
    hung = agent_service.is_running(home)
    if hung:
        agent_service.stop(home, grace_s=_GRACE_S)
    start(app, home)
    return "the agent hung: it was ended and started again" if hung else "the agent was started"


def _answers(app: App) -> bool:
    try:
        app.control().request(GetStatus(), timeout_s=_ANSWER_S)
    except MeshrayError:
        return False
    return True


def _new_map(app: App, start: Callable[[App, Home], object]) -> str:
    path = app.own_home.map_cache
    aside = path.with_name(f"{path.name}.damaged")
    path.replace(aside)
    start(app, app.own_home)
    return f"the damaged map was moved to {aside}, and a new one was fetched"


HERE: Mapping[str, Callable[[App, Callable[[App, Home], object]], str]] = {"agent": _start_agent, "map": _new_map}
