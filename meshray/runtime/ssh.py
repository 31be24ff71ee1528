"""The machine's own ssh client: as a connection to one port of another machine, and to run one command there.

>>> target = SshTarget.parse("ssh://ana@head.example.org:2222")
>>> target.argv("-W", "127.0.0.1:51888")
['ssh', '-o', 'ConnectTimeout=10', …, '-p', '2222', '-l', 'ana', '-W', '127.0.0.1:51888', '--', 'head.example.org']
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from meshray.errors import MeshrayError, UnreachableError, UsageError
from meshray.linux.user import User

#: The exit code of ssh when ssh itself failed, not the command.
SSH_FAILED = 255
#: ssh notices a dead peer within a minute, and an address that drops packets within ten seconds.
_OPTIONS = ("-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3")
_URL = re.compile(
    r"ssh://(?:(?P<user>[A-Za-z0-9_][\w.-]*)@)?(?:\[(?P<v6>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[A-Za-z0-9_][\w.-]*))"
    r"(?::(?P<port>[0-9]{1,5}))?/?",
    re.ASCII,
)
#: At most this much of ssh's messages is read, bytes; the cause is at the end.
_MAX_STDERR = 64 * 1024
#: At most this much of a command's output is read, bytes.
_MAX_ANSWER = 1024 * 1024
#: ssh ends within this after its channel has failed, seconds.
_END_S = 3.0


@dataclass(frozen=True)
class SshTarget:
    """A machine as ssh names it; ``~/.ssh/config`` applies. An empty user and port 0 leave the choice to ssh.

    Attributes:
        key: the file of the private key; empty: those that ssh finds.
    """

    host: str
    user: str = ""
    port: int = 0
    key: str = ""

    @classmethod
    def parse(cls, text: str) -> SshTarget:
        """Parse ``ssh://[user@]host[:port]``. Raises UsageError, which does not repeat a password."""
        found = _URL.fullmatch(text.strip())
        port = int(found.group("port") or 0) if found else 0
        if found is None or port > 65535 or found.group("port") in ("0", "00", "000", "0000", "00000"):
            redacted = re.sub(r"//[^@/]*@", "//…@", text)[:80]
            raise UsageError(
                "bad_ssh_target",
                f"{redacted!r} is not of the form ssh://[USER@]HOST[:PORT]",
                hint="for example ssh://ana@gpu-1",
            )
        return cls(found.group("v6") or found.group("host"), found.group("user") or "", port)

    def argv(self, *options: str, command: Sequence[str] = ()) -> list[str]:
        """Return the command line of ssh."""
        options_of_target = [
            *(("-p", str(self.port)) if self.port else ()),
            *(("-l", self.user) if self.user else ()),
            *(("-i", self.key) if self.key else ()),
        ]
        return ["ssh", *_OPTIONS, *options_of_target, *options, "--", self.host, *command]

    @property
    def command_line(self) -> str:
        """The command with which a user can try the connection."""
        options = f"-p {self.port} " if self.port else ""
        options += f"-i {shlex.quote(self.key)} " if self.key else ""
        return f"ssh {options}{self.user + '@' if self.user else ''}{self.host}"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh://{self.user + '@' if self.user else ''}{host}{f':{self.port}' if self.port else ''}"

    def failure(self, stderr: str, exit_code: int) -> UnreachableError:
        """Return ssh's own message as a MeshrayError."""
        lines = [line.strip() for line in stderr.splitlines() if line.strip()]
        cause = "; ".join(lines[-2:])[:400] or f"exit code {exit_code}"
        return UnreachableError(
            "ssh_failed", f"ssh to {self.host} failed: {cause}", hint=f"test the connection: {self.command_line} true"
        )


class SshStream:
    """A byte stream to a TCP port on the other machine's loopback. A context manager.

    Attributes:
        socket: this end; `close` closes it.
    """

    def __init__(self, target: SshTarget, port: int, user: User, environ: Mapping[str, str] = os.environ) -> None:
        self._target = target
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self.socket, remote_end = socket.socketpair()
        with remote_end:
            try:
                self._process = _popen(
                    target.argv("-W", f"127.0.0.1:{port}"),
                    user,
                    environ,
                    stdin=remote_end,
                    stdout=remote_end,
                    stderr=self._stderr,
                )
            except BaseException:
                self.socket.close()
                self._stderr.close()
                raise

    def __enter__(self) -> SshStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def failure(self) -> UnreachableError | None:
        """Return why ssh failed, in its own words; None if it did not fail."""
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return None
        if code == 0:
            return None
        self._stderr.seek(0)
        return self._target.failure(self._stderr.read(_MAX_STDERR).decode(errors="replace"), code)

    def close(self) -> None:
        """Stop ssh."""
        self.socket.close()
        _end(self._process)
        self._stderr.close()


