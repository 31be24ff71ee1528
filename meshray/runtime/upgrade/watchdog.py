"""Watch an upgrade from outside of the agent: `python -m meshray.runtime.upgrade.watchdog`.

It runs the code of the version before, and uses only the pointer and the agent's pid file. So it works with a new
version that cannot be imported, that hangs, or that is killed.

    agent ends ──► trial: given back ──► the agent is started again, by the installed version's launcher
    deadline of the trial ──► given back, the agent is killed and started again
    pointer kept or returned, and the agent lives for a while ──► the watchdog ends
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping

from meshray.home import Home
from meshray.linux.process import ManagedProcess
from meshray.runtime import agent_service
from meshray.runtime.upgrade import pointer as pointers
from meshray.runtime.upgrade.launch import launcher

_log = logging.getLogger(__name__)

#: The pid file of the watchdog.
PID_FILE = "upgrade"
#: The time to install the wheel, seconds.
INSTALL_S = 300.0
#: An agent that lived this long after the upgrade does not end because of it, seconds.
_SETTLED_S = 5.0
_POLL_S = 0.1
_MOST_STARTS = 5


class Watchdog:
    """Watch one upgrade.

    Args:
        start: starts the agent again.
        kill: kills the agent.
        runs: returns whether the agent's process runs.
    """

    def __init__(
        self,
        home: Home,
        *,
        start: Callable[[], None],
        kill: Callable[[], None],
        runs: Callable[[], bool],
        now: Callable[[], pointers.Moment] = pointers.Moment.now,
    ) -> None:
        self._home = home
        self._start = start
        self._kill = kill
        self._runs = runs
        self._now = now
        self._first = pointers.read(home)
        self._began = now()
        self._settled_since: float | None = None
        self._starts = 0

    def step(self) -> bool:
        """Look once; return False when there is nothing more to watch."""
        pointer, now = pointers.read(self._home), self._now()
        runs = self._runs()
        if pointer is not None and pointers.is_over(pointer, now):
            if self._give_back("it did not work in time") and runs:
                self._kill()
            return True
        is_trial = pointer is not None and pointer.state == pointers.TRIAL
        if not runs:
            self._settled_since = None
            if is_trial:
                self._give_back("its agent ended")
            self._starts += 1
            if self._starts > _MOST_STARTS:
                _log.error("the agent ended %d times", _MOST_STARTS)
                return False
            _log.warning("the agent ended during an upgrade; starting it again")
            self._start()
            return True
        is_installing = pointer == self._first and self._starts == 0
        if is_trial or (is_installing and now.seconds - self._began.seconds < INSTALL_S):
            self._settled_since = None
            return True
        if self._settled_since is None:
            self._settled_since = now.seconds
        return now.seconds - self._settled_since < _SETTLED_S

    def _give_back(self, reason: str) -> bool:
        given = pointers.give_back(self._home, reason)
        if given:
            _log.warning("the new version is given back: %s", reason)
        return given


def start(home: Home, python: str, environ: Mapping[str, str]) -> None:
    """Start the watchdog of a new upgrade with this interpreter. One of an earlier upgrade may be about to end."""
    stop(home)
    ensure(home, python, environ)


def ensure(home: Home, python: str, environ: Mapping[str, str]) -> None:
    """Start the watchdog with this interpreter, unless one runs. It outlives this process."""
    process = _process(home)
    if process.pid is None:
        process.spawn(
            [python, "-I", "-m", "meshray.runtime.upgrade.watchdog"],
            env={**environ, "MESHRAY_HOME": str(home.state), "MESHRAY_RUN": str(home.run)},
            log=home.logs / "upgrade.log",
        )


def stop(home: Home) -> None:
    """Stop the watchdog, because the node is taken down, or because another upgrade begins."""
    _process(home).stop_blocking(grace_s=1.0)


def _process(home: Home) -> ManagedProcess:
    return ManagedProcess(home.pid_file(PID_FILE))


def main() -> int:
    """Watch until the upgrade is over."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    home = Home.from_environment()
    watchdog = Watchdog(
        home,
        start=lambda: agent_service.start_again(home, launcher(home)),
        kill=lambda: agent_service.kill(home),
        runs=lambda: agent_service.is_running(home),
    )
    while watchdog.step():
        time.sleep(_POLL_S)
    return 0


if __name__ == "__main__":
    sys.exit(main())
