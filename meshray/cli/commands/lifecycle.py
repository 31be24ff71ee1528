"""`meshray up`, `down` and `leave`: the life of an enrolled node."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from msgspec import UNSET

from meshray.cli import bring_up, output
from meshray.cli.app import App
from meshray.cli.join_result import JoinResult
from meshray.cli.options import json_option, parse_duration, yes_option
from meshray.cli.result import Result
from meshray.cli.tables import Paint, plain
from meshray.errors import MeshrayError, UnreachableError
from meshray.home import Home
from meshray.protocol.answers import Down, Leave
from meshray.runtime.base import Answer, Command
from meshray.runtime.selection import runtime_of

if TYPE_CHECKING:
    from meshray.node.enrolment import Enrolment
    from meshray.protocol.control import Summary
    from meshray.protocol.status import Status

#: The timeout covers several addresses of the coordinator, seconds.
_API_S = 30.0
#: The interval at which the end of Ray is checked, seconds.
_DRAIN_POLL_S = 0.5

R = TypeVar("R", bound=Result[Any])


@dataclass(frozen=True)
class DownResult(Result[Down]):
    """``down``: nothing of the node runs; it stays enrolled."""

    def text(self, paint: Paint = plain) -> str:
        """Return whether anything ran."""
        if not self.answer.was_running:
            return f"{self.answer.node} was down already"
        return f"{self.answer.node} is down; it stays enrolled (meshray up starts it again)"


@dataclass(frozen=True)
class LeaveResult(Result[Leave]):
    """``leave``: the node's state on this machine is deleted."""

    def text(self, paint: Paint = plain) -> str:
        """Return what remains of the node."""
        node = self.answer.node
        if self.answer.local:
            return f"nothing of {node} is kept on this machine; the mesh still has that node (meshray join TOKEN)"
        return f"{node} has left the mesh; no state is kept on this machine"


@click.command("up")
@click.option(
    "--coordinator",
    metavar="HOST:PORT",
    help="The new address of the head: from now on, this node connects to the coordinator there first.",
)
@json_option
@click.pass_obj
def up_command(app: App, coordinator: str | None) -> JoinResult:
    """Start this node again.

    \b
    Examples:
      sudo meshray up
      sudo meshray up --coordinator 203.0.113.7:51888

    The node keeps its name, address and key. Returns when the node is up, at once if it is up already.
    """
    home = app.own_home

    def start() -> Answer:
        from meshray.protocol.codec import to_json

        app.require_root_of_node()
        return to_json(start_node(app, home, coordinator))

    words = ["up", "--json", *(["--coordinator", coordinator] if coordinator is not None else [])]
    return JoinResult.read(runtime_of(home, app.environ).up(Command(words, start), app), fresh=False)


def start_node(app: App, home: Home, coordinator: str | None = None) -> Summary:
    """Start the agent unless it runs, and return its summary when the node is up.

    Args:
        coordinator: the coordinator's new endpoint, HOST:PORT; None: unchanged.

    Raises:
        MeshrayError: the reason why it cannot come up.
    """
    from meshray.cli.coordinator_address import use_coordinator, wait_until_connected
    from meshray.cli.env_options import record_session
    from meshray.cli.matching import match_again
    from meshray.client.coordinator import RemovedFromMesh
    from meshray.node.enrolment import MATCH, Enrolment, load_private_key
    from meshray.node.state_folder import claimed
    from meshray.runtime import agent_service

    enrolment = Enrolment.load(home)
    if enrolment.taken_out:
        raise RemovedFromMesh
    load_private_key(home)
    if not enrolment.trust_user_environment:
        app.run_from_copy()
    if enrolment.hosts_coordinator:
        _check_store(home)
    _check_map(home, enrolment)
    with claimed(home):
        if coordinator is not None:
            use_coordinator(app, home, enrolment, coordinator)
            enrolment = Enrolment.load(home)
        if done := agent_service.resume(home):
            app.note(done)
        if ran := agent_service.is_running(home):
            with app.progress() as progress:
                summary = bring_up.follow(home, progress.stage)
        else:
            enrolment = record_session(app, home, enrolment)
            if enrolment.env == MATCH:
                match_again(app, home, enrolment)
            summary = bring_up.start_and_follow(app, home)
    if coordinator is not None:
        wait_until_connected(app)
    if ran:
        _require_sole(app)
        _warn_of_other_copy(app, home)
    return summary


def start_again(app: App, block: bool, result: Callable[[Summary], R]) -> R | int:
    """Bring up the node that `init` or `join` found here; with ``block`` in the foreground, unless it runs.

    Args:
        result: the command's answer, once the node is up.
    """
    from meshray.runtime import agent_service

    home = app.own_home
    if block and not agent_service.is_running(home):
        return bring_up.run_here(app, home, lambda summary: output.show(app, result(summary)))
    return result(start_node(app, home))


