"""The proxies to Ray's dashboard and to the HTTP programs of Ray: `/ray/…` and `/serve/<node or any>/<port>/…`.

    browser ──TLS──► the coordinator ──overlay──► the program
            session's level, limits, headers (`meshray.web.proxy_headers`)

Bodies are streamed in both directions: nothing is read before the other side has taken what was read before. A program
that hangs, or a browser that never reads, blocks only one exchange of its own session.

>>> add_proxies(site, Proxy(site, Upstream(dialer.connect), ProxyLimits(), listens))
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import aiohttp
from aiohttp import WSMsgType, web

from meshray.linux.tasks import Tasks
from meshray.protocol.tunnel import ERROR_HEADER
from meshray.web import proxy_headers
from meshray.web.access import Level, Session
from meshray.web.frame import POLICY_HOST, Site, hang_up, is_gone
from meshray.web.proxy_headers import Mount
from meshray.web.proxy_limits import FIRST_BYTE_S, IDLE_S, MAX_UPLOAD_BYTES, ProxyLimits, Watch
from meshray.web.proxy_targets import Listens, ProxyError, Target, ray_target, require_readable, serve_targets
from meshray.web.proxy_upstream import CLOSE_S, MAX_MESSAGE_BYTES, Call, Upstream

RAY, SERVE = "/ray", "/serve"
#: A node's name or address, or `any`: the prefix of a program contains it as it was written.
_NODE = re.compile(r"[A-Za-z0-9.-]{1,63}")
#: Errors after which the next program is tried.
_NOT_CONNECTED = frozenset({"refused", "connect_timed_out", "unreachable"})
_MEBIBYTE = 1024 * 1024
#: WebSocket's close codes that no side may send (RFC 6455, section 7.4.1), and their substitutes.
_NOT_SENT = {1005: 1000, 1006: 1011, 1015: 1011}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exchange:
    """One request and where it goes.

    Attributes:
        page, prefix: as of `Mount`.
        targets: a later one only if an earlier one accepts no connection.
        tail: the path in the program, with the query.
        own: headers that the proxy sets itself, in lower case.
    """

    request: web.Request
    session: Session
    page: str
    prefix: str
    targets: Sequence[Target]
    tail: str
    own: dict[str, str] = field(default_factory=dict, repr=False)


class Proxy:
    """Passes requests on to programs.

    Args:
        listens: the ports of Ray's programs on each node.
        first_byte_s, idle_s, upload_bytes: see `meshray.web.proxy_limits`; smaller ones for tests.
    """

    def __init__(
        self,
        site: Site,
        upstream: Upstream,
        limits: ProxyLimits,
        listens: Listens,
        *,
        first_byte_s: float = FIRST_BYTE_S,
        idle_s: float = IDLE_S,
        upload_bytes: int = MAX_UPLOAD_BYTES,
    ) -> None:
        self._site = site
        self._upstream = upstream
        self._listens = listens
        self._limits = limits
        self._first_byte_s = first_byte_s
        self._idle_s = idle_s
        self._upload_bytes = upload_bytes

    async def ray(self, request: web.Request) -> web.StreamResponse:
        """Answer `/ray/…` with Ray's dashboard, which gets Ray's token from the proxy."""
        service, session = self._site.service, self._session(request)
        path, tail = _tail(request, RAY)
        try:
            if session.level < Level.USE:
                require_readable(path)
            if path.strip("/") == "api/authenticate":
                # The answer would contain the token.
                raise ProxyError(404, "no_dialog_needed", "The coordinator adds Ray's token itself: you need none.")
            target = ray_target(service.map)
            own = {"authorization": f"Bearer {service.secrets.ray_token()}"}
            return await self._pass_on(Exchange(request, session, _page(request), RAY, [target], tail, own))
        except ProxyError as error:
            return failed(self._site, request, error)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answer `/serve/<node or any>/<port>/…` with the program of Ray that listens there."""
        service, session = self._site.service, self._session(request)
        node, port = request.match_info["node"], request.match_info["port"]
        prefix = f"{SERVE}/{node}/{port}"
        try:
            if not _NODE.fullmatch(node):
                raise ProxyError(404, "node_unknown", f"{node[:63]!r} is not a node's name.", hint="meshray status")
            targets = serve_targets(service.map, self._listens, node, port)
            _, tail = _tail(request, prefix)
            return await self._pass_on(Exchange(request, session, _page(request), prefix, targets, tail))
        except ProxyError as error:
            return failed(self._site, request, error)

    def _session(self, request: web.Request) -> Session:
        return self._site.access.require(request, Level.READ)

    async def _pass_on(self, exchange: Exchange) -> web.StreamResponse:
        """Answer with what the program answers. Raises ProxyError: the answer has not begun."""
        request = exchange.request
        if (request.content_length or 0) > self._upload_bytes:
            raise self._too_large()
        with self._limits.taking(exchange.session.key):
            self._site.access.hold(request)
            attempt = self._websocket if is_websocket(request) else self._http
            for target in exchange.targets[:-1]:
                try:
                    return await attempt(exchange, target)
                except ProxyError as error:
                    if error.code not in _NOT_CONNECTED:
                        raise
            return await attempt(exchange, exchange.targets[-1])

    async def _http(self, exchange: Exchange, target: Target) -> web.StreamResponse:
        request = exchange.request
        watch = Watch(lambda: is_gone(request), self._first_byte_s)
        body = _Body(request, watch, self._upload_bytes)
        headers = _to_program(exchange, target)
        if request.body_exists and request.content_length is not None:
            headers.append(("Content-Length", str(request.content_length)))
        call = Call(request.method, exchange.tail, headers, body.chunks if request.body_exists else None)
        try:
            async with self._upstream.request(target, call, watch) as answer:
                if exchange.own and answer.status in (401, 403):
                    raise _token_refused(target)
                return await self._stream(exchange, target, answer, watch)
        except ProxyError:
            if body.is_too_large:
                raise self._too_large() from None
            raise
        except (TimeoutError, asyncio.TimeoutError):
            raise ProxyError(
                504, "timed_out", f"{target} accepted the request and did not answer within {self._first_byte_s:.0f} s."
            ) from None

    async def _stream(
        self, exchange: Exchange, target: Target, answer: aiohttp.ClientResponse, watch: Watch
    ) -> web.StreamResponse:
        request = exchange.request
        response = web.StreamResponse(status=answer.status)
        for name, value in proxy_headers.to_browser(
            answer.headers.items(),
            _mount(exchange, target),
            strict=exchange.session.level is Level.ADMIN,
            at=request.rel_url.raw_path,
        ):
            response.headers.add(name, value)
        if (length := answer.headers.get("Content-Length", "")).isdecimal():
            response.content_length = int(length)

        async def copy() -> None:
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
                watch.touch()
            await response.write_eof()

        watch.limit_s = self._idle_s
        watch.touch()
        try:
            await watch.run(copy())
        except (aiohttp.ClientError, ConnectionError, TimeoutError, asyncio.TimeoutError) as error:
            _log.debug("an answer of %s ended early: %r", target, error)
            hang_up(request)
        return response

    async def _websocket(self, exchange: Exchange, target: Target) -> web.StreamResponse:
        request = exchange.request
        watch = Watch(lambda: is_gone(request), self._first_byte_s)
        offered = request.headers.get("Sec-WebSocket-Protocol", "")
        protocols = tuple(word.strip() for word in offered.split(",") if word.strip())
        call = Call("GET", exchange.tail, _to_program(exchange, target))
        try:
            program = await watch.run(self._upstream.websocket(target, call, protocols))
        except (TimeoutError, asyncio.TimeoutError):
            raise ProxyError(
                504, "timed_out", f"{target} did not open the WebSocket within {self._first_byte_s:.0f} s."
            ) from None
        try:
            browser = web.WebSocketResponse(
                protocols=(program.protocol,) if program.protocol else (),
                max_msg_size=MAX_MESSAGE_BYTES,
                compress=False,
                timeout=CLOSE_S,
            )
            await browser.prepare(request)
            await _join(browser, program, self._idle_s)
        finally:
            await program.close()
        if not browser.closed:
            hang_up(request)
        return browser

    def _too_large(self) -> ProxyError:
        limit = f"{self._upload_bytes // _MEBIBYTE} MiB" if self._upload_bytes >= _MEBIBYTE else "the limit"
        return ProxyError(
            413,
            "request_too_large",
            f"The request's body is larger than {limit}, which is the most that the coordinator passes on.",
            hint="from a terminal, without this limit: meshray forward PORT NODE",
        )


