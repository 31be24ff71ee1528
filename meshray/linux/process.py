"""A process that meshray starts and can find again: the agent, the coordinator, the engine, Ray.

The pid file has pid, start time and boot id, so that a reused pid is never mistaken for the process. A later user of
the same pid file (the next agent after a kill -9) adopts the process instead of starting another one.

    >>> engine = ManagedProcess(home.pid_file("engine"))
    >>> engine.pid or engine.spawn(["wireguard-go", "-f", "meshray0"], env={}, log=home.logs / "engine.log")
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from meshray.linux.files import DISK_ERRORS, make_folder, write_atomically
from meshray.linux.user import User

#: The interval at which a stopping process group is checked, seconds.
_STOP_POLL_S = 0.05
#: The wait after SIGKILL, seconds. A process in uninterruptible sleep may never end.
_KILL_WAIT_S = 5.0
#: A log larger than this is renamed before the next process writes to it, bytes.
_LOG_LIMIT = 10 * 1024 * 1024


class ManagedProcess:
    """One long-lived process in its own session and process group."""

    def __init__(self, pid_file: Path) -> None:
        self._pid_file = pid_file
        self._child: subprocess.Popen[bytes] | None = None

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        mark: str = "",
        user: User | None = None,
        cwd: Path | None = None,
        keep: Sequence[int] = (),
    ) -> None:
        """Start the process, which outlives this one.

        Args:
            argv: program and arguments, without secrets.
            log: the file to which standard output and error are appended, if the disk can be written.
            mark: a text in the pid file with the settings of the start, for a later adopter.
            user: the user who runs it; only root can choose another user.
            keep: open file descriptors that it inherits under the same numbers.

        Raises:
            OSError: the program is missing or may not be executed.
        """
        drop = {} if user is None or os.geteuid() == user.uid else _identity(user)
        with _opened(log) as output:
            self._child = subprocess.Popen(
                list(argv),
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=tuple(keep),
                **drop,  # type: ignore[call-overload]
            )
        self._record(self._child.pid, mark)

    def record_this_process(self) -> None:
        """Record the current process in the pid file."""
        self._record(os.getpid(), "")

    def _record(self, pid: int, mark: str) -> None:
        record = {"pid": pid, "started": _start_time(pid), "boot": _boot_id(), "mark": mark}
        write_atomically(self._pid_file, json.dumps(record))

    @property
    def pid(self) -> int | None:
        """The pid of the process, None if it does not run (or its pid belongs to another process)."""
        return self._running()[0]

    @property
    def mark(self) -> str:
        """The mark that `spawn` recorded; empty if the process does not run."""
        return self._running()[1]

    @property
    def exit_code(self) -> int | None:
        """The exit code of an ended process that this object started; negative for a signal."""
        return self._child.poll() if self._child is not None else None

    async def wait(self) -> None:
        """Return when the process has ended, at once if it does not run."""
        pid = self.pid
        if pid is None:
            return
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
        self._reap()

    async def stop(self, grace_s: float = 10) -> None:
        """Send SIGTERM to the process group, and SIGKILL to the rest of it after ``grace_s`` seconds."""
        for _ in self._stopping(grace_s):
            await asyncio.sleep(_STOP_POLL_S)

    def stop_blocking(self, grace_s: float = 10) -> None:
        """Stop the process from code that is not async."""
        for _ in self._stopping(grace_s):
            time.sleep(_STOP_POLL_S)

    def _stopping(self, grace_s: float) -> Iterator[None]:
        pid = self.pid
        if pid is not None:
            for sent, limit_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, _KILL_WAIT_S)):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, sent)
                deadline = time.monotonic() + limit_s
                while self._group_is_alive(pid) and time.monotonic() < deadline:
                    yield
                if not self._group_is_alive(pid):
                    break
        self._pid_file.unlink(missing_ok=True)

    def _group_is_alive(self, pid: int) -> bool:
        self._reap()
        # Another object of this process may have started it: reap it, because a zombie would count as running.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return False
        return True

    def _reap(self) -> None:
        if self._child is not None:
            self._child.poll()

    def _running(self) -> tuple[int | None, str]:
        self._reap()
        try:
            record = json.loads(self._pid_file.read_text())
            pid, started, boot, mark = (record[key] for key in ("pid", "started", "boot", "mark"))
        except (OSError, ValueError, KeyError, TypeError):
            return None, ""
        if boot != _boot_id() or started is None or _start_time(pid) != started:
            return None, ""
        return int(pid), str(mark)


def _opened(log: Path) -> BinaryIO:
    try:
        make_folder(log.parent)
        if log.exists() and log.stat().st_size > _LOG_LIMIT:
            log.replace(log.with_suffix(".log.1"))
        output = log.open("ab")
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        # Running the process is more important than its log.
        return Path(os.devnull).open("ab")
    os.fchmod(output.fileno(), 0o600)
    return output


def _identity(user: User) -> dict[str, object]:
    return {"user": user.uid, "group": user.gid, "extra_groups": list(user.groups)}


def _start_time(pid: int) -> int | None:
    """Return the start in clock ticks after boot, field 22 of /proc/PID/stat (proc(5)); None for ended processes."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The program's name is in brackets and may contain brackets and blanks.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
