"""The process that builds one environment, as the user whose Ray will run from it.

    order (JSON, stdin) ──► does the environment exist? ──yes──► {"folder", "built": false}
                                 │ no
                                 ▼
            KEY.new-PID beside it: uv venv, uv pip install, check the versions ──rename──► KEY

Each user has one build at a time (flock on the folder of all environments, which ends with the process). A folder gets
its final name only when it is complete. SIGTERM removes an unfinished folder; after SIGKILL the next build does.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from msgspec import Struct

from meshray.environment import build_commands
from meshray.errors import InterruptedByUser, MeshrayError
from meshray.linux.files import DISK_ERRORS
from meshray.linux.user import User
from meshray.model.environment import Environment
from meshray.protocol.api import EnvironmentForm
from meshray.protocol.codec import convert, to_json
from meshray.raynode.versions import RayInstallation, inspect

#: The end of uv's output that is kept.
_WORDS_BYTES = 64 * 1024
Report = Callable[[str], None]


class _OrderForm(Struct):
    environment: EnvironmentForm
    uv: str
    folder: str
    uid: int
    environ: dict[str, str]


@dataclass(frozen=True)
class Order:
    """What to build, and how.

    Attributes:
        uv: the path of uv.
        folder: the folder of the environment; its name is the environment's key.
        uid: the user who builds.
        environ: the environment variables of uv.
    """

    environment: Environment
    uv: str
    folder: Path
    uid: int
    environ: Mapping[str, str] = field(repr=False)

    def to_json(self) -> dict[str, object]:
        """Return what the builder reads from standard input."""
        form = _OrderForm(self.environment.form(), self.uv, str(self.folder), self.uid, dict(self.environ))
        return to_json(form)

    @classmethod
    def from_json(cls, value: object) -> Order:
        """Return the order of `to_json`. Raises WireError."""
        form = convert(value, _OrderForm)
        return cls(Environment.of(form.environment), form.uv, Path(form.folder), form.uid, form.environ)


def build(order: Order, report: Report) -> bool:
    """Build the environment unless it exists, and return whether it was built.

    Raises:
        MeshrayError: why the environment cannot be built. All parts of it are removed.
    """
    order.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(order.folder.parent, report):
        if is_complete(order.folder, order.environment):
            return False
        _remove_leftovers(order.folder)
        unfinished = order.folder.with_name(f"{order.folder.name}.new-{os.getpid()}")
        try:
            _make(order, unfinished, report)
            unfinished.rename(order.folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return True


def is_complete(folder: Path, environment: Environment) -> bool:
    """Return whether an environment is complete: it has a record, and its Ray reports the right versions."""
    if not (folder / build_commands.RECORD).is_file():
        return False
    with contextlib.suppress(MeshrayError):
        _ask(folder, environment)
        return True
    return False


def _ask(folder: Path, environment: Environment) -> RayInstallation:
    found = inspect(folder / "bin/ray", User.by_uid(os.geteuid()))
    build_commands.require_match(found.versions, environment)
    return found


@contextlib.contextmanager
def _alone(folder: Path, report: Report) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another build")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _remove_leftovers(folder: Path) -> None:
    """Remove a broken folder, and the folders of killed builds. No other build runs now."""
    for left in [folder, *folder.parent.glob("*.new-*")]:
        shutil.rmtree(left, ignore_errors=True)


def _make(order: Order, unfinished: Path, report: Report) -> None:
    environment = order.environment
    python = _make_empty(order, unfinished, report)
    report(f"Ray {environment.ray} for Python {python}")
    requirements = unfinished / "requirements.txt"
    requirements.write_text(environment.requirements)
    command = build_commands.fill_command(order.uv, unfinished, environment, requirements)
    done = _run(order, command)
    if done.returncode != 0:
        raise (
            build_commands.no_room(order.folder.parent)
            if build_commands.is_full(done.words)
            else build_commands.not_filled(command, done.words)
        )
    found = _ask(unfinished, environment)
    record = {**environment.to_json(), "built_on": found.versions.python}
    (unfinished / build_commands.RECORD).write_text(json.dumps(record, indent=1) + "\n")


def _make_empty(order: Order, unfinished: Path, report: Report) -> str:
    """Create an empty environment with the best available Python, and return that Python."""
    words = ""
    for python in build_commands.pythons(order.environment):
        report(f"looking for Python {python}")
        done = _run(order, build_commands.make_command(order.uv, unfinished, python))
        if done.returncode == 0:
            return python
        if build_commands.is_full(done.words):
            raise build_commands.no_room(order.folder.parent)
        shutil.rmtree(unfinished, ignore_errors=True)
        words = words or done.words
    raise build_commands.no_python(order.environment, words)


@dataclass(frozen=True)
class _Done:
    returncode: int
    words: str


def _run(order: Order, command: Sequence[str]) -> _Done:
    try:
        process = subprocess.Popen(
            command,
            cwd="/",
            env=dict(order.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
    except OSError as error:
        raise MeshrayError(
            "uv_unusable", f"{order.uv} does not start: {error.strerror}", hint="may this user run it?"
        ) from None
    try:
        _, said = process.communicate()
    except BaseException:
        process.kill()
        process.wait()
        raise
    return _Done(process.returncode, said[-_WORDS_BYTES:].decode(errors="replace"))


def _become(uid: int) -> None:
    """Drop root if the environment belongs to another user."""
    if os.geteuid() != 0 or uid == 0:
        return
    User.by_uid(uid).become()
    os.umask(0o022)


def _say(message: Mapping[str, object]) -> None:
    # The process that started this one may be gone; the environment is useful anyway.
    with contextlib.suppress(OSError):
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


def _end(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Read the order, build, report the progress as lines of JSON, and return the exit code."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        order = Order.from_json(json.loads(sys.stdin.read()))
        _become(order.uid)
        _say({"built": build(order, lambda words: _say({"says": words}))})
        return 0
    except KeyboardInterrupt:
        error: MeshrayError = InterruptedByUser("interrupted", "interrupted while the environment was being built")
    except MeshrayError as caught:
        error = caught
    except OSError as caught:
        error = _from_system(caught, order.folder.parent)
    _say({"error": error.to_json(), "exit_code": error.exit_code})
    return error.exit_code


def _from_system(caught: OSError, folder: Path) -> MeshrayError:
    if caught.errno in DISK_ERRORS:
        return build_commands.no_room(folder)
    return MeshrayError(
        "environment_failed",
        f"{caught.filename or folder}: {caught.strerror}",
        hint="XDG_CACHE_HOME=FOLDER builds the environment elsewhere",
    )


if __name__ == "__main__":
    sys.exit(main())
