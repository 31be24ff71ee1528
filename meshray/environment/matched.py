"""The environment that matches the head, for whoever needs it: found in the cache, or built by `builder`.

>>> build = Build(environment, User.invoking(), os.environ)
>>> build.run(print)                # from another thread: build.cancel()
Matched(folder=PosixPath('/home/ada/.cache/meshray/envs/3f0c…'), built=True)
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from meshray.environment import plan
from meshray.environment.builder import Order
from meshray.errors import InterruptedByUser, MeshrayError, error_from_json
from meshray.installation.programs import folders, user_python
from meshray.linux.user import User
from meshray.model import wire
from meshray.model.environment import Environment
from meshray.protocol.codec import decode_object

#: It removes what it has begun, which may be many small files.
_CLEAN_UP_S = 30.0


@dataclass(frozen=True)
class Matched:
    """An environment that matches the head.

    Attributes:
        built: now; False where it was there.
    """

    folder: Path
    built: bool

    @property
    def ray(self) -> Path:
        """Its `ray` program."""
        return self.folder / "bin/ray"

    def to_json(self) -> dict[str, object]:
        """The field ``env`` of ``join --json``."""
        return {"path": str(self.folder), "built": self.built}


class Build:
    """One build, or the finding that there is nothing to build.

    Args:
        environ: in which meshray was called; see `plan.uv_environment`.
        user: as whom Ray runs.

    Raises:
        MeshrayError: ``head_without_ray``, or ``uv_missing``.
    """

    def __init__(self, environment: Environment, user: User, environ: Mapping[str, str]) -> None:
        if not environment.ray or not environment.python:
            raise MeshrayError(
                "head_without_ray",
                "the head of this mesh runs no Ray yet, so there is nothing that this node's could match",
                hint="on the head: meshray status; or join without --env match",
            )
        own = {"HOME": str(user.home), "USER": user.name, "LOGNAME": user.name}
        settings = plan.uv_environment(environ, own, is_other=os.geteuid() != user.uid)
        settings["PATH"] = os.pathsep.join([settings.get("PATH", os.defpath), *_own_pythons()])
        name = plan.key(environment, f"{sys.platform}-{platform.machine()}-{'-'.join(platform.libc_ver())}")
        self._order = Order(
            environment,
            find_uv(environ, user),
            plan.folder_of_all(environ, user.home) / name,
            user.uid,
            settings,
        )
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._cancelled = False

    def run(self, tell: Callable[[str], None]) -> Matched:
        """Blocks until the environment is there.

        Args:
            tell: called with a few words whenever a next step begins.

        Raises:
            MeshrayError: why it cannot be made. InterruptedByUser: it was cancelled. Nothing is left of it.
        """
        with self._lock:
            if self._cancelled:
                raise _interrupted()
            process = self._process = self._start()
        try:
            answer = _follow(process, tell)
        finally:
            _finish(process)
        if "error" in answer:
            raise error_from_json(wire.mapping(answer, "error"), wire.number(answer, "exit_code", 0, 255, 1))
        return Matched(self._order.folder, wire.flag(answer, "built"))

    def cancel(self) -> None:
        """Ends it from another thread; `run` raises soon after."""
        with self._lock:
            self._cancelled = True
            if self._process is not None and self._process.poll() is None:
                self._process.terminate()

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-I", "-m", "meshray.environment.builder"],
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl-C on a terminal reaches us, and we end it: once, and all that it has started.
            start_new_session=True,
        )
        # Builders that do not start are told of below, by their silence.
        with contextlib.suppress(BrokenPipeError):
            assert process.stdin is not None  # noqa: S101 - it is a pipe
            with process.stdin:
                process.stdin.write(json.dumps(self._order.to_json()))
        return process


def find_uv(environ: Mapping[str, str], user: User) -> str:
    """uv: the one on PATH, else the one beside meshray, else the user's own. Raises MeshrayError ``uv_missing``."""
    beside = [*map(str, folders()), str(user.home / ".local/bin"), str(user.home / ".cargo/bin")]
    found = shutil.which("uv", path=os.pathsep.join([environ.get("PATH", os.defpath), *beside]))
    if found is None:
        raise MeshrayError(
            "uv_missing",
            "uv, which builds environments, is not installed: it is neither on PATH nor beside meshray",
            hint=f"{user_python()} -m pip install uv, or as https://docs.astral.sh/uv tells; or --ray PATH names a "
            "Ray of your own",
        )
    return str(Path(found).absolute())


def _own_pythons() -> list[str]:
    """The folder of the Python on which meshray itself runs; it may be the right one."""
    return [str(Path(sys.base_prefix) / "bin")]


def _follow(process: subprocess.Popen[str], tell: Callable[[str], None]) -> Mapping[str, object]:
    """Until the builder's last word."""
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    for line in process.stdout:
        message = decode_object(line)
        if "says" not in message:
            return message
        tell(wire.text(message, "says", 1000))
    raise MeshrayError(
        "environment_failed",
        "the process that builds Ray's environment was killed; nothing that it began is used",
        hint="try again; is the machine out of memory? dmesg | tail",
    )


def _finish(process: subprocess.Popen[str]) -> None:
    """Ends the builder, which takes back what it began, and whatever it has left running."""
    try:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_CLEAN_UP_S)
    finally:
        # Its group lives while any of it does, so this number is nobody else's.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _interrupted() -> MeshrayError:
    return InterruptedByUser("interrupted", "interrupted before the environment was built")
