"""The page of the coordinator: every part that adds routes to its frame.

>>> app = make_app(service, connection_limits, relay)
>>> add_site(app, service, connection_limits)
"""

from __future__ import annotations

from aiohttp import web

from meshray.coordinator.connection_limits import ConnectionLimits
from meshray.coordinator.service import Service
from meshray.web import administration, pages, pass_orders, sign_in
from meshray.web.frame import Site


def add_site(app: web.Application, service: Service, connection_limits: ConnectionLimits) -> Site:
    """Add the page to the application of the API; return its frame."""
    site = Site(app, service, connection_limits)
    sign_in.add(site)
    administration.add(site)
    pages.add(site)
    pass_orders.add(site)
    return site
