"""A client of the coordinator's HTTPS API with a pinned certificate, which tries all addresses at once.

>>> answer, endpoint = await enrol(token, request, key)
>>> coordinator = Coordinator(endpoints, fingerprint, credential)
>>> await coordinator.call("POST", "/v1/leave")
>>> async for message in (await coordinator.open_connection()).messages(): ...
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, cast

from meshray.client.dialer import CONNECT_TIMEOUT_S, ComeAgainError, describe, race
from meshray.client.first_contact import TIMEOUTS_S, race_patiently
from meshray.client.https_proxy import proxy_for
from meshray.errors import MeshrayError, RefusedError, UnreachableError
from meshray.model.address import Endpoint
from meshray.model.enrol import INSTANCE_HEADER, MAP_HEADER, MARK_HEADER, TICKET_HEADER, EnrolAnswer, EnrolRequest
from meshray.model.keys import PrivateKey, PublicKey
from meshray.model.proof import FIELD, prove
from meshray.model.token import Token
from meshray.protocol.api import PresentedToken
from meshray.protocol.codec import convert, decode_object, encode, to_json
from meshray.protocol.connection import (
    CLOSE_MEMBERSHIP_UNKNOWN,
    CLOSE_NOT_ACCEPTED,
    CLOSE_REPLACED,
    MAX_MAP_BYTES,
    FromCoordinator,
    Message,
    read_coordinator,
)
from meshray.protocol.error import reported_error

if TYPE_CHECKING:
    import socket

    import aiohttp

    from meshray.client.transport_websocket import TransportWebSocket

#: The timeout of a whole request, seconds; an enrolment may queue behind a hundred others.
REQUEST_TIMEOUT_S = 20.0
#: The interval of WebSocket pings, seconds. A connection without an answer is dead after one and a half times this.
HEARTBEAT_S = 10.0
#: The longest time that a coordinator can make an agent wait before it connects again, seconds.
MAX_RETRY_AFTER_S = 60.0
#: The path of the request that withdraws an enrolment without an answer.
WITHDRAW = "/v1/withdraw"
#: The commands that make a copy of a node's disk a separate node without un-enrolling the original.
ON_THE_COPY = "on the copy: meshray leave --local, then meshray join TOKEN (on the head: meshray token create)"


class RemovedFromMesh(RefusedError):
    """The coordinator no longer knows this node."""

    def __init__(self) -> None:
        super().__init__(
            "node_removed",
            "this node was removed from its mesh",
            hint="meshray leave, then join again with a new token",
        )


class TakenOver(RefusedError):
    """Another agent uses this node's identity.

    Args:
        detail: the addresses of both, if the coordinator reported them.
        message: the whole message, if it is known.
    """

    def __init__(self, detail: str = "", message: str = "") -> None:
        addresses = f"; they connect from {detail}" if detail else ""
        super().__init__(
            "identity_taken_over",
            message or f"two machines use this node's identity: was its disk cloned?{addresses}",
            hint=ON_THE_COPY,
        )


class CoordinatorBehind(MeshrayError):
    """The coordinator does not know this node, and its database may be an older copy."""

    def __init__(self) -> None:
        super().__init__(
            "coordinator_behind",
            "the coordinator was restored from an older copy and does not know this node, which continues unchanged",
            hint="for good: meshray leave, then join with a new token (on the head: meshray token create)",
        )


async def enrol(
    token: Token,
    request: EnrolRequest,
    key: PrivateKey,
    *,
    on_sent: Callable[[], None] = lambda: None,
    on_wait: Callable[[str], None] = lambda words: None,
) -> tuple[EnrolAnswer, Endpoint]:
    """Enrol this machine. Returns the answer and the address at which the coordinator answered.

    Args:
        key: the key whose public half the request contains.
        on_sent: called just before the request is sent. After that, without an answer, it is unknown whether the node
            exists.
        on_wait: as for `race_patiently`.

    Raises:
        UnreachableError: no address answered; the message lists each with its result.
        RefusedError: the token or the name is refused.
        MeshrayError: the versions do not match.
    """
    anonymous = Coordinator(token.coordinators, token.fingerprint)
    async with _session(TIMEOUTS_S[-1]) as session:
        endpoint, hello = await anonymous.find(session, on_wait)
        found = replace(anonymous, endpoints=(endpoint,))
        body = proven(hello, "/v1/enroll", to_json(request.form()), key)
        on_sent()
        answer = await found.request(session, "POST", "/v1/enroll", body)
    return EnrolAnswer.from_json(answer), endpoint


async def withdraw(token: Token, key: PrivateKey) -> None:
    """Withdraw an enrolment with this token and key whose answer did not arrive. Idempotent.

    Raises:
        UnreachableError: no address answered.
        RefusedError: the token is refused.
    """
    anonymous = Coordinator(token.coordinators, token.fingerprint)
    await anonymous.call("POST", WITHDRAW, withdrawal(token, key), key)


def withdrawal(token: Token, key: PrivateKey) -> Mapping[str, object]:
    """Return the body of POST /v1/withdraw, without the proof."""
    form = PresentedToken(token.mesh_id, token.token_id, token.secret)
    return {**to_json(form), "public_key": str(key.public())}


def proven(hello: Mapping[str, object], path: str, body: Mapping[str, object], key: PrivateKey) -> Mapping[str, object]:
    """Return the request's body with the proof that this node has the private key.

    Args:
        hello: the coordinator's answer to GET /v1/hello. An older coordinator has no key for proofs and needs none.
    """
    if "proof_key" not in hello:
        return body
    return {**body, FIELD: prove(key, PublicKey.parse(convert(hello["proof_key"], str)), path, body)}


@dataclass(frozen=True)
class Coordinator:
    """The coordinator's addresses and certificate, and this node's credentials.

    Attributes:
        endpoints: all addresses; the first one that answers is used.
        fingerprint: SHA-256 of the certificate; nothing else is trusted.
        credential: the node's credential; empty for an unauthenticated client.
        mark, ticket: this node's knowledge of the coordinator's past, sent when a connection is opened.
        instance: a random id of this process, sent with them.
    """

    endpoints: tuple[Endpoint, ...]
    fingerprint: bytes
    credential: str = field(default="", repr=False)
    mark: str = ""
    ticket: str = field(default="", repr=False)
    instance: str = ""

    async def find(
        self, session: aiohttp.ClientSession, on_wait: Callable[[str], None] | None = None
    ) -> tuple[Endpoint, Mapping[str, object]]:
        """Return the first address at which the right coordinator answers, and its answer to GET /v1/hello.

        Args:
            on_wait: as for `race_patiently`; None: every address is asked once.

        Raises:
            UnreachableError: no address answered.
            RefusedError: another mesh's coordinator answered.
        """

        async def hello(endpoint: Endpoint) -> tuple[Endpoint, Mapping[str, object]]:
            return endpoint, await self._exchange(session, endpoint, "GET", "/v1/hello", None)

        if on_wait is not None:
            return await race_patiently(self.endpoints, hello, on_wait)
        return await race(self.endpoints, hello)

    async def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        prove_with: PrivateKey | None = None,
        *,
        on_wait: Callable[[str], None] | None = None,
    ) -> Mapping[str, object]:
        """Send one request with this node's credential, and with a proof of the key ``prove_with`` if given.

        Raises as `request` does. ``on_wait`` is as for `find`.
        """
        async with _session(CONNECT_TIMEOUT_S if on_wait is None else TIMEOUTS_S[-1]) as session:
            endpoint, hello = await self.find(session, on_wait)
            if body is not None and prove_with is not None:
                body = proven(hello, path, body, prove_with)
            return await replace(self, endpoints=(endpoint,)).request(session, method, path, body)

    async def request(
        self, session: aiohttp.ClientSession, method: str, path: str, body: Mapping[str, object] | None = None
    ) -> Mapping[str, object]:
        """Send one request to the first endpoint.

        Raises:
            UnreachableError: it stopped answering.
            MeshrayError: the coordinator answered with an error.
        """
        import aiohttp

        try:
            return await self._exchange(session, self.endpoints[0], method, path, body)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise UnreachableError(
                "coordinator_unreachable",
                f"the coordinator stopped answering ({self.endpoints[0]}: {describe(error)})",
                hint="retry; on the head: meshray status",
            ) from None

    async def call_through(
        self,
        stream: socket.socket,
        method: str,
        path: str,
        body: Mapping[str, object],
        prove_with: PrivateKey | None = None,
        *,
        on_sent: Callable[[], None] = lambda: None,
    ) -> Mapping[str, object]:
        """Send one request over a byte stream to the coordinator's port. ``on_sent`` is as in `enrol`."""
        from meshray.client.tunnelled import session_over

        async with session_over(stream, self.fingerprint) as session:
            if prove_with is not None:
                body = proven(await self.request(session, "GET", "/v1/hello"), path, body, prove_with)
            on_sent()
            return await self.request(session, method, path, body)

    async def open_connection(self, accepts: str = "") -> Connection:
        """Open the agent's WebSocket to the first address that answers.

        Args:
            accepts: the forms of the map that the agent accepts, and the map that it has; empty: only whole maps.

        Raises:
            UnreachableError: no address answered.
            ComeAgainError: too many agents connect at the same time.
            RefusedError: ``credential_unknown``, or ``token_other_mesh`` if another certificate answers.
        """
        return await self._open("/v1/agent", MAX_MAP_BYTES, headers={MAP_HEADER: accepts} if accepts else {})

    async def open_relay(self) -> Connection:
        """Open a WebSocket for WireGuard's datagrams (`meshray.relay.client`). Raises like `open_connection`.

        Only the handshake is aiohttp's; then the relay takes the transport over, with its pings.
        """
        from meshray.relay.frames import FORM_HEADER, GROUPS, MAX_MESSAGE_BYTES

        headers = {FORM_HEADER: GROUPS}
        return await self._open("/v1/relay", MAX_MESSAGE_BYTES, heartbeat_s=None, headers=headers)

    async def open_order(self) -> Connection:
        """Open the WebSocket for one order (`meshray.protocol.orders`). Raises like `open_connection`.

        It has no pings: a user who reads the output page by page takes nothing for a long time.
        """
        from meshray.protocol.orders import MAX_ORDER_BYTES

        return await self._open("/v1/orders", MAX_ORDER_BYTES, heartbeat_s=None)

    async def open_wheel(self) -> Connection:
        """Open the WebSocket that sends a wheel of meshray (`meshray.client.wheel`). Raises like `open_connection`."""
        from meshray.protocol.orders import MAX_ORDER_BYTES

        return await self._open("/v1/wheel", MAX_ORDER_BYTES)

    async def _open(
        self,
        path: str,
        max_message_bytes: int,
        heartbeat_s: float | None = HEARTBEAT_S,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Connection:
        session = _session()
        try:
            return await race(
                self.endpoints,
                lambda endpoint: self._connect(
                    session, endpoint, path, max_message_bytes, heartbeat_s, headers=headers or {}
                ),
                stagger_s=0.3,
                discard=Connection.close_socket,
            )
        except BaseException:
            await session.close()
            raise

    async def _connect(
        self,
        session: aiohttp.ClientSession,
        endpoint: Endpoint,
        path: str,
        max_message_bytes: int,
        heartbeat_s: float | None,
        *,
        headers: Mapping[str, str],
    ) -> Connection:
        import aiohttp

        try:
            socket = await session.ws_connect(
                f"https://{endpoint}{path}",
                headers={**self._headers, **self._knowledge, **headers},
                ssl=_pin(self.fingerprint),
                heartbeat=heartbeat_s,
                max_msg_size=max_message_bytes,
            )
        except aiohttp.WSServerHandshakeError as error:
            if error.status in (401, 403):
                # The coordinator reports only on the agent's WebSocket whether it can vouch for its database.
                raise RefusedError("credential_unknown", "the coordinator does not know this node") from None
            if error.status == 404:
                raise RefusedError(
                    "coordinator_too_old",
                    f"the coordinator's meshray is too old: it does not know {path}",
                    hint="on the head, after an update: meshray down; meshray up",
                ) from None
            if (after_s := _retry_after_s(error)) is not None:
                raise ComeAgainError(after_s) from None
            raise
        return Connection(session, cast("TransportWebSocket", socket), endpoint)

    async def _exchange(
        self,
        session: aiohttp.ClientSession,
        endpoint: Endpoint,
        method: str,
        path: str,
        body: Mapping[str, object] | None,
    ) -> Mapping[str, object]:
        """Send one request and return its answer. Raises aiohttp's exceptions, and the API's errors as MeshrayError."""
        async with session.request(
            method,
            f"https://{endpoint}{path}",
            json=body,
            headers=self._headers,
            ssl=_pin(self.fingerprint),
        ) as response:
            answer = decode_object(await response.read())
            if response.status >= 400:
                raise reported_error(answer)
        return answer

    @property
    def _knowledge(self) -> dict[str, str]:
        headers = {
            MARK_HEADER: self.mark,
            TICKET_HEADER: self.ticket,
            INSTANCE_HEADER: self.instance,
        }
        return {name: text for name, text in headers.items() if text}

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.credential}"} if self.credential else {}


