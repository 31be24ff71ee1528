"""The environment that matches the head, found in the cache or built by `builder`.

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

from meshray.environment import build_commands
from meshray.environment.builder import Order
from meshray.errors import InterruptedByUser, MeshrayError
from meshray.installation.programs import folders, user_python
from meshray.linux.user import User
from meshray.model.environment import Environment
from meshray.protocol.codec import decode_object
from meshray.protocol.error import reported_error

#: For the removal of an unfinished environment, which may have many small files.
_CLEAN_UP_S = 30.0


@dataclass(frozen=True)
class Matched:
    """An environment that matches the head.

    Attributes:
        built: whether it was built now; False if it existed.
    """

    folder: Path
    built: bool

    @property
    def ray(self) -> Path:
        """The `ray` program of the environment."""
        return self.folder / "bin/ray"


class Build:
    """One build of an environment, unless the environment exists.

    Args:
        environ: the environment variables of meshray; see `plan.uv_environment`.
        user: the user who runs Ray.

    Raises:
        MeshrayError: ``head_without_ray``, or ``uv_missing``.
    """

    def __init__(self, environment: Environment, user: User, environ: Mapping[str, str]) -> None:
        if not environment.ray or not environment.python:
            raise MeshrayError(
                "head_without_ray",
                "the head of this mesh does not run Ray yet, so this node has no version to match",
                hint="on the head: meshray status; or join without --env match",
            )
        user_variables = {"HOME": str(user.home), "USER": user.name, "LOGNAME": user.name}
        settings = build_commands.uv_environment(environ, user_variables, is_other=os.geteuid() != user.uid)
        settings["PATH"] = os.pathsep.join([settings.get("PATH", os.defpath), *_own_pythons()])
        name = build_commands.key(environment, f"{sys.platform}-{platform.machine()}-{'-'.join(platform.libc_ver())}")
        self._order = Order(
            environment,
            find_uv(environ, user),
            build_commands.cache_folder(environ, user.home) / name,
            user.uid,
            settings,
        )
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._cancelled = False

    def run(self, report: Callable[[str], None]) -> Matched:
        """Block until the environment exists.

        Args:
            report: called with a few words at the start of each step.

        Raises:
            MeshrayError: why the environment cannot be built.
            InterruptedByUser: the build was cancelled. In both cases all parts of the environment are removed.
        """
        with self._lock:
            if self._cancelled:
                raise _interrupted()
            process = self._process = self._start()
        try:
            answer = _read_progress(process, report)
        finally:
            _finish(process)
        if "error" in answer:
            raise reported_error(answer)
        return Matched(self._order.folder, answer.get("built") is True)

    def cancel(self) -> None:
        """Cancel the build from another thread; `run` raises soon after."""
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
            # Ctrl-C on a terminal reaches only meshray, which then ends the builder and its children once.
            start_new_session=True,
        )
        # A builder that does not start is reported below, because it sends nothing.
        with contextlib.suppress(BrokenPipeError):
            assert process.stdin is not None  # noqa: S101 - it is a pipe
            with process.stdin:
                process.stdin.write(json.dumps(self._order.to_json()))
        return process


def find_uv(environ: Mapping[str, str], user: User) -> str:
    """Return uv: the one on PATH, or beside meshray, or the user's own. Raises MeshrayError ``uv_missing``."""
    extra_folders = [*map(str, folders()), str(user.home / ".local/bin"), str(user.home / ".cargo/bin")]
    found = shutil.which("uv", path=os.pathsep.join([environ.get("PATH", os.defpath), *extra_folders]))
    if found is None:
        raise MeshrayError(
            "uv_missing",
            "uv, which builds environments, is not installed: it is neither on PATH nor beside meshray",
            hint=f"{user_python()} -m pip install uv, or see https://docs.astral.sh/uv; or use your own Ray with "
            "--ray PATH",
        )
    return str(Path(found).absolute())


def _own_pythons() -> list[str]:
    """Return the folder of the Python that runs meshray; it may be a matching one."""
    return [str(Path(sys.base_prefix) / "bin")]


def _read_progress(process: subprocess.Popen[str], report: Callable[[str], None]) -> Mapping[str, object]:
    """Pass on the builder's progress, and return its last message."""
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    for line in process.stdout:
        message = decode_object(line)
        if "says" not in message:
            return message
        report(str(message["says"]))
    raise MeshrayError(
        "environment_failed",
        "the process that builds Ray's environment was killed; its unfinished environment is not used",
        hint="try again; is the machine out of memory? dmesg | tail",
    )


def _finish(process: subprocess.Popen[str]) -> None:
    """End the builder, which removes an unfinished environment, and all processes that it left."""
    try:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_CLEAN_UP_S)
    finally:
        # The process group exists while any member does, so its number cannot belong to another one.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _interrupted() -> MeshrayError:
    return InterruptedByUser("interrupted", "interrupted before the environment was built")
