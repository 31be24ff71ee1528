"""The agent as a service: a systemd unit where systemd runs this machine, else a background process.

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
from meshray.linux.files import PASSABLE_FOLDER, make_folder, write_atomically
from meshray.linux.process import ManagedProcess
from meshray.linux.trust import find_program
from meshray.runtime import log_format

SYSTEMD, BACKGROUND = "systemd", "background"
#: Forces one of the two.
VARIABLE = "MESHRAY_SERVICE"
UNIT_FOLDER = Path("/etc/systemd/system")
#: What the agent may need of the environment in which the user typed.
_PASSED_ON = (
    *("MESHRAY_WIREGUARD", "MESHRAY_ENGINE", log_format.LEVEL, log_format.FORMAT),
    *("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"),
)
#: Until the control socket answers, seconds. A slow machine imports for a while.
_START_S = 90.0
#: Ray's processes, then the tunnel and the firewall are taken down one after another.
STOP_S = 60.0
_POLL_S = 0.05


def choose(environ: Mapping[str, str], *, systemd_runs: bool, euid: int) -> str:
    """SYSTEMD or BACKGROUND. Pure.

    A state folder that the user named stays in the background: it is an experiment or a second node, and
    there is only one unit.

    Raises:
        UsageError: MESHRAY_SERVICE holds another word.
    """
    forced = environ.get(VARIABLE, "")
    if forced not in ("", SYSTEMD, BACKGROUND):
        raise UsageError("bad_setting", f"{VARIABLE} is {forced!r}", hint=f"{VARIABLE}={SYSTEMD} or {BACKGROUND}")
    if forced:
        return forced
    named = environ.get("MESHRAY_HOME") or environ.get("MESHRAY_RUN")
    return SYSTEMD if systemd_runs and euid == 0 and not named else BACKGROUND


def require_valid(environ: Mapping[str, str]) -> None:
    """Raises UsageError where MESHRAY_SERVICE, MESHRAY_LOG or MESHRAY_LOG_FORMAT holds a word that `start` would
    refuse."""
    log_format.require_valid(environ)
    choose(environ, systemd_runs=False, euid=os.geteuid())


def systemd_runs_here() -> bool:
    """systemd is up and is about this very machine: in a network or mount namespace of its own a unit would start
    outside of it."""
    if not Path("/run/systemd/system").is_dir() or find_program("systemctl", os.environ) is None:
        return False
    try:
        return all(
            Path("/proc/1/ns", kind).readlink() == Path("/proc/self/ns", kind).readlink() for kind in ("net", "mnt")
        )
    except OSError:
        return False


def is_running(home: Home) -> bool:
    """Whether the agent's process runs, however it was started."""
    return _agent(home).pid is not None


def runs_from(home: Home) -> Path | None:
    """The environment from which the agent runs; None where it does not, or that cannot be told."""
    pid = _agent(home).pid
    if pid is None:
        return None
    with contextlib.suppress(OSError):
        python = Path(os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]))
        return python.parent.parent if python.is_absolute() else None
    return None


def start(home: Home, environ: Mapping[str, str] = os.environ) -> str:
    """Starts the agent and returns SYSTEMD or BACKGROUND when its control socket answers.

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
        _agent(home).spawn(
            [sys.executable, "-I", "-m", "meshray.agent"],
            env={**environ, "MESHRAY_HOME": str(home.state), "MESHRAY_RUN": str(home.run)},
            log=home.logs / "agent.log",
            cwd=Path("/"),
        )
    _wait_until_it_answers(home)
    return kind


def stop(home: Home, grace_s: float = STOP_S) -> bool:
    """Ends the agent, which takes the node down; SIGKILL after ``grace_s`` seconds.

    Returns:
        Whether it ran.
    """
    was_running = is_running(home)
    if _unit_is_for(home):
        _systemctl("disable", "--now", _unit_file().name, timeout_s=grace_s + 30)
    for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        pid = _agent(home).pid
        if pid is None:
            break
        # Not to its process group: with --block that is the user's shell job.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + patience_s
        while is_running(home) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
    return was_running


def uninstall(home: Home) -> None:
    """Removes the unit, if it is this node's."""
    if _unit_is_for(home):
        _unit_file().unlink(missing_ok=True)
        _systemctl("daemon-reload")


def unit_text(home: Home, environ: Mapping[str, str]) -> str:
    """The unit with which this meshray would run this node."""
    from meshray.render import systemd_unit

    return systemd_unit(home, Path(sys.executable), passed_on(environ))


def passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings that go into the unit. Everybody can read a unit, so a proxy with a password does not."""
    return {name: environ[name] for name in _PASSED_ON if environ.get(name) and "@" not in environ[name]}


def last_words(home: Home) -> str:
    """The last error that the agent wrote before it ended, for a message; empty where there is none."""
    with contextlib.suppress(OSError):
        lines = (home.logs / "agent.log").read_text(errors="replace").strip().splitlines()[-20:]
        errors = [error for line in lines if (error := log_format.error_of(line))]
        return errors[-1][-300:] if errors else ""
    return ""


def last_line(log: Path) -> str:
    """What a log ends with, for a message; says so where there is nothing."""
    with contextlib.suppress(OSError):
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line[:1].strip()]
        if lines:
            return lines[-1][-300:]
    return f"{log} is empty"


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
    done = _systemctl("restart", _unit_file().name, timeout_s=120)
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
            "systemd_silent", f"systemctl {arguments[0]} did not end in {timeout_s:.0f} s", hint="systemctl status"
        ) from None


def _wait_until_it_answers(home: Home) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if answers(home.control_socket):
            return
        if not is_running(home):
            # A process that was just started writes its pid file itself a moment later.
            time.sleep(_POLL_S)
            if not is_running(home) and not answers(home.control_socket):
                raise _failed(home, "meshray logs agent")
        time.sleep(_POLL_S)
    raise _failed(home, "meshray logs agent")


def answers(path: Path) -> bool:
    """Whether somebody listens at this control socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def _failed(home: Home, hint: str) -> MeshrayError:
    words = last_words(home)
    return MeshrayError("agent_failed", "the agent did not start" + (f": {words}" if words else ""), hint=hint)
