"""One host of a world: a separate machine in its network, processes, names and writable files.

It shares the programs of the real machine, read from the same disk. /etc is a copy of its own, and /tmp, /run,
/dev/shm, /home, /root, /var/lib and /var/log are empty ones that end with it. Anything that a command writes elsewhere
goes to the real machine.

    head.run(["ip", "-br", "address"]).stdout
    agent = head.popen(["meshray", "init", "--block"])
    head.wait_until(lambda: head.path("/run/meshray/agent.sock").exists(), 10, "the agent's socket")
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, TypeVar

from tests.lab.copy_layer import below_usr_local
from tests.lab.firewalls import DROP_INBOUND, FirewallKind
from tests.lab.waiting import wait_until

T = TypeVar("T")

REPOSITORY = Path(__file__).resolve().parents[2]
#: An ordinary user that exists on every host, for `run(..., user=USER)`.
USER = "ada"
USER_UID = 61234
#: The host's own folders, in addition to /etc.
PRIVATE_FOLDERS = ("/tmp", "/var/tmp", "/run", "/dev/shm", "/home", "/root", "/var/lib", "/var/log")
#: The host's own folders above the machine's: root's copy of meshray may be placed there.
LAYERED_FOLDERS = ("/usr/local",)
#: Files of meshray and Ray that are useful after a failure.
LOG_GLOBS = (
    *("/var/lib/meshray/log/*.log", "/var/lib/meshray/log.failed/*.log"),
    *("/tmp/ray/session_*/logs/raylet.err", "/tmp/ray/session_*/logs/raylet.out", "/tmp/ray/*/logs/gcs_server.err"),
    *("/tmp/ray/session_*/logs/dashboard_agent.log", "/tmp/ray/session_*/logs/runtime_env_agent.log"),
)
#: The length of each log that is shown.
LOG_TAIL_BYTES = 4000
#: The timeout of a command unless another is given, seconds.
COMMAND_DEADLINE_S = 60


class CommandError(AssertionError):
    """A command in a host failed, or did not end in time."""


@dataclass(frozen=True)
class Result:
    """The result of a command."""

    returncode: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        """Return standard output, read as JSON."""
        return json.loads(self.stdout)

    def last_json(self) -> Any:
        """Return the last line of standard output that is JSON: Ray prints its own warnings around a driver's answer.

        Raises:
            AssertionError: no line is.
        """
        for line in reversed(self.stdout.splitlines()):
            with suppress(json.JSONDecodeError):
                return json.loads(line)
        raise AssertionError(f"no line of JSON in:\n{self.stdout}")


class HostProcess:
    """A command that runs in a host until it ends, is stopped, or the host ends. Its output goes to a file."""

    def __init__(self, entered: subprocess.Popen[bytes], log: Path) -> None:
        self._entered = entered
        self._log = log

    @property
    def output(self) -> str:
        """Its output so far, both streams."""
        return self._log.read_text(errors="replace")

    @property
    def returncode(self) -> int | None:
        """None while it runs, -N if signal N ended it."""
        return self._entered.poll()

    def send_signal(self, number: int) -> None:
        """Send a signal to the command itself; do nothing if it has already ended."""
        for pid in _children(self._entered.pid):
            os.kill(pid, number)

    def resume(self) -> None:
        """Resume nsenter, which stops itself when its command is stopped and does not resume with it."""
        if self._entered.poll() is None:
            self._entered.send_signal(signal.SIGCONT)

    def wait(self, deadline_s: float) -> int:
        """Wait until it has ended; return its exit status."""
        try:
            return self._entered.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise CommandError(f"{self._log.name}: still runs after {deadline_s:g} s\n{self.output}") from None

    def stop(self, deadline_s: float = 10) -> int:
        """Send SIGTERM, and SIGKILL if that did not help in time; return its exit status."""
        self.send_signal(signal.SIGTERM)
        try:
            return self._entered.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.send_signal(signal.SIGKILL)
            return self._entered.wait(deadline_s)


class Host:
    """A host; see the module's docstring. Created by `World.host` and `World.router`."""

    def __init__(self, name: str, run_id: str, folder: Path, keep: Sequence[Path] = ()) -> None:
        self.name = name
        #: Its address on the first network to which it was connected.
        self.address = IPv4Address("0.0.0.0")
        #: Added to the environment of every command in this host.
        self.environment: dict[str, str] = {}
        self._folder = folder
        self._processes: list[HostProcess] = []
        self._init, self.pid = _start_first_process(name, f"{run_id}-{name}", folder, keep)

    def __repr__(self) -> str:
        return f"<Host {self.name} {self.address}>"

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        check: bool = True,
        deadline_s: float = COMMAND_DEADLINE_S,
        stdin: str = "",
        user: str = "root",
        env: Mapping[str, str] | None = None,
        cwd: str | Path = "/",
    ) -> Result:
        """Run a command to its end.

        Args:
            check: whether a non-zero exit status is an error.

        Raises:
            CommandError: it failed (with `check`), or timed out and was killed.
        """
        words = [str(word) for word in argv]
        process = subprocess.Popen(
            self._enter(words, user, cwd),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=self._env(user, env),
            start_new_session=True,
        )
        try:
            stdout, stderr = process.communicate(stdin, timeout=deadline_s)
        except BaseException as error:
            # On timeout or Ctrl-C: the command must not outlive its caller.
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            stdout, stderr = process.communicate()
            ended = f"not done after {deadline_s:g} s"
            raise CommandError(_outcome(self.name, words, ended, stdout, stderr)) from None
        if check and process.returncode:
            raise CommandError(_outcome(self.name, words, f"exit status {process.returncode}", stdout, stderr))
        return Result(process.returncode, stdout, stderr)

    def shell(self, text: str, **options: Any) -> Result:
        """Run a piece of shell with `run`."""
        return self.run(["sh", "-c", text], **options)

    def popen(
        self,
        argv: Sequence[str | Path],
        *,
        name: str = "",
        user: str = "root",
        env: Mapping[str, str] | None = None,
        cwd: str | Path = "/",
    ) -> HostProcess:
        """Start a command without waiting; its output goes to a file that `logs` shows under this name."""
        words = [str(word) for word in argv]
        log = self._folder / f"{len(self._processes) + 1:02}-{name or Path(words[0]).name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                self._enter(words, user, cwd),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self._env(user, env),
                start_new_session=True,
            )
        self._processes.append(HostProcess(process, log))
        return self._processes[-1]

    def attached(
        self,
        argv: Sequence[str | Path],
        *,
        show: Callable[[str], None],
        deadline_s: float = COMMAND_DEADLINE_S,
        env: Mapping[str, str] | None = None,
        cwd: str | Path = "/",
    ) -> str:
        """Run a command with live output: standard error goes where ours goes, every line of output to `show`.

        Raises:
            CommandError: it failed or timed out.
        """
        words = [str(word) for word in argv]
        process = subprocess.Popen(
            self._enter(words, "root", cwd),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
            env=self._env("root", env),
        )
        out_of_time = threading.Timer(deadline_s, lambda: _kill_with_children(process))
        out_of_time.start()
        lines = []
        try:
            assert process.stdout
            for line in process.stdout:
                lines.append(line)
                show(line.rstrip("\n"))
            process.wait()
        finally:
            out_of_time.cancel()
            _kill_with_children(process)
            if process.stdout:
                process.stdout.close()
        if process.returncode:
            raise CommandError(_outcome(self.name, words, f"exit status {process.returncode}", "".join(lines), ""))
        return "".join(lines)

    def path(self, path: str | Path) -> Path:
        """Return a file of this host, seen from here; no part may be a link to an absolute path (/var/run is one)."""
        return Path(f"/proc/{self.pid}/root") / str(path).lstrip("/")

    def logs(self) -> str:
        """Return the ends of its commands' output, and of meshray's and Ray's logs."""
        files = sorted(self._folder.glob("*.log"))
        for pattern in LOG_GLOBS:
            files += sorted(self.path("/").glob(pattern.lstrip("/")))
        return "\n".join(f"--- {self.name}: {file}\n{_tail(file)}" for file in files)

    def wait_until(self, condition: Callable[[], T], deadline_s: float, what: str) -> T:
        """Call `waiting.wait_until`, and show this host's logs on failure."""
        return wait_until(condition, deadline_s, f"{what} on {self.name}", evidence=self.logs)

    def can_reach(self, address: str | IPv4Address, deadline_s: float = 1) -> bool:
        """Return whether one of two pings comes back."""
        ping = ["ping", "-n", "-c", "2", "-i", "0.2", "-W", f"{deadline_s:g}", str(address)]
        return self.run(ping, check=False).returncode == 0

    def drop_inbound(self, kind: FirewallKind = "nft") -> None:
        """Drop all packets that this host did not request."""
        self.shell(DROP_INBOUND[kind])

    def end(self) -> None:
        """End the host as if it were unplugged: all processes are killed, its network and files are removed."""
        for process in self._processes:
            process.resume()  # Otherwise the host waits for it to notice its command's end.
        stdin, stdout = self._init.stdin, self._init.stdout
        assert stdin
        assert stdout
        stdin.close()
        stdout.close()
        try:
            self._init.wait(10)
        except subprocess.TimeoutExpired:
            self._init.kill()
            self._init.wait()
        for process in self._processes:
            process.wait(10)

    def _enter(self, argv: list[str], user: str, cwd: str | Path) -> list[str]:
        become = [] if user == "root" else ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"]
        namespaces = ["nsenter", f"--target={self.pid}", "--net", "--pid", "--mount", "--uts", "--ipc", "--"]
        return [*namespaces, *become, "env", f"--chdir={cwd}", *argv]

    def _env(self, user: str, more: Mapping[str, str] | None) -> dict[str, str]:
        home = "/root" if user == "root" else f"/home/{user}"
        programs = f"{Path(sys.prefix) / 'bin'}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {
            "PATH": programs,
            "HOME": home,
            "USER": user,
            "LOGNAME": user,
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            # No report can be sent from here, and Ray would wait for the answer.
            "RAY_USAGE_STATS_ENABLED": "0",
            **self.environment,
            **(more or {}),
        }


