"""The routes from the page to programs of the mesh: the proxies and the tunnels, with common limits.

>>> program_routes.add(site, dial, listens)
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address

from aiohttp import web

from meshray.coordinator.service import Service
from meshray.linux.overlay_dialer import OverlayDialer
from meshray.web.frame import Site
from meshray.web.proxy import Proxy, add_proxies
from meshray.web.proxy_limits import ProxyLimits
from meshray.web.proxy_targets import Listens
from meshray.web.proxy_upstream import Dial, Upstream
from meshray.web.tunnel import Tunnel


def add(app: web.Application, site: Site, dial: Dial, listens: Listens) -> Proxy:
    """Add all routes to programs.

    Args:
        dial: opens a connection to an overlay address.
        listens: the ports of Ray's programs on each node.
    """
    upstream, limits = Upstream(dial), ProxyLimits()
    proxy = Proxy(site, upstream, limits, listens)
    add_proxies(site, proxy)
    Tunnel(site, upstream, limits).add()

    async def close(app: web.Application) -> None:
        await upstream.close()

    app.on_cleanup.append(close)
    return proxy


def dial_from(service: Service, dialer: OverlayDialer) -> Callable[[IPv4Address, int], Awaitable[socket.socket]]:
    """Return the function that opens connections from the coordinator's own overlay address."""

    async def dial(ip: IPv4Address, port: int) -> socket.socket:
        return await dialer.connect(ip, port, source=service.own_node().ip)

    return dial


def listens_of(service: Service) -> Listens:
    """Return the ports of Ray's programs, as the nodes report them."""

    def listens(node_id: str) -> frozenset[int] | None:
        report = service.observations.report(node_id)
        return frozenset(report.listens) if report is not None else None

    return listens
