"""The commands that the container of this machine's node answers, see `meshray.cli.boxes`.

meshray status ──► container.json ──► in the container: meshray status ──► its output and its exit code
"""

from __future__ import annotations

import os
import secrets
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from meshray.cli.app import App
from meshray.errors import MeshrayError
from meshray.linux.trust import find_program

if TYPE_CHECKING:
    from meshray.runtime.docker.node import NodeContainer, Sink

#: A command that is not named here is answered on this machine.
_PASSED_ON = frozenset(
    ("status", "doctor", "run", "dashboard", "env", "ping", "logs", "token", "node", "peer", "secrets", "render")
)
_BUNDLE = "--bundle"
_READ_BYTES = 65536
#: `meshray logs` of a stopped container, lines.
_OLD_LINES = 100


def elsewhere(app: App) -> int | None:
    """The exit code of a command that the container has answered; None where it is to be answered here.

    Raises:
        MeshrayError: the container does not run, or its engine does not answer.
    """
    if not app.in_container or not _is_passed_on(app.arguments):
        return None
    from meshray.cli.boxes import find
    from meshray.runtime.docker.record import load

    record = load(app.home)
    if record is None:
        return None
    box = find(app, record)
    if not box.runs and app.arguments[0] == "logs":
        return _old_logs(app, box)
    box.require_running()
    docker = find_program("docker", app.environ)
    if app.arguments[0] == "run" and docker and app.stdin.isatty() and app.stdout.isatty():
        _replace_by_docker(str(docker), app, box)
    return _pass_on(app, box)


def _is_passed_on(arguments: Sequence[str]) -> bool:
    """Help and what click would complain about is told here. Behind `run` stands another program's command line."""
    if not arguments or arguments[0] not in _PASSED_ON:
        return False
    own = arguments[1:2] if arguments[0] == "run" else arguments[1:]
    return not {"-h", "--help"}.intersection(own) and (arguments[0] != "run" or len(arguments) > 1)


def _replace_by_docker(docker: str, app: App, box: NodeContainer) -> None:
    """Does not return: for somebody at a terminal the docker program does it better than we would."""
    words = [docker, "--host", box.record.engine, "exec", "-it", "--user", "0", str(box.container.id)]
    os.execv(docker, [*words, box.record.python, "-I", "-m", "meshray.cli", *app.arguments])  # noqa: S606 - no shell


def _pass_on(app: App, box: NodeContainer) -> int:
    words, inside, outside = with_bundle_inside(app.arguments, f"/tmp/{secrets.token_hex(8)}.tar.gz")  # noqa: S108
    if outside is not None:
        from meshray.cli.bundle import require_free

        require_free(outside)

    def to(descriptor: int) -> Sink:
        def write(data: bytes) -> None:
            _write(descriptor, data.replace(inside.encode(), str(outside).encode()) if outside else data)

        return write

    app.stdout.flush()
    stdin = (lambda: os.read(0, _READ_BYTES)) if app.arguments[0] == "run" and not app.stdin.isatty() else None
    plain = app.environ.get("NO_COLOR") or not app.stdout.isatty()
    code = box.meshray(words, out=to(1), err=to(2), stdin=stdin, environ={"NO_COLOR": "1"} if plain else {})
    if outside is not None:
        _bring_out(box, inside, outside)
    return code


def with_bundle_inside(arguments: Sequence[str], inside: str) -> tuple[list[str], str, Path | None]:
    """The arguments with which a bundle is written inside, and which file it is to be outside. Pure.

    >>> with_bundle_inside(["doctor", "--bundle=report.tar.gz"], "/tmp/1.tar.gz")
    (['doctor', '--bundle', '/tmp/1.tar.gz'], '/tmp/1.tar.gz', PosixPath('report.tar.gz'))
    """
    words = list(arguments)
    if words[0] != "doctor":
        return words, inside, None
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == _BUNDLE and (equals or place + 1 < len(words)):
            outside = value if equals else words[place + 1]
            words[place : place + (1 if equals else 2)] = [_BUNDLE, inside]
            return words, inside, Path(outside)
    return words, inside, None


def _bring_out(box: NodeContainer, inside: str, outside: Path) -> None:
    content = box.read(inside)
    if content is None:
        return
    box.unlink(inside)
    descriptor = os.open(outside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _old_logs(app: App, box: NodeContainer) -> int:
    """Of a stopped container: its files can be read all the same."""
    from meshray.runtime.docker.plan import STATE

    part = next((word for word in app.arguments[1:] if not word.startswith("-") and not word.isdecimal()), "agent")
    text = box.read(f"{STATE}/log/{part}.log")
    if text is None:
        raise MeshrayError("no_log", f"{part} has not written anything in {box.record.name}", hint="meshray up")
    _write(1, b"".join(deque(text.splitlines(keepends=True), maxlen=_OLD_LINES)))
    return 0


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
