"""Keep the coordinator running beside the agent of the node that hosts it."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time

from meshray.agent.backoff import backoff_s
from meshray.home import Home
from meshray.linux import overlay_netns
from meshray.linux.process import ManagedProcess
from meshray.runtime.log_output import DESCRIPTOR, find_listener

log = logging.getLogger(__name__)

#: A coordinator that lived this long did not fail at its start.
_HEALTHY_LIFE_S = 30.0


class CoordinatorProcess:
    """The coordinator's process. It outlives the agent, and the next agent adopts it, unless that agent is of another
    version of meshray."""

    def __init__(self, home: Home, port: int) -> None:
        self._home = home
        self._port = port
        self._process = ManagedProcess(home.pid_file("coordinator"))

    async def run(self) -> None:
        """Start the coordinator, and again whenever it ends, until cancelled (which does not stop it)."""
        failures = 0
        while True:
            started = time.monotonic()
            if self._process.pid is not None and not self.is_current:
                log.info("replacing the coordinator of another version of meshray")
                await self.stop()
            if self._process.pid is None:
                log.info("starting the coordinator on TCP port %d", self._port)
                self._start()
            await self._process.wait()
            failures = 0 if time.monotonic() - started > _HEALTHY_LIFE_S else failures + 1
            delay_s = backoff_s(failures)
            log.warning("the coordinator ended; starting it again in %.1f s (see coordinator.log)", delay_s)
            await asyncio.sleep(delay_s)

    @property
    def is_current(self) -> bool:
        """Whether the running coordinator is of this installation of meshray."""
        return self._process.mark == sys.executable

    def _start(self) -> None:
        folders = {"MESHRAY_HOME": str(self._home.state), "MESHRAY_RUN": str(self._home.run)}
        listener = find_listener(os.environ)
        keep = () if listener is None else (listener,)
        try:
            # Without root the overlay is in another network namespace than the coordinator.
            inside = overlay_netns.entered() is not None
            sockets = ["--overlay-sockets", str(self._home.overlay_socket)] if inside else []
            self._process.spawn(
                [sys.executable, "-I", "-m", "meshray.coordinator", "--port", str(self._port), *sockets],
                env={**os.environ, **folders, **({} if listener is None else {DESCRIPTOR: str(listener)})},
                log=self._home.logs / "coordinator.log",
                mark=sys.executable,
                keep=keep,
            )
        finally:
            for descriptor in keep:
                os.close(descriptor)

    async def stop(self) -> None:
        """Stop the coordinator."""
        await self._process.stop(grace_s=5)
