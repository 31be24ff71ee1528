"""`meshray node upgrade`: bring the head's own meshray to other nodes, without ssh."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import click

from meshray import __version__
from meshray.cli.app import App
from meshray.cli.commands.node_orders import give
from meshray.cli.complete import node_names
from meshray.cli.lock_file import LockFile, lock_of, open_lock
from meshray.cli.options import json_option, lock_option
from meshray.cli.result import Result
from meshray.cli.tables import Paint, plain
from meshray.errors import MeshrayError, UnreachableError, UsageError
from meshray.linux.files import make_folder, write_atomically
from meshray.model.attestation import sign_release
from meshray.model.keys import VerifyKey
from meshray.protocol.api import Gathered, Nodes
from meshray.protocol.codec import convert
from meshray.protocol.connection import UPGRADE
from meshray.protocol.control import GetStatus
from meshray.protocol.node_answers import MachineError, NodeUpgrade, NodeUpgraded
from meshray.protocol.orders import ALREADY, UpgradeReport, needs_root

#: A node that is upgraded gives the result within this after its agent has switched, seconds: the trial, and the start
#: of the previous version.
_RESULT_S = 150.0
_POLL_S = 0.5
#: A wheel is offered for this long, seconds.
_OFFERED_S = 3600.0
_ASK_S = 3
#: The results after which the command fails, and the one after which no other node is upgraded.
_FAILED, _RETURNED = ("returned", "refused", "failed", "skipped"), "returned"


@dataclass(frozen=True)
class UpgradeResult(Result[NodeUpgrade]):
    """``node upgrade``."""

    @property
    def exit_code(self) -> int:
        """Return 1 if a node was not upgraded."""
        return 1 if any(node.done in _FAILED for node in self.answer.nodes) else 0

    def text(self, paint: Paint = plain) -> str:
        """Return one line per node."""
        lines = [f"meshray {self.answer.version} (build {self.answer.build})"]
        for node in self.answer.nodes:
            took = f" in {node.took_s:.0f} s" if node.took_s else ""
            why = f": {node.error.message}" if node.error is not None else ""
            lines.append(f"{node.node}: {paint(node.done, 'red' if node.done in _FAILED else 'green')}{took}{why}")
            if node.error is not None and node.error.hint:
                lines.append(f"  {node.error.hint}")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Wheel:
    sha256: str
    size: int
    build: str
    signature: str = ""

    @property
    def arguments(self) -> Mapping[str, object]:
        named = {"sha256": self.sha256, "size": self.size, "version": __version__, "build": self.build}
        # An older node does not know this field.
        return {**named, "signature": self.signature} if self.signature else named


@click.command("upgrade")
@click.argument("node", shell_complete=node_names, required=False)
@click.option("--all", "everywhere", is_flag=True, help="Upgrade all nodes, one after another, this one last.")
@click.option("--wait", is_flag=True, help="Return when the last node works with the new version, or has its old one.")
@click.option("--pass", "shown", hidden=True)
@lock_option("The lock file of `init --lock`: it signs the version. Nodes of a mesh with a lock take no other.")
@json_option
@click.pass_obj
def upgrade_command(
    app: App, *, node: str | None, everywhere: bool, wait: bool, lock: str | None, shown: str | None
) -> UpgradeResult:
    """Upgrade meshray on other nodes to the version that runs this command, without ssh. On the head.

    \b
    Examples:
      sudo meshray node upgrade gpu-1 --wait
      sudo ~/ray/bin/meshray node upgrade --all --wait

    The tunnel and Ray continue. A new version that does not work within 60 s is replaced by the old one, and with --all
    no further node is upgraded. Only meshray itself is sent. A node whose packages do not suffice refuses.
    A pass does not suffice for this command, because it replaces programs that run as root.
    """
    if shown is not None:
        raise needs_root("upgrade")
    if everywhere == (node is not None):
        raise UsageError(
            "upgrade_which",
            "name one node, or use --all",
            hint="meshray node upgrade NODE, or: meshray node upgrade --all",
        )
    app.require_root_of_node()
    signer = open_lock(lock)
    app.run_from_copy()
    listed = app.api("GET", "/v1/nodes")
    names = [app.word(node)] if node is not None else _all_names(convert(listed, Nodes))
    wheel = _signed(_offer(app), convert(listed["mesh"], str), lock_of(listed), signer)
    own = app.control().request(GetStatus()).node
    results: list[NodeUpgraded] = []
    for number, name in enumerate(names, 1):
        if any(result.done == _RETURNED for result in results):
            results.append(NodeUpgraded(name, "skipped", _error("upgrade_skipped", "the new version does not work")))
            continue
        app.note(f"{name}: sending meshray {__version__} (build {wheel.build})")
        result = _upgrade(app, name, wheel, wait=wait or number < len(names), is_own=name == own)
        app.note(f"{name}: {result.done}" + (f": {result.error.message}" if result.error is not None else ""))
        results.append(result)
    return UpgradeResult(NodeUpgrade(__version__, wheel.build, tuple(results)))


def _signed(wheel: _Wheel, mesh_id: str, lock: VerifyKey | None, signer: LockFile | None) -> _Wheel:
    """Return the wheel with the signature that nodes require in a mesh with a lock.

    Raises:
        UsageError: ``lock_needed``, or as `LockFile.require_of` does.
    """
    if signer is not None:
        signer.require_of(lock)
        return replace(wheel, signature=sign_release(signer.key, mesh_id, wheel.sha256))
    if lock is not None:
        raise UsageError(
            "lock_needed", "nodes of this mesh take only a version that its lock signed", hint="add --lock FILE"
        )
    return wheel


def _all_names(listed: Nodes) -> Sequence[str]:
    """Return the names of all nodes with an agent, the coordinator's node last."""
    from meshray.model.node import COORDINATOR, STATIC

    nodes = [node for node in listed.nodes if STATIC not in node.roles]
    return [node.name for node in sorted(nodes, key=lambda node: COORDINATOR in node.roles)]


