"""Read the requests of the coordinator's API: the body, within its limits, and the credential."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TypeVar

from aiohttp import web

from meshray.coordinator.figures import OTHER
from meshray.errors import MeshrayError, RefusedError, UsageError
from meshray.protocol.codec import WireError, convert, decode_object

MAX_BODY_BYTES = 64 * 1024
#: A body must be complete within this, seconds.
BODY_S = 10.0

_log = logging.getLogger(__name__)
F = TypeVar("F")


async def read_form(request: web.Request, form: type[F]) -> F:
    """Return the body as this form. Raises as `read_body` does."""
    return convert(await read_body(request), form)


async def read_body(request: web.Request) -> Mapping[str, object]:
    """Return the JSON object in the body. Raises WireError; MeshrayError ``request_too_large``."""
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise too_large()
    try:
        content = await asyncio.wait_for(request.read(), BODY_S)
    except asyncio.TimeoutError:
        raise WireError(f"the body did not arrive within {BODY_S:.0f} s") from None
    except (web.RequestPayloadError, ConnectionError):
        raise WireError("the body does not match its headers") from None
    return decode_object(content)


def credential_of(request: web.Request) -> str:
    """Return the credential in the request, which may be no node's. Raises RefusedError if there is none."""
    credential = bearer_credential(request)
    if not credential:
        raise not_accepted()
    return credential


def bearer_credential(request: web.Request) -> str:
    """Return the credential in the request's header; empty if the header has another form."""
    scheme, _, credential = request.headers.get("Authorization", "").partition(" ")
    return credential.strip() if scheme.lower() == "bearer" and credential.isascii() else ""


def require_websocket(request: web.Request) -> None:
    """Raise UsageError unless the request opens a WebSocket."""
    if not web.WebSocketResponse().can_prepare(request):
        raise UsageError("not_a_websocket", "this address accepts only WebSocket connections")


def log_failure(request: web.Request, error: Exception) -> None:
    """Log an unexpected error of a handler, unless its client has left: nothing can be written to it then."""
    has_left = request.transport is None or request.transport.is_closing()
    if isinstance(error, ConnectionError) and has_left:
        _log.debug("%s %s: the client left", request.method, request.rel_url.path[:200])
    else:
        _log.error("%s %s failed", request.method, request.rel_url.path[:200], exc_info=error)


def route_path(request: web.Request) -> str:
    """Return the path of the route, as in `meshray.coordinator.api_routes`; `OTHER` for an unknown path."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else OTHER


def not_accepted() -> RefusedError:
    """Return the error for an unknown credential."""
    return RefusedError(
        "credential_unknown",
        "the coordinator does not know this node",
        hint="it may have been removed: meshray leave, then join again",
    )


def too_large() -> MeshrayError:
    """Return the error for a body that is too large."""
    return MeshrayError("request_too_large", f"the request's body is larger than {MAX_BODY_BYTES // 1024} KiB")
