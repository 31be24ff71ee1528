"""The agent as a service: a systemd unit if systemd manages this machine, else a background process.

>>> start(home)
>>> is_running(home)
True
>>> stop(home)      # as SIGTERM: the node goes down cleanly
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from meshray.errors import MeshrayError, UsageError
from meshray.home import Home
from meshray.linux import procfs
from meshray.linux.files import PASSABLE_FOLDER, make_folder, write_atomically
from meshray.linux.process import ManagedProcess
from meshray.linux.trusted_files import find_program
from meshray.runtime import log_format

SYSTEMD, BACKGROUND = "systemd", "background"
#: Forces one of the two.
VARIABLE = "MESHRAY_SERVICE"
UNIT_FOLDER = Path("/etc/systemd/system")
#: Variables of the user's environment that the agent may need.
_PASSED_ON = (
    *("MESHRAY_WIREGUARD", "MESHRAY_ENGINE", log_format.LEVEL, log_format.FORMAT),
    *("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"),
)
#: Time limit until the control socket answers, seconds. On a slow machine, imports alone take a minute.
_START_S = 240.0
#: Time limit for stopping Ray, the tunnel and the firewall rules, which end one after another, seconds.
STOP_S = 60.0
_POLL_S = 0.05
#: The time that the kernel needs to end a killed process, seconds.
_KILL_WAIT_S = 5.0


def choose(environ: Mapping[str, str], *, systemd_runs: bool, euid: int) -> str:
    """Return SYSTEMD or BACKGROUND (pure).

    A node with a state folder that the user chose runs in the background: it is an experiment or a second node, and
    there is only one unit.

    Raises:
        UsageError: MESHRAY_SERVICE has another value.
    """
    forced = environ.get(VARIABLE, "")
    if forced not in ("", SYSTEMD, BACKGROUND):
        raise UsageError("bad_setting", f"{VARIABLE} is {forced!r}", hint=f"{VARIABLE}={SYSTEMD} or {BACKGROUND}")
    if forced:
        return forced
    named = environ.get("MESHRAY_HOME") or environ.get("MESHRAY_RUN")
    return SYSTEMD if systemd_runs and euid == 0 and not named else BACKGROUND


def require_valid(environ: Mapping[str, str]) -> None:
    """Raise UsageError if MESHRAY_SERVICE, MESHRAY_LOG or MESHRAY_LOG_FORMAT has a value that `start` would refuse."""
    log_format.require_valid(environ)
    choose(environ, systemd_runs=False, euid=os.geteuid())


def systemd_runs_here() -> bool:
    """Return whether systemd runs and manages this very machine.

    If this process is in a network or mount namespace of its own, a unit would start outside of it.
    """
    if not Path("/run/systemd/system").is_dir() or find_program("systemctl", os.environ) is None:
        return False
    try:
        return all(
            Path("/proc/1/ns", kind).readlink() == Path("/proc/self/ns", kind).readlink() for kind in ("net", "mnt")
        )
    except OSError:
        return False


def is_running(home: Home) -> bool:
    """Return whether the agent's process runs, however it was started."""
    return _agent(home).pid is not None


def runs_from(home: Home) -> Path | None:
    """Return the Python environment from which the agent runs; None if it does not run or that is unknown."""
    pid = _agent(home).pid
    if pid is None:
        return None
    with contextlib.suppress(OSError):
        python = Path(os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]))
        return python.parent.parent if python.is_absolute() else None
    return None


def start(home: Home, environ: Mapping[str, str] = os.environ) -> str:
    """Start the agent, and return SYSTEMD or BACKGROUND when its control socket answers.

    Raises:
        MeshrayError: ``agent_failed`` with the last line of its log.
    """
    log_format.require_valid(environ)
    kind = choose(environ, systemd_runs=systemd_runs_here(), euid=os.geteuid())
    make_folder(home.state)
    make_folder(home.run, PASSABLE_FOLDER)
    if kind == SYSTEMD:
        _start_unit(home, environ)
    else:
        _spawn(home, sys.executable, environ)
    _wait_until_it_answers(home)
    return kind


def start_again(home: Home, python: str, environ: Mapping[str, str] = os.environ) -> None:
    """Start the agent of this node, which has ended without being stopped; return without waiting for it."""
    if _unit_is_for(home):
        _systemctl("restart", _unit_file().name, timeout_s=_START_S + 30)
    else:
        _spawn(home, python, environ)


