"""Supervise this node's Ray: start it, adopt it, restart it with backoff, stop it.

    node = RayNode(installation, plan, home, user, tokens=RayTokens({1: token}), on_instance=report)
    await node.run()        # until cancelled, which leaves Ray running
    await node.stop()       # ends Ray and everything under it, and nothing else

Each start of a head's Ray has an instance, a random id, which travels over the map and names the token with which that
Ray was started (`meshray.raynode.tokens`). A worker records with its process which instance that process joined, also
across a restart of the agent.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.linux import overlay_netns
from meshray.linux.process import ManagedProcess
from meshray.linux.user import User
from meshray.raynode import agent_port, preflight, temp_folder, user_token
from meshray.raynode.command import RayPlan, ray_environment, start_command
from meshray.raynode.dashboard_client import gcs_answers
from meshray.raynode.failure_cause import TAIL_BYTES, cause, last_error
from meshray.raynode.memory_kills import MemoryKills
from meshray.raynode.processes import Family, end_childless_leader
from meshray.raynode.restart_policy import (
    SOUND_LIFE_S,
    STEADY_S,
    Backoff,
    Decision,
    Situation,
    Start,
    StayStopped,
    Stop,
    Wait,
    decide,
)
from meshray.raynode.tokens import RayTokens, new_instance
from meshray.raynode.versions import RayInstallation
from meshray.raynode.watched_ray import WatchedRay

STARTING = "starting"
RUNNING = "running"
WAITING = "waiting"
DRAINED = "drained"
BACKOFF = "backoff"

_log = logging.getLogger(__name__)
#: The interval at which a starting head is asked whether it answers, seconds.
_STARTING_POLL_S = 0.1
#: The interval when nothing waits for the answer: a request takes the head's dashboard time in which Ray would start.
_LISTED_POLL_S = 0.5
#: The interval at which a starting Ray's raylet is searched: each search reads all of /proc.
_RAYLET_POLL_S = 0.2
#: The interval at which Ray's processes are recorded; each time reads all of /proc.
_FAMILY_POLL_S = 30.0
#: The interval while Ray starts and still creates its processes.
_YOUNG_FAMILY_POLL_S = 2.0
#: A `ray start` this old has created its raylet, also on a slow machine, seconds.
_STARTED_S = 60.0
#: A raylet may seem to have started before its parent while the clock is being set.
_CLOCK_SLACK_S = 1.0
#: Ray's own processes end within some seconds after SIGTERM; those that a task blocks are then killed.
_STOP_GRACE_S = 10.0
#: `ray start --block` checks every second whether one of its processes ended, reports which, and ends.
_REPORT_S = 4.0


@dataclass(frozen=True)
class RayNow:
    """The current state of a supervised Ray.

    Attributes:
        state: as `RayNode.state`, without the reason.
        error: why Ray does not run, or why it is slow.
        deaths: how many times in a row it ended soon after its start.
        external: another program starts it (`meshray.raynode.external`); ``installation`` may be None then.
        lived_s: how long the last one that ended had run, seconds.
        pid: the pid of its `ray start`; None: it does not run.
        ended_at: when Ray last ended unexpectedly, monotonic; None: it did not under this agent.
        ended_because: the reason of that end, one line.
    """

    installation: RayInstallation | None
    plan: RayPlan
    user: User
    state: str
    error: str
    deaths: int
    pid: int | None
    token: str | None = field(repr=False)
    lived_s: float = 0.0
    external: bool = False
    ended_at: float | None = None
    ended_because: str = ""

    @property
    def ended_ago_s(self) -> float | None:
        """Seconds since Ray last ended unexpectedly; None: it did not."""
        return time.monotonic() - self.ended_at if self.ended_at is not None else None


async def _no_findings(ray_args: Sequence[str]) -> str:
    return ""


class RayNode(WatchedRay):
    """The supervisor of one node's Ray.

    Args:
        on_instance: called with the instance of this head's Ray; empty: it is down.
        renew: returns the Ray to run before each start; raises MeshrayError if there is none.
        check_start: raises MeshrayError if Ray must not be started now.
        examine_machine: returns, before each start and for the arguments of `ray start`, what makes Ray slow on this
            machine; empty: nothing.
    """

    def __init__(
        self,
        installation: RayInstallation,
        plan: RayPlan,
        home: Home,
        user: User,
        *,
        tokens: RayTokens,
        on_instance: Callable[[str], None],
        renew: Callable[[RayInstallation], Awaitable[RayInstallation]] | None = None,
        check_start: Callable[[], None] | None = None,
        examine_machine: Callable[[Sequence[str]], Awaitable[str]] = _no_findings,
    ) -> None:
        super().__init__(plan, home, user, tokens=tokens, on_instance=on_instance)
        self._installation = installation
        self._process = ManagedProcess(home.pid_file("ray"))
        self._log_file = home.logs / "ray.log"
        self._backoff = Backoff()
        self._last_death = ""
        self._ended_at: float | None = None
        self._ended_because = ""
        self._lived_s = 0.0
        self._memory_kills = MemoryKills()
        self._family: Family | None = None
        self._family_scanned_at = 0.0
        self._log_start = 0
        #: When Ray's own processes ended, monotonic; 0 while they exist.
        self._raylet_ended_at = 0.0
        #: When Ray was started, monotonic and unix time; None for an adopted one.
        self._spawned: tuple[float, float] | None = None
        self._port_written = False
        #: When its raylet is searched again, monotonic.
        self._next_raylet_scan = 0.0
        self._state = STARTING
        self._renew = renew
        self._check_start = check_start
        self._examine_machine = examine_machine

    @property
    def state(self) -> str:
        """``starting``, ``running`` (the head lists this node as ALIVE), ``waiting``, ``drained`` or
        ``backoff: reason``."""
        return self._state

    @property
    def now(self) -> RayNow:
        """Return the state of Ray, for diagnosis."""
        state, _, _ = self._state.partition(":")
        deaths = 0 if state == RUNNING else self._backoff.deaths
        error = self.last_error or (self._last_death if deaths else "")
        pid = self._process.pid
        return RayNow(
            self._installation,
            self._plan,
            self._user,
            state,
            error,
            deaths,
            pid,
            self.token,
            self._lived_s,
            ended_at=self._ended_at,
            ended_because=self._ended_because,
        )

    @property
    def token(self) -> str | None:
        """The token of the Ray that runs here; else of the head's. None: it has not been received, or Ray uses none."""
        return self._tokens.of(self._process.mark or self._instance) if self._plan.token_path else None

    @property
    def failure(self) -> str:
        """The reason why Ray does not run although it should; empty without a fault."""
        return self._table.refused or (self.last_error if self._state.startswith(BACKOFF) else "")

    async def unregister(self, nodes: Sequence[str], reason: str) -> bool:
        """Mark the nodes with these ids as dead in Ray, and return whether GCS accepted it."""
        return await self._table.unregister(self._installation, nodes, reason)

    async def stop(self) -> None:
        """Stop Ray with all its processes: SIGTERM to its process group, then SIGKILL to those left."""
        await self._end()
        self._spawned = None
        self._report("")
        self._state = WAITING

    async def _end(self) -> None:
        pid = self._process.pid
        if pid is not None:
            family = Family(pid)
            await asyncio.gather(self._process.stop(_STOP_GRACE_S), end_childless_leader(family))
            self._family = family
        await self._clear()

    async def step(self) -> float:
        """Take the next step; return the seconds until the next check."""
        try:
            return await self._act()
        except (MeshrayError, OSError) as error:
            return self._failed(str(error))

    async def _act(self) -> float:
        pid = self._process.pid
        if pid is None and self._family is not None:
            await self._died()
        elif pid is not None:
            self._memory_kills.look(pid)
        decision = await self._decide(pid)
        if isinstance(decision, Start):
            await self._start()
            return _STARTING_POLL_S
        if isinstance(decision, Stop):
            _log.info("Ray is stopped: %s", decision.reason)
            await self.stop()
            return 0
        if isinstance(decision, StayStopped):
            return self._stay_stopped()
        if isinstance(decision, Wait):
            return self._wait(decision)
        return await self._keep(pid or 0)

    async def _decide(self, pid: int | None) -> Decision:
        now = time.monotonic()
        is_waiting = pid is None and not self._plan.head and not self._drained
        has_token = self._plan.token_path is None or self._tokens.of(self._instance) is not None
        should_check = is_waiting and has_token and bool(self._instance) and now >= self._backoff.not_before
        situation = Situation(
            head=self._plan.head,
            running=pid is not None,
            joined=self._process.mark,
            instance=self._instance,
            head_answers=should_check and await gcs_answers(self._plan.gcs),
            drained=self._drained,
            has_token=has_token,
        )
        return decide(situation, self._backoff, now)

    async def _start(self) -> None:
        self._state = STARTING
        if self._check_start is not None:
            self._check_start()
        if self._renew is not None:
            self._installation = await self._renew(self._installation)
        mark = new_instance(self._tokens.newest) if self._plan.head else self._instance
        await self._preflight(self._tokens.of(mark))
        if not self._plan.head:
            await self._table.remove_ghosts(self._installation, await self._table.own_rows())
        self._log_start = self._log_file.stat().st_size if self._log_file.exists() else 0
        user = self._user if self._user.uid != os.geteuid() else None
        environment = ray_environment(self._installation, self._plan, os.environ, user)
        overlay_netns.spawn(
            self._process,
            start_command(self._installation, await asyncio.to_thread(self._with_temp_folder, environment)),
            env=environment,
            log=self._log_file,
            mark=mark,
            user=self._user,
            cwd=self._user.home if self._user.home.is_dir() else Path("/"),
        )
        self._spawned, self._port_written, self._next_raylet_scan = (time.monotonic(), time.time()), False, 0.0
        pid = self._process.pid
        if pid is not None:
            self._current_family(pid)
        _log.info("Ray was started as %s (pid %s)", self._user.name, pid)

    def _with_temp_folder(self, environment: Mapping[str, str]) -> RayPlan:
        """Return the plan with a separate folder for Ray, if another user's Ray has the usual one."""
        # Without root the usual folder is this node's own.
        is_chosen = any(argument.partition("=")[0] == temp_folder.OPTION for argument in self._plan.extra_args)
        folder = None
        if not is_chosen and overlay_netns.entered() is None:
            folder = temp_folder.find_temp_folder(environment, self._user)
        if folder is None:
            return self._plan
        return replace(self._plan, extra_args=(*self._plan.extra_args, f"{temp_folder.OPTION}={folder}"))

    async def _preflight(self, token: str | None) -> None:
        if self._plan.head:
            preflight.check_head(self._installation)
        plan = self._plan
        overlay_netns.run(partial(preflight.require_free, plan.ports, head=plan.head, node_ip=plan.node_ip))
        if self._plan.token_path and token:
            self._write_token(self._plan.token_path, token)
            await asyncio.to_thread(self._offer_token, token)
        self.last_error = await self._examine_machine(plan.extra_args)

    def _write_token(self, path: Path, token: str) -> None:
        user_token.write_token(path, token, self._user)

    def _offer_token(self, token: str) -> None:
        try:
            refused = user_token.offer(token, self._user, self._home.offered_token)
        except OSError as error:  # This is only a convenience: Ray runs without it.
            refused = str(error)
        if refused:
            _log.info("programs outside of meshray run need RAY_AUTH_TOKEN_PATH: %s", refused)

    async def _keep(self, pid: int) -> float:
        family = self._current_family(pid)
        if family.is_broken() or self._lost_its_raylet(family):
            return await self._end_without_raylet()
        if not await self._write_agent_port(family) and not self._plan.head:
            return _RAYLET_POLL_S  # There is no raylet that the head could list.
        if self._plan.head and self._reported != self._process.mark and await gcs_answers(self._plan.gcs):
            self._report(self._process.mark)
        if self._state == RUNNING:
            return STEADY_S
        self._state = STARTING
        if await self._is_listed():
            self._state, self.last_error = RUNNING, ""
            self._current_family(pid).scan()
            _log.info("the head lists this node as ALIVE")
            return STEADY_S
        life = time.monotonic() - self._spawned[0] if self._spawned else 0.0
        if life < SOUND_LIFE_S:
            return _LISTED_POLL_S if self._reported or not self._plan.head else _STARTING_POLL_S
        self.last_error = f"Ray has run for {life:.0f} s, but the head does not list this node as ALIVE"
        return STEADY_S

    async def _write_agent_port(self, family: Family) -> bool:
        """Let the raylet continue without its dashboard agent; False while there is no raylet and one may appear."""
        now = time.monotonic()
        is_starting = self._spawned is not None and now < self._spawned[0] + _STARTED_S
        # A head comes here more often, to check its GCS.
        if is_starting and not self._port_written and now >= self._next_raylet_scan:
            self._next_raylet_scan = now + _RAYLET_POLL_S
            port = self._plan.ports.dashboard_agent_listen
            self._port_written = await asyncio.to_thread(agent_port.write_port, family.raylets(), port, self._user)
        return self._port_written or not is_starting

    async def _end_without_raylet(self) -> float:
        # `ray start --block` keeps running if its raylet ended regularly: drained, or by SIGTERM. Otherwise it reports
        # why and ends.
        now = time.monotonic()
        self._raylet_ended_at = self._raylet_ended_at or now
        if now < self._raylet_ended_at + _REPORT_S:
            return _STARTING_POLL_S
        # An adopted one wrote its log before this agent knew the path.
        error = last_error(self._log_tail()) if self._spawned is not None else ""
        await self._end()
        self._handle_end("Ray's own processes ended, but ray start still ran" + (f": {error}" if error else ""))
        return 0

    def _lost_its_raylet(self, family: Family) -> bool:
        """Return whether an adopted `ray start` has no raylet, because that ended while no agent ran."""
        if self._spawned is not None or not family.has_no_raylet():
            return False
        # A starting one has none yet.
        age_s = family.age_s()
        return age_s is not None and age_s > _STARTED_S

    async def _is_listed(self) -> bool:
        rows = await self._table.own_rows()
        since = self._spawned[1] - _CLOCK_SLACK_S if self._spawned else 0.0
        stale_rows = [row for row in rows if row.started < since]
        is_clean = not await self._table.remove_ghosts(self._installation, stale_rows)
        return is_clean and any(row.started >= since for row in rows)

    def _wait(self, decision: Wait) -> float:
        if not decision.backoff:
            self._state, self.last_error = WAITING, decision.reason
        return decision.delay_s

    def _stay_stopped(self) -> float:
        if self._state != DRAINED:
            _log.info("this node is drained: Ray is not started")
        # When it may run again, it starts at once.
        self._state, self.last_error, self._backoff = DRAINED, "", Backoff()
        return STEADY_S

    async def _died(self) -> None:
        reason = cause(self._log_tail(), self._process.exit_code)
        await self._clear()
        self._handle_end(reason)

    def _handle_end(self, reason: str) -> None:
        """Handle the end of Ray, after all its processes have ended."""
        started = self._spawned[0] if self._spawned else None
        if self._drained:
            self._spawned = None
            return
        now, reason = time.monotonic(), self._memory_kills.explain(reason)
        self._ended_at, self._ended_because = now, reason
        self._lived_s = now - started if started is not None else 0.0
        self._backoff = self._backoff.after_death(started=started, now=now)
        self._back_off(reason)

    def _failed(self, reason: str) -> float:
        """Handle a failure to start Ray, or to read the head's table."""
        if self._process.pid is not None:
            self.last_error = reason
            return STEADY_S
        now = time.monotonic()
        self._backoff = self._backoff.after_death(started=now, now=now)
        self._back_off(reason)
        return STEADY_S

    def _back_off(self, reason: str) -> None:
        self._spawned = None
        self._report("")
        self._state, self.last_error = f"{BACKOFF}: {reason}", reason
        self._last_death = reason
        delay = self._backoff.not_before - time.monotonic()
        _log.warning("Ray does not run: %s; next start in %.0f s", reason, max(0.0, delay))

    async def _clear(self) -> None:
        """End the remaining processes of a Ray whose `ray start` is gone."""
        family, self._family = self._family, None
        self._raylet_ended_at = 0.0
        for _ in range(50):
            if family is None or not family.scan():
                return
            family.kill()
            await asyncio.sleep(0.05)

    def _current_family(self, pid: int) -> Family:
        now, family = time.monotonic(), self._family
        if family is None or family.leader != pid:
            family = self._family = Family(pid)
        elif now < self._family_scanned_at + (_FAMILY_POLL_S if self._state == RUNNING else _YOUNG_FAMILY_POLL_S):
            return family
        family.scan()
        self._family_scanned_at = now
        return family

    def _log_tail(self) -> str:
        try:
            with self._log_file.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                start = self._log_start if self._log_start <= size else 0
                file.seek(max(start, size - TAIL_BYTES))
                return file.read().decode(errors="replace")
        except OSError:
            return ""
