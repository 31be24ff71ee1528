"""The last step of init, join and up: start the agent, and follow it until the node is up.

start ──► progress of the agent, stage by stage ──► summary {mesh, node, path, ray, …}

With ``--block`` the agent runs in this process: a thread follows it, and its failure ends it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from meshray.cli.app import App
from meshray.cli.variables import without_variables
from meshray.errors import InterruptedByUser, MeshrayError, UnreachableError
from meshray.home import Home
from meshray.runtime import agent_service

if TYPE_CHECKING:
    from meshray.protocol.control import Summary

#: Longer than the agent's own time limit for any stage, seconds (Ray on a slow machine takes half a minute).
_SILENCE_S = 180.0
_POLL_S = 0.05
#: The time limit for the coordinator, seconds. It starts slowly on a slow machine, and is restarted if it ends.
_COORDINATOR_S = 90.0


def start_and_follow(app: App, home: Home) -> Summary:
    """Start the agent as a service, and return its summary when the node is up.

    Raises:
        MeshrayError: the agent did not start, or a stage failed; the agent keeps its state.
    """
    with app.progress() as progress:
        progress.stage("agent", "run", "starting")
        kind = agent_service.start(home, without_variables(app.environ))
        progress.stage("agent", "ok", "systemd unit" if kind == agent_service.SYSTEMD else "in the background")
        return follow(home, progress.stage)


def follow(home: Home, stage: Callable[[str, str, str], None]) -> Summary:
    """Show the agent's stages until it is up; return its summary, or raise the error that it reports."""
    from meshray.client.agent import ControlClient
    from meshray.protocol.control import FollowProgress

    up = ControlClient(home.control_socket).watch(
        FollowProgress(), lambda event: stage(event.stage, event.state, event.detail), timeout_s=_SILENCE_S
    )
    _wait_for_coordinator(home, stage)
    return up.summary


def _wait_for_coordinator(home: Home, stage: Callable[[str, str, str], None]) -> None:
    """On the head, wait until nodes can join. The agent can work without its coordinator; a new mesh cannot.

    Raises:
        MeshrayError: ``coordinator_failed`` with the last line that it wrote.
    """
    from meshray.node.enrolment import Enrolment

    if not Enrolment.load(home).hosts_coordinator:
        return
    deadline = time.monotonic() + _COORDINATOR_S
    while not _coordinator_answers(home):
        if time.monotonic() > deadline:
            words = agent_service.last_line(home.logs / "coordinator.log")
            stage("coordinator", "fail", words)
            raise MeshrayError(
                "coordinator_failed", f"the coordinator does not start: {words}", hint="meshray logs coordinator"
            )
        time.sleep(_POLL_S)
    stage("coordinator", "ok", "others can join")


def _coordinator_answers(home: Home) -> bool:
    from meshray.client.agent import ControlClient
    from meshray.protocol.control import GetStatus

    return ControlClient(home.control_socket).request(GetStatus()).coordinator.reachable


def run_here(app: App, home: Home, on_up: Callable[[Summary], None]) -> int:
    """Run the agent in this process until SIGTERM.

    Args:
        on_up: called once, from another thread, when the node is up.

    Raises:
        MeshrayError: a stage failed before the node was up.
        InterruptedByUser: a signal arrived before the node was up.
    """
    from meshray.runtime.upgrade.launch import follow_pointer

    follow_pointer(home, app.environ)
    from meshray.agent.main import run_foreground
    from meshray.node.enrolment import Enrolment
    from meshray.runtime.selection import agent_runtime

    if app.environ is os.environ:
        for name in os.environ.keys() - without_variables(os.environ).keys():
            del os.environ[name]  # Processes that this one starts do not inherit it.
    enrolment = Enrolment.load(home)
    agent_runtime(home, app.environ, enrolment.rootless).enter(enrolment.listen_port)
    watcher = _Watcher(app, home, on_up)
    watcher.start()
    try:
        exit_code = run_foreground(home, environ=app.environ)
    finally:
        watcher.ended.set()
        watcher.join(timeout=5)
    if watcher.error is not None:
        raise watcher.error
    if not watcher.is_up:
        raise InterruptedByUser("interrupted", "interrupted before the node was up")
    return exit_code


def with_last_log_lines(error: MeshrayError, home: Home) -> MeshrayError:
    """Add the last log lines of an ephemeral node to its error, because its logs are removed with it."""
    from meshray.node.enrolment import Enrolment

    try:
        if not Enrolment.load(home).ephemeral:
            return error
    except MeshrayError:
        return error
    logs = [home.logs / f"{name}.log" for name in ("agent", "ray")]
    words = [f"{log.name}: {agent_service.last_line(log)}" for log in logs if log.exists()]
    error.hint = "; ".join([*([error.hint] if error.hint else []), *words])
    return error


class _Watcher(threading.Thread):
    """A thread that follows the agent of this process."""

    def __init__(self, app: App, home: Home, on_up: Callable[[Summary], None]) -> None:
        super().__init__(name="progress", daemon=True)
        self._app = app
        self._home = home
        self._on_up = on_up
        self.ended = threading.Event()
        self.is_up = False
        self.error: MeshrayError | None = None

    def run(self) -> None:
        while not self.ended.is_set() and not agent_service.answers(self._home.control_socket):
            time.sleep(_POLL_S)
        if self.ended.is_set():
            return
        try:
            with self._app.progress() as progress:
                summary = follow(self._home, progress.stage)
        except MeshrayError as error:
            # An interruption also closes the socket; that is not a second failure.
            if isinstance(error, UnreachableError) and error.code == "agent_down":
                return
            self.error = with_last_log_lines(error, self._home)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        self.is_up = True
        self._on_up(summary)