class SshForward:
    """A port of this machine's loopback that leads to a TCP port on the other machine's loopback. A context manager.

    Attributes:
        port: the port here, which was free.
    """

    def __init__(self, target: SshTarget, port: int, user: User, environ: Mapping[str, str] = os.environ) -> None:
        self._target = target
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        forward = f"127.0.0.1:{self.port}:127.0.0.1:{port}"
        try:
            self._process = _popen(
                target.argv("-N", "-o", "ExitOnForwardFailure=yes", "-L", forward),
                user,
                environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
            )
        except BaseException:
            self._stderr.close()
            raise

    def __enter__(self) -> SshForward:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _end(self._process)
        self._stderr.close()

    def wait_open(self, timeout_s: float = 60.0) -> None:
        """Wait until the port here accepts connections; ssh may ask its user for a password meanwhile.

        Raises:
            UnreachableError: ``ssh_failed``.
        """
        until = time.monotonic() + timeout_s
        while time.monotonic() < until and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
                return
            time.sleep(0.05)
        if self._process.poll() is None:
            raise self._target.failure(f"no connection within {timeout_s:.0f} s", SSH_FAILED)
        raise self.ended()

    def ended(self) -> UnreachableError:
        """Wait until ssh has ended, and return why, in its own words."""
        code = self._process.wait()
        self._stderr.seek(0)
        return self._target.failure(self._stderr.read(_MAX_STDERR).decode(errors="replace"), code)


@dataclass(frozen=True)
class CommandResult:
    """How a command on the other machine ended. ``stderr`` is its standard error, including ssh's messages."""

    exit_code: int
    out: str
    stderr: str


def run_remote(
    target: SshTarget,
    command: str,
    *,
    options: Sequence[str] = (),
    stdin: str,
    user: User,
    on_line: Callable[[str], None],
    on_start: Callable[[subprocess.Popen[str]], None] = lambda process: None,
    environ: Mapping[str, str] = os.environ,
) -> CommandResult:
    """Run one shell command on the other machine until it ends.

    Args:
        command: for the login shell there; must not hold a secret, since other users of that machine see it.
        stdin: what the command reads.
        on_line: called with each line that it writes to standard error.
        on_start: called with the process of ssh; ending that process ends this call.
    """
    argv = target.argv("-T", *options, command=[command])
    process = _popen(
        argv, user, environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        errors="replace",
    )  # fmt: skip
    out: list[str] = []
    reader = threading.Thread(target=lambda: out.append(_read_all(process.stdout)), daemon=True)
    try:
        on_start(process)
        reader.start()
        with contextlib.suppress(BrokenPipeError):  # it ended before it read; standard error has the reason
            process.stdin.write(stdin)
            process.stdin.close()
        stderr: list[str] = []
        for line in process.stderr:
            stderr.append(line[:1000])
            del stderr[:-100]
            on_line(line.rstrip()[:1000])
        process.wait()
        reader.join()
    finally:
        _end(process)
    return CommandResult(process.returncode, "".join(out), "".join(stderr))


def _popen(argv: Sequence[str], user: User, environ: Mapping[str, str], **streams: Any) -> Any:
    # With the keys, known hosts and ssh agent of the user who typed sudo, not with root's.
    identity = user.identity
    env = {**environ, "HOME": str(user.home), "USER": user.name, "LOGNAME": user.name} if identity else environ
    try:
        return subprocess.Popen(
            argv, env=dict(env), cwd=_open_folder(user) if identity else None, **identity, **streams
        )
    except FileNotFoundError:
        raise MeshrayError(
            "no_ssh", "ssh is not installed on this machine", hint="apt-get install openssh-client"
        ) from None


def _open_folder(user: User) -> Path:
    """Return a folder that the user may enter; root's current folder may be closed."""
    return user.home if user.home.is_dir() else Path("/")


def _read_all(stream: IO[str]) -> str:
    kept = stream.read(_MAX_ANSWER)
    while stream.read(_MAX_ANSWER):  # the rest is discarded, so that the command does not block on a full pipe
        pass
    return kept


def _end(process: subprocess.Popen[Any]) -> None:
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