class Connection:
    """An agent's WebSocket: it receives the map and sends small reports."""

    def __init__(self, session: aiohttp.ClientSession, socket: TransportWebSocket, endpoint: Endpoint) -> None:
        self._session = session
        self._socket = socket
        self.endpoint = endpoint

    @property
    def socket(self) -> aiohttp.ClientWebSocketResponse[bool]:
        """The WebSocket, for messages that are not JSON."""
        return self._socket

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the coordinator's answer."""
        return self._socket.headers

    @property
    def transport(self) -> asyncio.Transport:
        """The connection below the WebSocket. Raises ConnectionError if it is closed."""
        transport = self._socket.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the connection is closed")
        return transport

    @property
    def resolved(self) -> Endpoint | None:
        """The address that the endpoint's name resolved to; None if it is an address, or a proxy resolved the name."""
        remote = self._socket.get_extra_info("peername")
        if not remote or self.endpoint.ip is not None or proxy_for(self.endpoint):
            return None
        return Endpoint(str(remote[0]), self.endpoint.port)

    async def messages(self) -> AsyncIterator[FromCoordinator]:
        """Yield the coordinator's messages of known types until the connection closes.

        Raises:
            WireError: a message is malformed.
            RemovedFromMesh: this node was removed.
            CoordinatorBehind: the coordinator does not know this node, and its database may be an older copy.
            TakenOver: another agent connected as this node.
        """
        import aiohttp

        async for message in self._socket:
            if message.type is aiohttp.WSMsgType.TEXT and (known := read_coordinator(message.data)) is not None:
                yield known
        if self._socket.close_code == CLOSE_NOT_ACCEPTED:
            raise RemovedFromMesh
        if self._socket.close_code == CLOSE_MEMBERSHIP_UNKNOWN:
            raise CoordinatorBehind
        if self._socket.close_code == CLOSE_REPLACED:
            raise TakenOver

    def is_bound_to(self, addresses: Collection[str]) -> bool:
        """Return whether the local address is one of these, or the connection is local to this machine."""
        name = self._socket.get_extra_info("sockname")
        return not name or name[0] in addresses or ip_address(name[0]).is_loopback

    async def send(self, message: Message) -> None:
        """Send one message. Raises ConnectionError if the connection is closed."""
        await self._socket.send_str(encode(message))

    async def close(self) -> None:
        """Close the WebSocket and its session."""
        try:
            await self.close_socket()
        finally:  # a second cancellation may arrive while waiting for the peer's close frame
            await self._session.close()

    async def close_socket(self) -> None:
        """Close only the WebSocket, and wait at most a second for the peer."""
        with contextlib.suppress(asyncio.TimeoutError, OSError):
            await asyncio.wait_for(self._socket.close(), 1.0)


def _retry_after_s(error: aiohttp.WSServerHandshakeError) -> float | None:
    """Return the seconds in the answer's Retry-After, at most `MAX_RETRY_AFTER_S`; None if it has none."""
    text = error.headers.get("Retry-After", "") if error.headers is not None else ""
    is_number = error.status == 503 and text.isascii() and text.isdigit()
    return min(float(text[:9]), MAX_RETRY_AFTER_S) if is_number else None


@functools.lru_cache(4)
def _pin(fingerprint: bytes) -> aiohttp.Fingerprint:
    # aiohttp reuses a connection only for the same object.
    import aiohttp

    return aiohttp.Fingerprint(fingerprint)


def _session(connect_s: float = CONNECT_TIMEOUT_S) -> aiohttp.ClientSession:
    import aiohttp

    from meshray.client.resolver import Resolver
    from meshray.client.transport_websocket import TransportWebSocket

    # trust_env: use HTTPS_PROXY (with CONNECT) and NO_PROXY.
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(resolver=Resolver()),
        timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S, sock_connect=connect_s),
        trust_env=True,
        ws_response_class=TransportWebSocket,
    )
