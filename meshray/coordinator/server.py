"""The coordinator on the network: one TLS port for IPv4 and IPv6, from start to clean end.

>>> server = Server(home, port=None)
>>> await server.start()
>>> await server.run_until(stop)           # an asyncio.Event
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from meshray.coordinator.audit_log import AuditLog
from meshray.coordinator.certificate import fingerprint, server_context
from meshray.coordinator.connection_limits import ConnectionLimits
from meshray.coordinator.handlers import make_app
from meshray.coordinator.listener import Listener
from meshray.coordinator.restore.recovery import SETTLE_S
from meshray.coordinator.restore.ticket import Seal
from meshray.coordinator.service import Service
from meshray.coordinator.store import open_store
from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.linux.clock import SteadyClock
from meshray.linux.overlay_dialer import OverlayDialer
from meshray.relay.server import Relay
from meshray.web import program_routes
from meshray.web.frame import NO_SCRIPTS, Site
from meshray.web.site import add_site

#: All addresses of the machine.
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - nodes come from anywhere; the token is the gate
#: The interval at which absent ephemeral nodes are removed, seconds.
COLLECT_EVERY_S = 5.0
#: The time that running requests have when the server ends, seconds.
SHUTDOWN_S = 3.0
#: The TCP segment size in both directions, bytes: it passes IPv6's minimum MTU of 1280. The answer to an enrolment is
#: the first large message that a node gets; on a narrow path that drops ICMP it would never arrive.
LARGEST_SEGMENT = 1220

_log = logging.getLogger(__name__)


class Server:
    """The coordinator of the mesh in this home.

    Args:
        port: the TCP port; None: the one chosen when the mesh was created, 0: any free one.
        hosts: the addresses to listen on.
        clock: unix seconds; None: a clock for which setting the machine's clock only affects the expiry of tokens.
        connection_limits: the limits for unauthenticated connections.
        settle_s: how long enrolments wait after the start for the agent on this machine.
        relay: the relay to the hub's WireGuard; None: to the mesh's port on this machine.
        overlay_sockets: as of `meshray.linux.overlay_dialer.OverlayDialer`.
    """

    def __init__(
        self,
        home: Home,
        *,
        port: int | None = None,
        hosts: Sequence[str] = EVERYWHERE,
        clock: Callable[[], float] | None = None,
        connection_limits: ConnectionLimits | None = None,
        relay: Relay | None = None,
        settle_s: float = SETTLE_S,
        overlay_sockets: Path | None = None,
    ) -> None:
        self._home = home
        self._overlay_sockets = overlay_sockets
        self._port = port
        self._hosts = hosts
        self._clock, self._wall = (SteadyClock(), time.time) if clock is None else (clock, clock)
        self._connection_limits = connection_limits or ConnectionLimits()
        self._relay = relay
        self._settle_s = settle_s
        self._listener: Listener | None = None
        self._service: Service | None = None
        self._runner: web.AppRunner | None = None
        self._site: Site | None = None

    @property
    def service(self) -> Service:
        """The service that answers; only while the server runs."""
        if self._service is None:
            raise RuntimeError("the server was not started")
        return self._service

    @property
    def site(self) -> Site:
        """The page; only while the server runs."""
        if self._site is None:
            raise RuntimeError("the server was not started")
        return self._site

    @property
    def port(self) -> int:
        """The TCP port on which it listens."""
        if self._listener is None:
            raise RuntimeError("the server was not started")
        return self._listener.port

    async def start(self) -> None:
        """Open the store and the port.

        Raises:
            MeshrayError: no_mesh, store_corrupt, store_locked, store_too_new, certificate_unusable, port_in_use.
        """
        store = open_store(self._home)
        try:
            context, own_fingerprint, seal = _tls(self._home)
            audit = AuditLog.open(self._home.audit_log, self._wall)
            service = Service(
                store, own_fingerprint, seal, self._clock, self._wall, audit=audit, settle_s=self._settle_s
            )
            relay = self._relay = self._relay or Relay(service.settings.port)
            service.on_removed(relay.drop)
            sockets = _listen(self._hosts, service.settings.port if self._port is None else self._port)
        except BaseException:
            store.close()
            raise
        self._service = service
        app = make_app(service, self._connection_limits, relay, self._home.wheels)
        self._site = add_site(app, service, self._connection_limits)
        dial = program_routes.dial_from(service, OverlayDialer(self._overlay_sockets))
        program_routes.add(app, self._site, dial, program_routes.listens_of(service))
        self._runner = web.AppRunner(
            app,
            access_log=None,  # The request line is harmless, but headers are not: none is logged.
            auto_decompress=False,  # A small body must not become a large one.
            keepalive_timeout=self._connection_limits.header_s,
            lingering_time=2.0,
            shutdown_timeout=SHUTDOWN_S,
        )
        await self._runner.setup()
        http = self._runner.server
        if http is None:
            raise RuntimeError("aiohttp made no server")

        def protocol() -> asyncio.BaseProtocol:
            handler = http()
            # aiohttp answers malformed requests itself: no middleware and no signal sees these answers.
            handler.__class__ = _Protocol
            return self._connection_limits.wrap(handler)

        self._listener = Listener(sockets, context, protocol)
        self._listener.start()
        _log.info("mesh %s, listening on port %d", service.settings.mesh.name, self.port)

    async def run_until(self, stop: asyncio.Event) -> None:
        """Serve until this event is set, then end cleanly."""
        try:
            while not stop.is_set():
                try:
                    await asyncio.wait_for(stop.wait(), COLLECT_EVERY_S)
                except asyncio.TimeoutError:
                    await self._collect()
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Inform every agent, finish running requests, and close the store."""
        if self._listener is not None:
            await self._listener.close()
        if self._service is not None:
            self._service.disconnect_all()
        if self._site is not None:
            self._site.access.close()
        if self._relay is not None:
            self._relay.close()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._service is not None:
            await self._service.close()

    async def _collect(self) -> None:
        try:
            await self.service.collect()
        except MeshrayError as error:
            # A full disk must not end the service: the map and its connections continue.
            _log.error("absent nodes could not be removed: %s", error)