def _warn_of_other_copy(app: App, home: Home) -> None:
    """Warn if the agent still runs the meshray with which it was started."""
    from meshray.runtime import agent_service

    running = agent_service.runs_from(home)
    if running is not None and running != Path(sys.prefix):
        app.warn(f"the agent still runs from {running}: meshray down, then meshray up, starts it from {sys.prefix}")


def _require_sole(app: App) -> None:
    """Raise TakenOver if this node is up, but another machine uses its identity as well."""
    from meshray.client.coordinator import TakenOver
    from meshray.model.node import ONE_IDENTITY
    from meshray.protocol.control import GetStatus

    status = app.control().request(GetStatus())
    for problem in status.health:
        if problem.code == ONE_IDENTITY and problem.node == status.node:
            raise TakenOver(message=problem.text)


def _check_store(home: Home) -> None:
    """Raise MeshrayError if the coordinator cannot start with its store. A locked store is in use, so it is fine."""
    from meshray.coordinator.store import open_store

    try:
        open_store(home).close()
    except MeshrayError as error:
        if error.code != "store_locked":
            raise


def _check_map(home: Home, enrolment: Enrolment) -> None:
    """Raise MeshrayError with a hint if the map is damaged.

    If it is missing, the head restores it from the coordinator's store; other nodes' agents request it.
    """
    from meshray.node.map_cache import load_map

    try:
        load_map(home)
    except MeshrayError as error:
        if error.code != "no_map":
            raise
        if enrolment.hosts_coordinator:
            restore_map(home)


def restore_map(home: Home) -> None:
    """Write the map of the head from the coordinator's store. Raises MeshrayError as `open_store` does."""
    from meshray.coordinator.store import open_store
    from meshray.node.map_cache import save_map

    store = open_store(home)
    try:
        save_map(home, store.load().map)
    finally:
        store.close()


@click.command("down")
@json_option
@click.pass_obj
def down_command(app: App) -> DownResult:
    """Stop this node; it stays enrolled.

    \b
    Example:
      sudo meshray down

    Ends the Ray that meshray started here (and no other), the tunnel and the firewall rules. On the head the
    coordinator stops as well: the other nodes keep their connections, but no new node can join.
    """
    from meshray.node.enrolment import Enrolment
    from meshray.node.state_folder import claimed

    home = app.own_home

    def stop() -> Answer:
        app.require_root_of_node()
        enrolment = Enrolment.load(home)
        with claimed(home):
            return {"node": enrolment.name, "was_running": _take_down(app, home)}

    answer = runtime_of(home, app.environ).down(Command(["down", "--json"], stop), app)
    return DownResult(Down(str(answer["node"]), answer["was_running"] is True))


@click.command("leave")
@yes_option
@click.option(
    "--drain",
    default="0",
    metavar="TIME",
    help="First wait up to TIME for running tasks to end: 60s, 10m. Not on a head.",
)
@click.option(
    "--local",
    is_flag=True,
    help="Remove the state on this machine only, without notifying the coordinator: for a copy of another node's disk.",
)
@json_option
@click.pass_obj
def leave_command(app: App, yes: bool, drain: str, local: bool) -> LeaveResult:
    """Un-enrol this node and remove all its state.

    \b
    Examples:
      sudo meshray leave
      sudo meshray leave --drain 5m
      sudo meshray leave --local       on a machine whose disk was cloned from a node

    On the head this ends the mesh: all other nodes lose their coordinator, hub and Ray head.
    """
    home = app.own_home
    patience_s = parse_duration(drain)
    words = ["leave", "--yes", "--json", "--drain", drain, *(["--local"] if local else [])]
    command = Command(words, lambda: _leave(app, home, yes=yes, patience_s=patience_s, local=local))
    answer = runtime_of(home, app.environ).leave(command, app, yes=yes)
    left = Leave(str(answer["node"]), answer["unenrolled"] is True, True if local else UNSET)
    return LeaveResult(left)


def _leave(app: App, home: Home, *, yes: bool, patience_s: int, local: bool) -> Answer:
    from meshray.cli.membership_checks import find_enrolment
    from meshray.linux.user import User
    from meshray.node.state_folder import claimed, delete_state
    from meshray.raynode.user_token import take_back
    from meshray.runtime import agent_service

    app.require_root_of_node()
    enrolment = _enrolment_or_confirmation(app, home, yes)
    if enrolment is not None and enrolment.hosts_coordinator:
        _confirm_end_of_mesh(app, home, enrolment, yes)
    if patience_s and enrolment is not None:
        _drain(app, patience_s)
    with claimed(home):
        enrolment = enrolment and find_enrolment(home)
        if local:
            _give_up(home)
        notified = local or enrolment is None or _notify_through_tunnel(home, enrolment)
        _take_down(app, home)
        unenrolled = notified or enrolment is None or _notify_coordinator(app, enrolment)
        if enrolment is not None:
            take_back(User.by_uid(enrolment.user_uid), home.offered_token)
        agent_service.uninstall(home)
        delete_state(home)
    return {"node": enrolment.name if enrolment else "this machine", "unenrolled": unenrolled and not local}


