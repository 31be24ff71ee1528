"""A node that lives in a container: `up`, `down`, `leave`, and asking meshray in there.

>>> answered(app, box, ["down", "--json"])
{'node': 'gpu-1', 'was_running': True}
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from meshray.cli.app import App
from meshray.cli.results import Left, Stopped
from meshray.errors import MeshrayError, UnreachableError, error_from_json
from meshray.home import Home

if TYPE_CHECKING:
    from meshray.runtime.docker.node import NodeContainer
    from meshray.runtime.docker.record import Record

#: The first process of a container that starts brings the node up, and other commands wait for that.
_BUSY_S, _BUSY_POLL_S = 180.0, 0.3


def find(app: App, record: Record) -> NodeContainer:
    """The container of this machine's node; raises as `open_engine` and `Box.of` do."""
    from meshray.runtime.docker.engine import open_engine
    from meshray.runtime.docker.node import NodeContainer

    return NodeContainer.of(open_engine(app.environ, record.engine), record)


def record_of(home: Home) -> Record:
    """Where this machine's node is. Raises MeshrayError ``state_damaged``, ``not_enrolled``."""
    from meshray.runtime.docker.record import load

    found = load(home)
    if found is None:
        raise MeshrayError("not_enrolled", "this machine is in no mesh", hint="meshray init, or meshray join TOKEN")
    return found


def bring_up(app: App, record: Record, words: Sequence[str], stdin: bytes = b"") -> Mapping[str, object]:
    """Starts the container where it does not run; returns what the command with these words answers in it."""
    box = find(app, record)
    if not box.runs:
        with app.progress() as progress:
            progress.stage("container", "run", record.name)
            box.start()
            progress.stage("container", "ok", record.name)
    return _patiently(lambda: answered(app, find(app, record), words, stdin=stdin))


def take_down(app: App, home: Home, record: Record) -> Stopped:
    """`meshray down`. An ephemeral node has left the mesh with that, and its container is removed."""
    box = find(app, record)
    told: Mapping[str, object] = {}
    try:
        if box.runs:
            told = _patiently(lambda: answered(app, box, ["down", "--json"]))
    finally:
        # Also where it could not be said: the container's first process takes the node down.
        box.stop()
        if record.ephemeral:
            _remove(app, home, record)
    return Stopped(str(told.get("node", record.name)), told.get("was_running") is True)


def leave(app: App, home: Home, record: Record, *, yes: bool, drain: str, local: bool = False) -> Left:
    """`meshray leave`: the node leaves the mesh, then its container and its state are removed."""
    words = ["leave", "--yes", "--json", "--drain", drain, *(["--local"] if local else [])]
    told: Mapping[str, object] = {}
    try:
        box = find(app, record)
        told = _patiently(lambda: answered(app, box, words)) if box.runs else _once(box, words)
    except MeshrayError as error:
        if isinstance(error, UnreachableError) and error.code != "container_gone":
            raise
        app.confirm(f"{error.message}. The coordinator cannot be told, so it goes on listing this node.", yes)
    _remove(app, home, record)
    return Left(str(told.get("node", record.name)), told.get("unenrolled") is True, local)


def answered(
    app: App, box: NodeContainer, words: Sequence[str], *, stdin: bytes = b"", environ: Mapping[str, str] | None = None
) -> Mapping[str, object]:
    """What a meshray command in the container answers with --json; its progress is shown as it comes.

    Args:
        words: --json among them.
        environ: variables that the command gets.

    Raises:
        MeshrayError: what it failed with.
    """
    box.require_running()
    answer, lines, input_ = bytearray(), _Lines(app), iter((stdin, b""))
    feed = (lambda: next(input_, b"")) if stdin else None
    code = box.meshray(words, out=answer.extend, err=lines.feed, stdin=feed, environ=environ)
    return _read(bytes(answer), code)


def _once(box: NodeContainer, words: Sequence[str]) -> Mapping[str, object]:
    code, answer = box.once(words)
    return _read(answer, code)


def _read(answer: bytes, code: int) -> Mapping[str, object]:
    try:
        found = json.loads(answer.strip().splitlines()[-1])
    except (ValueError, IndexError):
        found = {}
    if not isinstance(found, dict) or not found or "error" in found:
        said = found.get("error") if isinstance(found, dict) else None
        missing = {"code": "container_silent", "message": "meshray in the container ended without an answer"}
        raise error_from_json(said if isinstance(said, dict) else missing, code or 1)
    return {name: value for name, value in found.items() if name != "schema"}


def _patiently(ask: Callable[[], Mapping[str, object]]) -> Mapping[str, object]:
    deadline = time.monotonic() + _BUSY_S
    while True:
        try:
            return ask()
        except MeshrayError as error:
            if error.code != "busy" or time.monotonic() > deadline:
                raise
        time.sleep(_BUSY_POLL_S)


def _remove(app: App, home: Home, record: Record) -> None:
    """The container and its state, or what is left of them; then this machine is a stranger again."""
    from meshray.node.state_folder import forget
    from meshray.runtime.docker.engine import open_engine
    from meshray.runtime.docker.node import remove_remains

    remove_remains(open_engine(app.environ, record.engine), record)
    home.container.unlink(missing_ok=True)
    forget(home)


class _Lines:
    """Shows what a command in the container tells of its progress. Its error is told once, by whoever asked."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Takes the next piece of its standard error."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if not line.startswith((b"error: ", b"hint: ")):
                self._app.note(line.decode(errors="replace"))