def failed(site: Site, request: web.Request, error: ProxyError) -> web.Response:
    """Return the page for an error of a proxy."""
    response = site.failure(request, error, error.status)
    response.headers[ERROR_HEADER] = error.code
    return response


def add_proxies(site: Site, proxy: Proxy) -> None:
    """Add the routes of the proxies to the site."""
    site.add("*", RAY + "/{path:.*}", proxy.ray, write=Level.USE, needs_cookie=True, is_program=True)
    site.add("*", SERVE + "/{node}/{port}/{path:.*}", proxy.serve, write=Level.USE, is_program=True)
    site.add("GET", RAY, _with_slash, needs_cookie=True)
    site.add("GET", SERVE + "/{node}/{port}", _with_slash)


class _Body:
    """The body of a request, streamed as it arrives.

    Attributes:
        is_too_large: it exceeded the limit, although its header did not say so.
    """

    def __init__(self, request: web.Request, watch: Watch, limit_bytes: int) -> None:
        self._request = request
        self._watch = watch
        self._limit_bytes = limit_bytes
        self.is_too_large = False

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the parts of the body."""
        sent = 0
        async for chunk in self._request.content.iter_any():
            sent += len(chunk)
            if sent > self._limit_bytes:
                self.is_too_large = True
                raise ValueError("the body is too large")
            yield chunk
            self._watch.touch()


async def _with_slash(request: web.Request) -> web.StreamResponse:
    query = f"?{request.rel_url.raw_query_string}" if request.rel_url.raw_query_string else ""
    return web.Response(status=308, headers={"Location": f"{request.rel_url.raw_path}/{query}"})


async def _join(browser: web.WebSocketResponse, program: aiohttp.ClientWebSocketResponse[bool], idle_s: float) -> None:
    """Carry messages in both directions until either side closes; then close the other side with its code.

    Args:
        idle_s: a side that takes nothing for this long, seconds, has ended.
    """
    work = Tasks()
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def carry(
        source: web.WebSocketResponse | aiohttp.ClientWebSocketResponse[bool],
        sink: web.WebSocketResponse | aiohttp.ClientWebSocketResponse[bool],
    ) -> None:
        code = 1011
        try:
            while True:
                message = await source.receive()
                if message.type is WSMsgType.TEXT:
                    await asyncio.wait_for(sink.send_str(message.data), idle_s)
                elif message.type is WSMsgType.BINARY:
                    await asyncio.wait_for(sink.send_bytes(message.data), idle_s)
                else:
                    code = source.close_code or 1011
                    break
        except (ConnectionError, aiohttp.ClientError, asyncio.TimeoutError):
            pass
        finally:
            if not ended.done():
                ended.set_result(code)

    work.start(carry(browser, program), "websocket to program")
    work.start(carry(program, browser), "websocket to browser")
    try:
        code = await ended
    finally:
        await work.close()
    code = _NOT_SENT.get(code, code)
    await asyncio.gather(browser.close(code=code), program.close(code=code), return_exceptions=True)


def _page(request: web.Request) -> str:
    """Return the origin of the page. Raises ProxyError ``host_unusable``."""
    if not POLICY_HOST.fullmatch(request.host):
        raise ProxyError(
            400,
            "host_unusable",
            "Programs are shown under a name or an IPv4 address of the coordinator only: a content security policy "
            "cannot contain an IPv6 address.",
        )
    return f"https://{request.host}"


def _mount(exchange: Exchange, target: Target) -> Mount:
    return Mount(exchange.page, exchange.prefix, f"http://{target.ip}:{target.port}")


def _to_program(exchange: Exchange, target: Target) -> proxy_headers.Headers:
    return proxy_headers.to_program(
        exchange.request.headers.items(),
        _mount(exchange, target),
        exchange.request.remote or "",
        own=exchange.own,
    )


def _tail(request: web.Request, prefix: str) -> tuple[str, str]:
    """Return the path in the program, as the browser wrote it: without the slash and the query, and with both."""
    path = request.rel_url.raw_path[len(prefix) + 1 :]
    query = request.rel_url.raw_query_string
    return path, f"/{path}?{query}" if query else f"/{path}"


def is_websocket(request: web.Request) -> bool:
    """Return whether the request opens a WebSocket."""
    return request.headers.get("Upgrade", "").lower() == "websocket" and request.method == "GET"


def _token_refused(target: Target) -> ProxyError:
    # Not passed on: Ray's dashboard would ask its user for the token.
    return ProxyError(
        502,
        "ray_token_refused",
        f"Ray's dashboard at {target} does not accept the mesh's token: Ray there was not started by meshray, or is "
        "starting again with a new token.",
        hint="meshray status",
    )
