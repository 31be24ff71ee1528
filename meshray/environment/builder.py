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
_OUTPUT_BYTES = 64 * 1024
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
    with _exclusive(order.folder.parent, report):
        if is_complete(order.folder, order.environment):
            return False
        _remove_leftovers(order.folder)
        unfinished = order.folder.with_name(f"{order.folder.name}.new-{os.getpid()}")
        try:
            _create(order, unfinished, report)
            unfinished.rename(order.folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return True


def is_complete(folder: Path, environment: Environment) -> bool:
    """Return whether an environment is complete: it has a record, and its Ray reports the right versions."""
    if not (folder / build_commands.RECORD).is_file():
        return False
    with contextlib.suppress(MeshrayError):
        _inspect(folder, environment)
        return True
    return False


def _inspect(folder: Path, environment: Environment) -> RayInstallation:
    found = inspect(folder / "bin/ray", User.by_uid(os.geteuid()))
    build_commands.require_match(found.versions, environment)
    return found


@contextlib.contextmanager
def _exclusive(folder: Path, report: Report) -> Iterator[None]:
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
    for leftover in [folder, *folder.parent.glob("*.new-*")]:
        shutil.rmtree(leftover, ignore_errors=True)


def _create(order: Order, unfinished: Path, report: Report) -> None:
    environment = order.environment
    python = _create_empty(order, unfinished, report)
    report(f"Ray {environment.ray} for Python {python}")
    requirements = unfinished / "requirements.txt"
    requirements.write_text(environment.requirements)
    command = build_commands.fill_command(order.uv, unfinished, environment, requirements)
    done = _run(order, command)
    if done.returncode != 0:
        raise (
            build_commands.disk_full_error(order.folder.parent)
            if build_commands.is_disk_full(done.output)
            else build_commands.install_failed(command, done.output)
        )
    found = _inspect(unfinished, environment)
    record = {**environment.to_json(), "built_on": found.versions.python}
    (unfinished / build_commands.RECORD).write_text(json.dumps(record, indent=1) + "\n")


def _create_empty(order: Order, unfinished: Path, report: Report) -> str:
    """Create an empty environment with the best available Python, and return that Python."""
    output = ""
    for python in build_commands.pythons(order.environment):
        report(f"looking for Python {python}")
        done = _run(order, build_commands.create_command(order.uv, unfinished, python))
        if done.returncode == 0:
            return python
        if build_commands.is_disk_full(done.output):
            raise build_commands.disk_full_error(order.folder.parent)
        shutil.rmtree(unfinished, ignore_errors=True)
        output = output or done.output
    raise build_commands.python_not_found(order.environment, output)


@dataclass(frozen=True)
class _Result:
    returncode: int
    output: str


def _run(order: Order, command: Sequence[str]) -> _Result:
    """Run a command of uv; `main` has become the user of the environment before."""
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
            "uv_unusable", f"{order.uv} does not start: {error.strerror}", hint=f"ls -l {order.uv}"
        ) from None
    try:
        _, output = process.communicate()
    except BaseException:
        process.kill()
        process.wait()
        raise
    return _Result(process.returncode, output[-_OUTPUT_BYTES:].decode(errors="replace"))


def _become(uid: int) -> None:
    """Drop root if the environment belongs to another user."""
    if os.geteuid() != 0 or uid == 0:
        return
    User.by_uid(uid).become()
    os.umask(0o022)


def _send(message: Mapping[str, object]) -> None:
    # The process that started this one may be gone; the environment is useful anyway.
    with contextlib.suppress(OSError):
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Read the order, build, report the progress as lines of JSON, and return the exit code."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        order = Order.from_json(json.loads(sys.stdin.read()))
        _become(order.uid)
        _send({"built": build(order, lambda step: _send({"says": step}))})
        return 0
    except KeyboardInterrupt:
        error: MeshrayError = InterruptedByUser("interrupted", "interrupted while the environment was being built")
    except MeshrayError as caught:
        error = caught
    except OSError as caught:
        error = _os_error(caught, order.folder.parent)
    _send({"error": error.to_json(), "exit_code": error.exit_code})
    return error.exit_code


def _os_error(caught: OSError, folder: Path) -> MeshrayError:
    if caught.errno in DISK_ERRORS:
        return build_commands.disk_full_error(folder)
    return MeshrayError(
        "environment_failed",
        f"{caught.filename or folder}: {caught.strerror}",
        hint="XDG_CACHE_HOME=FOLDER builds the environment elsewhere",
    )


if __name__ == "__main__":
    sys.exit(main())