def resume(home: Home) -> str:
    """Make a running agent answer again; return what was done, empty if nothing had to be.

    One that a signal stopped continues. One whose control socket was removed is killed, so that it can be started
    again; what it supervises continues meanwhile.
    """
    pid = _agent(home).pid
    if pid is None:
        return ""
    if procfs.is_stopped(pid):
        os.kill(pid, signal.SIGCONT)
        return f"a signal had stopped the agent (pid {pid}): it continues"
    if home.control_socket.exists() or not procfs.listens_at(pid, str(home.control_socket)):
        return ""
    kill(home)
    deadline = time.monotonic() + _KILL_WAIT_S
    while is_running(home) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return f"the agent (pid {pid}) had lost its socket {home.control_socket}: it is started again"


def kill(home: Home) -> None:
    """Send SIGKILL to the agent: what it supervises continues."""
    pid = _agent(home).pid
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def stop(home: Home, grace_s: float = STOP_S) -> bool:
    """Stop the agent, which takes the node down; send SIGKILL after ``grace_s`` seconds.

    Returns:
        Whether it ran.
    """
    was_running = is_running(home)
    if _unit_is_for(home):
        _systemctl("disable", "--now", _unit_file().name, timeout_s=grace_s + 30)
    for number, limit_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        pid = _agent(home).pid
        if pid is None:
            break
        # Not to its process group: with --block that is the user's shell job.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + limit_s
        while is_running(home) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
    return was_running


def uninstall(home: Home) -> None:
    """Remove the unit if it is this node's."""
    if _unit_is_for(home):
        _unit_file().unlink(missing_ok=True)
        _systemctl("daemon-reload")


def unit_text(home: Home, environ: Mapping[str, str]) -> str:
    """Return the unit with which this meshray would run this node."""
    from meshray.render import systemd_unit

    return systemd_unit(home, Path(sys.executable), passed_on(environ))


def passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the settings for the unit. All users can read a unit, so a proxy with a password is left out."""
    return {name: environ[name] for name in _PASSED_ON if environ.get(name) and "@" not in environ[name]}


def last_logged_error(home: Home) -> str:
    """Return the last error that the agent logged, for a message; empty if there is none."""
    with contextlib.suppress(OSError):
        lines = (home.logs / "agent.log").read_text(errors="replace").strip().splitlines()[-20:]
        errors = [error for line in lines if (error := log_format.error_of(line))]
        return errors[-1][-300:] if errors else ""
    return ""


def last_line(log: Path) -> str:
    """Return the last line of a log, for a message; a remark if the log is empty."""
    with contextlib.suppress(OSError):
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line[:1].strip()]
        if lines:
            return lines[-1][-300:]
    return f"{log} is empty"


def _spawn(home: Home, python: str, environ: Mapping[str, str]) -> None:
    _agent(home).spawn(
        [python, "-I", "-m", "meshray.agent"],
        env={**environ, "MESHRAY_HOME": str(home.state), "MESHRAY_RUN": str(home.run)},
        log=home.logs / "agent.log",
        cwd=Path("/"),
    )


def _agent(home: Home) -> ManagedProcess:
    return ManagedProcess(home.pid_file("agent"))


def _unit_file() -> Path:
    from meshray.render import UNIT_NAME

    return UNIT_FOLDER / UNIT_NAME


def _unit_is_for(home: Home) -> bool:
    if not UNIT_FOLDER.is_dir():
        return False
    try:
        return f"MESHRAY_HOME={home.state}" in _unit_file().read_text() and systemd_runs_here()
    except OSError:
        return False


def _start_unit(home: Home, environ: Mapping[str, str]) -> None:
    write_atomically(_unit_file(), unit_text(home, environ), mode=0o644)
    _systemctl("daemon-reload")
    _systemctl("enable", _unit_file().name)
    done = _systemctl("restart", _unit_file().name, timeout_s=_START_S + 30)
    if done.returncode != 0:
        raise _failed(home, "journalctl -u meshray")


def _systemctl(*arguments: str, timeout_s: float = 30) -> subprocess.CompletedProcess[str]:
    program = find_program("systemctl", os.environ)
    try:
        return subprocess.run(
            [str(program or "systemctl"), "--no-ask-password", "--quiet", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise MeshrayError(
            "systemd_silent",
            f"systemctl {arguments[0]} did not finish within {timeout_s:.0f} s",
            hint="systemctl status",
        ) from None


def _wait_until_it_answers(home: Home) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if answers(home.control_socket):
            return
        if not is_running(home):
            # A process that has just started writes its pid file a moment later.
            time.sleep(_POLL_S)
            if not is_running(home) and not answers(home.control_socket):
                raise _failed(home, "meshray logs agent")
        time.sleep(_POLL_S)
    raise _failed(home, "meshray logs agent")


def answers(path: Path) -> bool:
    """Return whether a process listens on this control socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def _failed(home: Home, hint: str) -> MeshrayError:
    error = last_logged_error(home)
    return MeshrayError("agent_failed", "the agent did not start" + (f": {error}" if error else ""), hint=hint)