def _offer(app: App) -> _Wheel:
    """Write the wheel of this installation where the coordinator offers it, and remove earlier ones."""
    from meshray.installation.build import own_build
    from meshray.installation.wheels import own_wheel

    content = own_wheel().content
    wheel = _Wheel(hashlib.sha256(content).hexdigest(), len(content), own_build())
    folder = app.home.wheels
    make_folder(folder)
    path = folder / f"{wheel.sha256}.whl"
    for other in folder.glob("*.whl"):
        # Another command may offer it at the same time.
        if other != path and time.time() - other.stat().st_mtime > _OFFERED_S:
            other.unlink(missing_ok=True)
    write_atomically(path, content)
    return wheel


def _upgrade(app: App, name: str, wheel: _Wheel, *, wait: bool, is_own: bool) -> NodeUpgraded:
    began = time.monotonic()
    output = bytearray()
    try:
        give(app, name, "upgrade", wheel.arguments, output.extend)
        if output.decode(errors="replace") == ALREADY:
            return NodeUpgraded(name, "already")
        error = _wait(app, name, wheel, is_own=is_own) if wait else None
    except MeshrayError as caught:
        done = "failed" if isinstance(caught, UnreachableError) else "refused"
        return NodeUpgraded(name, done, MachineError(caught.code, caught.message, caught.hint or ""))
    took_s = round(time.monotonic() - began, 1)
    if error is not None:
        return NodeUpgraded(name, _RETURNED, error, took_s)
    return NodeUpgraded(name, "upgraded" if wait else "switching", None, took_s)


def _wait(app: App, name: str, wheel: _Wheel, *, is_own: bool) -> MachineError | None:
    """Wait for the result of the trial; return why the node has its old version again, or None.

    Raises:
        UnreachableError: the node did not answer in time.
    """
    deadline = time.monotonic() + _RESULT_S
    while time.monotonic() < deadline:
        report = _own_report(app) if is_own else _report(app, name)
        if report is not None and report.tried == wheel.build:
            if report.state == "kept" and report.build == wheel.build:
                return None
            if report.state == "returned":
                return _error("upgrade_returned", f"the old version runs again: {report.reason}", name)
        time.sleep(_POLL_S)
    raise UnreachableError(
        "upgrade_unknown",
        f"{name} did not report within {_RESULT_S:.0f} s whether the new version works",
        hint=f"meshray status; on {name}: meshray up",
    )


def _report(app: App, name: str) -> UpgradeReport | None:
    """Return the node's report; None while it does not answer, as between two versions of its agent."""
    with contextlib.suppress(MeshrayError):
        body = {"op": UPGRADE, "nodes": [name], "timeout_s": _ASK_S}
        answer = convert(app.api("POST", "/v1/ask", body), Gathered).answers.get(name)
        return convert(answer, UpgradeReport) if answer is not None else None
    return None


def _own_report(app: App) -> UpgradeReport | None:
    """Return the report of the node that runs the coordinator, which asks only the others."""
    from meshray.runtime.upgrade import pointer as pointers

    pointer = pointers.read(app.home)
    if pointer is None:
        return None
    running = pointer.build if pointer.state == pointers.KEPT else ""
    return UpgradeReport(running, pointer.version, pointer.state, pointer.build, pointer.reason)


def _error(code: str, message: str, name: str = "") -> MachineError:
    return MachineError(code, message, f"meshray node logs {name} agent" if name else "see the node before")