def _give_up(home: Home) -> None:
    """Let a running agent stop without notifying the coordinator: the node is another machine."""
    from meshray.client.agent import ControlClient
    from meshray.protocol.control import GiveUp
    from meshray.runtime import agent_service

    if agent_service.answers(home.control_socket):
        ControlClient(home.control_socket).request(GiveUp(), timeout_s=_API_S)


def _drain(app: App, patience_s: int) -> None:
    """Wait until Ray has ended here, which it does as soon as it is idle, or until the time is over.

    A node that cannot be drained leaves nevertheless: the user asked for a leave within this time.
    """
    from meshray.cli.ray_program import FoundRay
    from meshray.protocol.control import GetStatus

    with app.progress() as progress:
        progress.stage("drain", "run", "Ray gives this node no more tasks")
        deadline = time.monotonic() + patience_s
        try:
            # The name in the map, which may have changed since this node enrolled.
            ray = FoundRay.of(app, app.control().request(GetStatus()).node)
            ray.drain(patience_s)
            while idle_is_awaited(app.control().request(GetStatus())) and time.monotonic() < deadline:
                time.sleep(_DRAIN_POLL_S)
        except MeshrayError as error:
            progress.stage("drain", "fail", error.message)
            return
        progress.stage(
            "drain", "ok", "" if time.monotonic() < deadline else f"tasks were still running after {patience_s} s"
        )


def idle_is_awaited(status: Status) -> bool:
    """Return whether the head still counts this node's Ray as ALIVE (pure)."""
    return any(node.ray.alive is True for node in status.nodes if node.name == status.node)


def _enrolment_or_confirmation(app: App, home: Home, yes: bool) -> Enrolment | None:
    """Return this node's enrolment; None if there are only leftovers, whose removal the user confirmed."""
    from meshray.cli.membership_checks import find_enrolment
    from meshray.node.state_folder import is_harmless

    try:
        enrolment = find_enrolment(home)
    except MeshrayError as error:
        if error.code != "state_damaged":
            raise
        app.confirm(f"{error.message}. The coordinator cannot be notified, so it keeps listing this node.", yes)
        return None
    if enrolment is None:
        if not home.state.is_dir() or not any(home.state.iterdir()):
            raise MeshrayError(
                "not_enrolled", "this machine is not in a mesh", hint="meshray init, or meshray join TOKEN"
            )
        if not is_harmless(home):
            app.confirm(
                f"{home.state} holds the state of a former node, perhaps of a whole mesh. It will be removed.", yes
            )
    return enrolment


def _confirm_end_of_mesh(app: App, home: Home, enrolment: Enrolment, yes: bool) -> None:
    from meshray.node.map_cache import load_map

    try:
        others = [node.name for node in load_map(home).nodes.values() if node.id != enrolment.node_id]
    except MeshrayError:  # The cached map is damaged, so it is unknown.
        app.confirm("This is the head of a mesh, and leaving ends it.", yes)
        return
    if others:
        named = ", ".join(others[:5]) + (" and more" if len(others) > 5 else "")
        app.confirm(f"This is the head: leaving ends the mesh for the others, too ({named}).", yes)


def _take_down(app: App, home: Home) -> bool:
    """Stop the agent, which stops everything; clean up what a killed agent left running."""
    from meshray.cli.external_ray import listening_port
    from meshray.node.cleanup import clear
    from meshray.runtime import agent_service

    external_port = listening_port(home)
    with app.progress() as progress:
        progress.stage("stop", "run", "Ray, tunnel, firewall")
        was_running = agent_service.stop(home)
        found = clear(home)
        progress.stage("stop", "ok", ", ".join(found))
    if external_port:
        app.warn(
            f"the Ray that another program started here still runs (TCP port {external_port}), and its ports are no "
            "longer closed to this machine's networks: end it with that program"
        )
    return was_running or bool(found)


def _notify_through_tunnel(home: Home, enrolment: Enrolment) -> bool:
    """Notify the coordinator while the tunnel exists, if the coordinator cannot be reached without it."""
    from meshray.cli.membership_checks import answers_directly
    from meshray.client.agent import ControlClient
    from meshray.protocol.control import CallCoordinator
    from meshray.runtime import agent_service

    if enrolment.hosts_coordinator or enrolment.taken_out or not agent_service.answers(home.control_socket):
        return False
    if answers_directly(enrolment):
        return False
    try:
        ControlClient(home.control_socket).request(CallCoordinator("POST", "/v1/leave"), timeout_s=_API_S)
    except MeshrayError:  # the request is repeated later, and its result is reported
        return False
    return True


def _notify_coordinator(app: App, enrolment: Enrolment) -> bool:
    from meshray.cli.membership_checks import unenrol

    if enrolment.hosts_coordinator or enrolment.taken_out:
        return True
    try:
        unenrol(enrolment)
    except UnreachableError as error:
        app.warn(f"{error}; it keeps listing this node (on the head: meshray node rm {enrolment.name})")
        return False
    return True
