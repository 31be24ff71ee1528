"""The agent's metrics at http://<overlay address>:20190/metrics, and the service discovery at /sd.

The server listens on the overlay address only; the guard closes it to everything but the overlay, as the ports of Ray.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time

from meshray.agent.metrics.discovery import discovery
from meshray.agent.metrics.exposition import metrics_text
from meshray.agent.metrics.figures import read_figures
from meshray.agent.metrics.http_server import HttpServer, Page
from meshray.agent.metrics.text_format import CONTENT_TYPE
from meshray.agent.status.snapshot import Sources
from meshray.agent.status.used_paths import UsedPaths
from meshray.defaults import METRICS_PORT
from meshray.errors import MeshrayError
from meshray.linux import overlay_netns
from meshray.protocol.api import MetricsText
from meshray.protocol.codec import convert

log = logging.getLogger(__name__)

#: The delay before another attempt to listen, seconds.
_RETRY_S = 5.0
#: Scrapes within this time get the same answer, seconds: no member can keep the agent busy.
_CACHE_S = 1.0
#: The coordinator on this machine answers within milliseconds.
_COORDINATOR_S = 3.0


class MetricsServer:
    """The server of one node."""

    def __init__(self, sources: Sources, used: UsedPaths) -> None:
        self._sources = sources
        self._used = used
        self._last: tuple[float, Page] = (-_CACHE_S, Page(b""))
        self._lock = asyncio.Lock()

    async def run(self) -> None:
        """Serve until cancelled, once the overlay is up."""
        state = self._sources.state
        await state.overlay_up.wait()
        server = HttpServer({"/metrics": self.metrics, "/sd": self.targets})
        logged = ""
        while True:
            try:
                listener = await asyncio.to_thread(overlay_netns.listener, state.me.ip, METRICS_PORT)
            except OSError as error:
                if str(error) != logged:
                    logged = str(error)
                    log.warning(
                        "metrics: TCP port %d of %s cannot be used: %s; "
                        "ss -ltnp 'sport = :%d' names the program that has it",
                        METRICS_PORT, state.me.ip, error.strerror, METRICS_PORT,
                    )  # fmt: skip
                await asyncio.sleep(_RETRY_S)
                continue
            await server.serve(listener)

    async def metrics(self) -> Page:
        """Return the node's series; beside the coordinator, its series as well."""
        async with self._lock:
            at, page = self._last
            if time.monotonic() - at >= _CACHE_S:
                page = await self._read()
                self._last = time.monotonic(), page
        return page

    async def targets(self) -> Page:
        """Return the targets of the mesh."""
        groups = discovery(self._sources.state.map)
        return Page(json.dumps(groups).encode(), "application/json")

    async def _read(self) -> Page:
        text = metrics_text(read_figures(self._sources, self._used))
        if self._sources.state.enrolment.hosts_coordinator:
            text += await self._of_coordinator()
        return Page(text.encode(), CONTENT_TYPE)

    async def _of_coordinator(self) -> str:
        call = self._sources.state.coordinator.call("GET", "/v1/metrics")
        try:
            return convert(await asyncio.wait_for(call, _COORDINATOR_S), MetricsText).text
        except (MeshrayError, asyncio.TimeoutError) as error:
            log.debug("the coordinator's metrics are missing: %s", error)
            return ""
