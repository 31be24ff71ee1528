"""Orders to nodes with a pass of level admin, from a program: `/orders`, the WebSocket of `meshray node … --pass`.

Root on the head gives the same orders on /v1/orders (`meshray.coordinator.order_socket`). A browser cannot give them,
because it cannot send the session's CSRF token with a WebSocket.
"""

from __future__ import annotations

from aiohttp import web

from meshray.coordinator.api_requests import require_websocket
from meshray.coordinator.budgets import pass_account
from meshray.coordinator.order_socket import Giver, serve_order
from meshray.errors import RefusedError
from meshray.protocol.orders import PASS_ORDERS
from meshray.protocol.page import ORDERS_PATH
from meshray.web.access import Level
from meshray.web.frame import Site


class _Orders:
    def __init__(self, site: Site) -> None:
        self._site = site
        self._service = site.service

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Carry out one order, or refuse it once it is known what to record."""
        require_websocket(request)
        session, refusal = self._site.access.require(request, Level.READ), None
        try:
            self._site.access.require(request, Level.ADMIN)
        except RefusedError as error:
            refusal = error
        self._site.access.hold(request)
        account = pass_account(session.pass_id) if session.pass_id else session.node_id
        giver = Giver(session.audit_name, request.remote or "", account, refusal, PASS_ORDERS)
        return await serve_order(self._service, request, giver)

    def refused(self, request: web.Request) -> None:
        """Record an order with a pass whose session has ended."""
        record = self._site.access.ended_pass(request) if "Upgrade" in request.headers else None
        if record is not None and self._service.budgets.may_record_refusal(pass_account(record.id)):
            by = f"pass {record.id} of {record.name}"
            self._service.audit.note("order_refused", by=by, source=request.remote or "", code="session_ended")


def add(site: Site) -> None:
    """Add the WebSocket to the site. Every level reaches it, because the refusal of an order is recorded."""
    orders = _Orders(site)
    site.add("GET", ORDERS_PATH, orders.serve, write=Level.READ, needs_cookie=True, on_unauthorized=orders.refused)