def _start_first_process(
    name: str, marker: str, folder: Path, keep: Sequence[Path]
) -> tuple[subprocess.Popen[str], int]:
    stage = folder / "stage"
    stage.mkdir()
    namespaces = ["unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child", "--"]
    process = subprocess.Popen(
        [*namespaces, sys.executable, "-I", str(REPOSITORY / "tests/lab/init.py"), marker],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Ctrl-C in a terminal reaches the whole foreground group: the world itself ends its hosts.
        start_new_session=True,
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdin.write(json.dumps(_furniture(name, stage, keep)) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise CommandError(f"host {name} could not be made:\n{process.stderr.read()}")
    process.stderr.close()
    return process, int(answer)


def _furniture(name: str, stage: Path, keep: Sequence[Path]) -> dict[str, Any]:
    """Return the input of `tests.lab.init`."""
    return {
        "hostname": name,
        "stage": str(stage),
        "private": PRIVATE_FOLDERS,
        "layered": {folder: [*below_usr_local(), folder] for folder in LAYERED_FOLDERS},
        # Visible through the private folders: this checkout, its environment, the interpreter.
        "keep": sorted({str(REPOSITORY), sys.prefix, sys.base_prefix, *map(str, keep)}),
        "files": {
            "hostname": f"{name}\n",
            # Ray takes tens of seconds longer to start if a machine's own name does not resolve…
            "hosts": f"127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost ip6-localhost\n",
            # …or if a name server does not answer: this one refuses at once.
            "resolv.conf": "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
        },
        "more_lines": {
            "passwd": f"{USER}:x:{USER_UID}:{USER_UID}::/home/{USER}:/bin/sh\n",
            "group": f"{USER}:x:{USER_UID}:\n",
        },
        "homes": [f"/home/{USER}"],
        "person_uid": USER_UID,
    }


def _kill_with_children(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        for pid in _children(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _tail(file: Path) -> str:
    try:
        text = file.read_bytes()
    except OSError as error:
        return str(error)
    return ("…" if len(text) > LOG_TAIL_BYTES else "") + text[-LOG_TAIL_BYTES:].decode(errors="replace")


def _outcome(host: str, words: Sequence[str], ended: str, stdout: str, stderr: str) -> str:
    return f"on {host}: {shlex.join(words)}: {ended}\n{stdout}{stderr}"