class _Protocol(web.RequestHandler):
    """aiohttp's protocol, whose own answers run no scripts either."""

    __slots__ = ()

    def handle_error(self, *arguments: Any, **options: Any) -> web.StreamResponse:
        response = super().handle_error(*arguments, **options)
        response.headers.update(NO_SCRIPTS)
        return response


def _tls(home: Home) -> tuple[ssl.SSLContext, bytes, Seal]:
    try:
        context = server_context(home.certificate, home.certificate_key)
        seal = Seal.from_pem(home.certificate_key.read_text())
        return context, fingerprint(home.certificate.read_text()), seal
    except (OSError, ValueError) as error:
        raise MeshrayError(
            "certificate_unusable",
            f"the coordinator's certificate in {home.state} cannot be used: {error}",
            hint="restore coordinator.crt and coordinator.key from a backup: every node pins this certificate",
        ) from error


def _listen(hosts: Sequence[str], port: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        for host in hosts:
            bound = _bind(host, port if port or not sockets else sockets[0].getsockname()[1])
            if bound is not None:
                sockets.append(bound)
    except OSError as error:
        for opened in sockets:
            opened.close()
        if error.errno != errno.EADDRINUSE:
            raise
        raise MeshrayError(
            "port_in_use", f"TCP port {port} is in use by another program", hint=f"ss -ltnp 'sport = :{port}'"
        ) from error
    return sockets


def _bind(host: str, port: int) -> socket.socket | None:
    is_v6 = ":" in host
    try:
        bound = socket.socket(socket.AF_INET6 if is_v6 else socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        # A machine without IPv6 is reachable by IPv4 alone.
        if is_v6:
            return None
        raise
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, LARGEST_SEGMENT)
        if is_v6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        if is_v6 and error.errno == errno.EADDRNOTAVAIL:
            return None
        raise
    return bound
