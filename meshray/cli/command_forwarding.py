"""Forwarding of commands to the meshray in the container of this machine's node.

meshray status ──► the node's runtime ──► in the container: meshray status ──► its output and its exit code
"""

from __future__ import annotations

import os
import secrets
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from meshray.cli.app import App
from meshray.cli.command_registry import INSIDE, find
from meshray.errors import MeshrayError
from meshray.runtime.selection import runtime_of

if TYPE_CHECKING:
    from meshray.runtime.base import Container, Sink

#: Command → its options that name a file to write; the last is passed into the container.
_FILES = {"doctor": ("--bundle",), "render": ("-o", "--output")}
_READ_BYTES = 65536
_HELP = ("-h", "--help")


def forward(app: App) -> int | None:
    """Run the command in the node's container and return its exit code; return None if it must run here.

    Raises:
        MeshrayError: the container does not run, or its engine does not answer.
    """
    if not _is_forwarded(app.arguments):
        return None
    container = runtime_of(app.home, app.environ).container()
    if container is None:
        return None
    if not container.runs and app.arguments[0] == "logs":
        return _show_old_logs(app, container)
    container.require_running()
    if app.arguments[0] == "run" and app.stdin.isatty() and app.stdout.isatty():
        container.replace_process(app.arguments)
    return _run_inside(app, container)


def _is_forwarded(arguments: Sequence[str]) -> bool:
    """Return whether to forward. Help and usage errors are handled here; `run` is followed by another command."""
    command = find(arguments[0]) if arguments else None
    if command is None or command.runs != INSIDE:
        return False
    own = arguments[1:2] if arguments[0] == "run" else arguments[1:]
    if arguments[0] == "node" and any(word == "--pass" or word.startswith("--pass=") for word in own):
        # The pass would be among the arguments of the container's program, and its file is here.
        return False
    return not set(_HELP).intersection(own) and (arguments[0] != "run" or len(arguments) > 1)


def _run_inside(app: App, container: Container) -> int:
    words, inside, outside = with_file_inside(app.arguments, f"/tmp/{secrets.token_hex(8)}.tar.gz")  # noqa: S108
    is_bundle = app.arguments[0] == "doctor"
    if outside is not None and is_bundle:
        from meshray.cli.bundle import require_free

        require_free(outside)

    def to(descriptor: int) -> Sink:
        def write(data: bytes) -> None:
            _write(descriptor, data.replace(inside.encode(), str(outside).encode()) if outside else data)

        return write

    app.stdout.flush()
    stdin = (lambda: os.read(0, _READ_BYTES)) if app.arguments[0] == "run" and not app.stdin.isatty() else None
    plain = app.environ.get("NO_COLOR") or not app.stdout.isatty()
    code = container.meshray(words, out=to(1), err=to(2), stdin=stdin, environ={"NO_COLOR": "1"} if plain else {})
    if outside is not None:
        _move_out(container, inside, outside, secret=is_bundle)
    return code


def with_file_inside(arguments: Sequence[str], inside: str) -> tuple[list[str], str, Path | None]:
    """Return the arguments that write a file inside, its path there, and its path outside (pure).

    >>> with_file_inside(["doctor", "--bundle=report.tar.gz"], "/tmp/1.tar.gz")
    (['doctor', '--bundle', '/tmp/1.tar.gz'], '/tmp/1.tar.gz', PosixPath('report.tar.gz'))
    """
    words = list(arguments)
    options = _FILES.get(words[0], ())
    for place, word in enumerate(words):
        if word == "--":  # The rest belongs to another program.
            break
        name, equals, value = word.partition("=")
        if name in options and (equals or place + 1 < len(words)):
            outside = value if equals else words[place + 1]
            words[place : place + (1 if equals else 2)] = [options[-1], inside]
            return words, inside, Path(outside)
    return words, inside, None


def _move_out(container: Container, inside: str, outside: Path, *, secret: bool) -> None:
    """Move the file to this machine: a secret one to a new file with mode 0600, any other possibly over an old one."""
    content = container.read(inside)
    if content is None:
        return
    container.unlink(inside)
    flags, mode = (os.O_EXCL, 0o600) if secret else (os.O_TRUNC, 0o666)
    try:
        descriptor = os.open(outside, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, mode)
    except OSError as error:
        raise MeshrayError(
            "file_closed", f"{outside} cannot be written: {error.strerror}", hint="another file"
        ) from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _show_old_logs(app: App, container: Container) -> int:
    """Show a log of a stopped container."""
    from meshray.cli.commands.logs import logs_command

    # click keeps the first help option that it makes of a command.
    chosen = logs_command.make_context("logs", list(app.arguments[1:]), help_option_names=list(_HELP)).params
    part = chosen["part"]
    text = container.read_log(part)
    if text is None:
        raise MeshrayError("no_log", f"{part} has written no log in {container.name}", hint="meshray up")
    _write(1, b"".join(deque(text.splitlines(keepends=True), maxlen=chosen["lines"])))
    return 0


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
