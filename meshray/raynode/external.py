"""Watch a Ray that another program starts on this node (``--ray external``), and provide what that program needs.

    overlay up, ports closed, token there ──► MESHRAY_RUN/env ──► another program: ray start
                                                                        │
    instance of a head's Ray, ALIVE ◄──── node manager, node table ◄────┘

meshray neither starts nor stops this Ray. The file exists while Ray may be started here. On a head, the instance is
derived from Ray's own id of the head's node, so it stays the same while that Ray runs, whatever happens to the agent.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.linux import overlay_netns
from meshray.linux.files import PASSABLE_FOLDER, make_folder, write_atomically
from meshray.linux.user import User
from meshray.model.node import Versions
from meshray.raynode.command import RayPlan
from meshray.raynode.dashboard_client import LiveNode, gcs_answers, ray_versions
from meshray.raynode.environment_file import environment_file
from meshray.raynode.node_table import TABLE_TIMEOUT_S
from meshray.raynode.restart_policy import STEADY_S
from meshray.raynode.supervisor import DRAINED, RUNNING, WAITING, RayNow
from meshray.raynode.tokens import RayTokens, instance_of
from meshray.raynode.user_token import write_token
from meshray.raynode.versions import RayInstallation
from meshray.raynode.watched_ray import WatchedRay

#: The file exists, and Ray is not ALIVE.
OFFERED = "offered"

_log = logging.getLogger(__name__)
#: The interval at which a Ray that is not ALIVE is checked for, seconds. The head's dashboard answers each check.
_CHECK_S = 0.5
_DIAL_S = 2.0
#: A raylet may seem to have started before its port was closed while the clock is being set.
_CLOCK_SLACK_S = 1.0
_ENV_MODE = 0o644


@dataclass(frozen=True)
class ExternalOptions:
    """The agent's part of an external Ray.

    Attributes:
        on_instance: called with the instance of this head's Ray; empty: it is down.
        on_versions: called with the versions of the Ray that runs here, once it is ALIVE.
        head_versions: returns the versions of the head's Ray in the map.
        check_start: raises MeshrayError if Ray must not be started now.
    """

    on_instance: Callable[[str], None]
    on_versions: Callable[[Versions], None]
    head_versions: Callable[[], Versions]
    check_start: Callable[[], None]


class ExternalRay(WatchedRay):
    """One node's Ray that another program starts; see the module's docstring.

    Args:
        installation: a Ray beside meshray, whose Python unregisters dead nodes; None: there is none.

    Attributes:
        last_error: why Ray may not be started here; empty when all is well.
    """

    def __init__(
        self,
        installation: RayInstallation | None,
        plan: RayPlan,
        home: Home,
        user: User,
        *,
        tokens: RayTokens,
        options: ExternalOptions,
    ) -> None:
        super().__init__(plan, home, user, tokens=tokens, on_instance=options.on_instance)
        self._installation = installation
        self._options = options
        self._versions = Versions("")
        #: Whether the versions of the running Ray are not known yet.
        self._lacks_versions = False
        #: The token of the file, which a running head's Ray uses, and its epoch.
        self._in_use: tuple[int, str] | None = None
        self._offered = ""
        #: When the node manager's port was last found closed, unix seconds: raylets of the table from before are gone.
        self._closed_at = 0.0
        self._state = WAITING

    @property
    def now(self) -> RayNow:
        """Return the state of Ray, for diagnosis."""
        return RayNow(
            self._installation,
            self._plan,
            self._user,
            self._state,
            self.last_error,
            deaths=0,
            pid=None,
            token=self.token,
            external=True,
        )

    @property
    def token(self) -> str | None:
        """The token of the head's Ray; None: it has not been received."""
        if self._plan.head:
            return self._in_use[1] if self._in_use is not None else None
        return self._tokens.of(self._instance)

    @property
    def failure(self) -> str:
        """The reason why Ray may not be started although it should; empty without a fault."""
        return self._table.refused or (self.last_error if self._state == WAITING else "")

    async def unregister(self, nodes: Sequence[str], reason: str) -> bool:
        """Mark the nodes with these ids as dead in Ray, and return whether GCS accepted it."""
        return self._installation is not None and await self._table.unregister(self._installation, nodes, reason)

    async def stop(self) -> None:
        """Withdraw the file: without the overlay, Ray must not be started. A running Ray is left alone."""
        self._withdraw()
        self._report("")
        self._state = WAITING

    async def step(self) -> float:
        """Take the next step; return the seconds until the next one."""
        try:
            await self._prepare()
        except (MeshrayError, OSError) as error:
            self._withdraw()
            self._fail(str(error))
            if self._state == RUNNING and await self._listens() is False:
                self._ended()
            return STEADY_S
        try:
            delay = await self._watch()
        except (MeshrayError, OSError) as error:
            # A Ray with another token runs here. The file stays: with it, Ray is started again.
            self._fail(str(error))
            return STEADY_S
        self.last_error = ""
        return delay

    # ---- what the other program needs

    async def _prepare(self) -> None:
        """Write the file if Ray may be started here now, else withdraw it."""
        reason = "this node is drained" if self._drained else await self._take_token()
        if reason:
            self._withdraw()
            if self._state != RUNNING:
                self._state, self.last_error = (DRAINED, "") if self._drained else (WAITING, "")
            return
        self._options.check_start()
        text = environment_file(self._plan, self._options.head_versions().ray, self._home.ray_environment)
        if text != self._offered or not self._home.ray_environment.exists():
            make_folder(self._home.run, PASSABLE_FOLDER)
            write_atomically(self._home.ray_environment, text, _ENV_MODE)
            self._offered = text
            _log.info("another program may start Ray now: %s", self._home.ray_environment)
        if self._state != RUNNING:
            self._state = OFFERED

    async def _take_token(self) -> str:
        """Write the token of the head's Ray; return why there is none yet, or ``""``."""
        if self._plan.head:
            await self._take_own_token()
            return ""
        if not self._instance:
            return "the head's Ray is down"
        token = self._tokens.of(self._instance)
        if token is None:
            return "the coordinator has not sent the token of the head's Ray yet"
        if self._in_use is None or self._in_use[1] != token:
            self._write(0, token)
        return ""

    async def _take_own_token(self) -> None:
        """Write the newest token for the next start of this head's Ray, but not while a Ray runs with another one."""
        if self._in_use is None:
            self._in_use = self._found()
        newest = self._tokens.newest
        if self._in_use is not None and (self._in_use[0] == newest or await self._is_here()):
            return
        token = self._tokens.of_epoch(newest)
        if token is not None:
            self._write(newest, token)

    def _found(self) -> tuple[int, str] | None:
        """Return the token that an earlier agent wrote, with its epoch."""
        try:
            return self._tokens.epoch_with(self._home.ray_token.read_text().strip())
        except (OSError, ValueError):
            return None

    async def _is_here(self) -> bool:
        return await gcs_answers(self._plan.gcs) or await self._listens() is not False

    def _write(self, epoch: int, token: str) -> None:
        write_token(self._home.ray_token, token, self._user)
        self._in_use = (epoch, token)

    def _withdraw(self) -> None:
        self._offered = ""
        self._home.ray_environment.unlink(missing_ok=True)

    # ---- what the other program started

    async def _watch(self) -> float:
        listens = await self._listens()
        if listens is False:
            self._closed_at = time.time()
            if self._state == RUNNING:
                self._ended()
            return _CHECK_S
        if listens is None or self._state == RUNNING:
            if self._lacks_versions:
                self._use_versions(await self._read_versions())
            return STEADY_S
        rows = [row for row in await self._table.own_rows() if row.started >= self._closed_at - _CLOCK_SLACK_S]
        if not rows:
            return _CHECK_S
        await self._found_alive(max(rows, key=lambda row: row.started))
        return STEADY_S

    def _ended(self) -> None:
        _log.warning("the Ray that another program started here has ended")
        self._report("")
        self._state = OFFERED if self._offered else WAITING
        self._lacks_versions = False

    async def _found_alive(self, row: LiveNode) -> None:
        versions = await self._read_versions()
        if self._plan.head and self._in_use is not None:
            self._report(instance_of(row.id, self._in_use[0]))
        self._state = RUNNING
        _log.info("the head lists this node as ALIVE")
        self._use_versions(versions)

    async def _read_versions(self) -> Versions:
        """Return the versions of this Ray; empty ones if a busy head has not answered in time."""
        if self._plan.head and self._in_use is not None:
            return await ray_versions(self._plan.dashboard, self.token, TABLE_TIMEOUT_S)
        return self._options.head_versions()

    def _use_versions(self, versions: Versions) -> None:
        """Report the versions of this Ray. Without them, no other node knows that the head runs Ray."""
        self._lacks_versions = not versions.ray
        if versions.ray and versions != self._versions:
            self._versions = versions
            self._options.on_versions(versions)

    async def _listens(self) -> bool | None:
        """Return whether this node's node manager accepts connections; None: it did not answer in time."""
        port = self._plan.ports.node_manager
        try:
            _, writer = await asyncio.wait_for(overlay_netns.open_connection(self._plan.node_ip, port), _DIAL_S)
        except asyncio.TimeoutError:
            return None
        except OSError as error:
            return False if error.errno == errno.ECONNREFUSED else None
        writer.close()
        return True

    def _fail(self, reason: str) -> None:
        if reason != self.last_error:
            _log.warning("Ray may not be started here: %s", reason)
        self.last_error = reason
        if self._state != RUNNING:
            self._state = WAITING
