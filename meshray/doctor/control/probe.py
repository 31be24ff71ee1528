"""Examine the coordinator from this node: each address by TCP, TLS and one request, all concurrently."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import ssl
import time
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import urlsplit

import aiohttp

from meshray.client.https_proxy import describe_proxy_error, proxy_for
from meshray.client.resolver import Resolver
from meshray.doctor.context import Context
from meshray.doctor.control.facts import (
    ANSWERED,
    CLOSED,
    NO_ANSWER,
    NO_ROUTE,
    NO_SERVER,
    NOT_TLS,
    OTHER_CERTIFICATE,
    PLAIN_HTTP,
    PROXY,
    REFUSED,
    SILENT,
    UNEXPECTED,
    UNRESOLVED,
    ControlFacts,
    EndpointFacts,
    PortalFacts,
    TokenFacts,
)
from meshray.linux.dns import addresses
from meshray.model.address import Endpoint
from meshray.model.node import STATIC
from meshray.protocol.codec import WireError, decode_object
from meshray.protocol.fields import MAX_REVISION

#: The connection timeout. A dropping firewall never answers; a distant coordinator answers within this time, even if
#: one SYN was lost (sent again after 1 s, RFC 6298) or both machines are busy.
_TCP_S = 2.5
#: The timeout for TLS and one request, also at a coordinator that ten nodes ask at once.
_EXCHANGE_S = 2.5
#: The timeout for plain HTTP, whose answer matters only if nothing better answers.
_PORTAL_S = 0.8
#: The maximum time for a map to arrive.
_MAP_S = 1.5
#: For a head with many interfaces, the first addresses are sufficient.
_ADDRESSES = 6
#: A credential of no node: this probe must not take over the connection of this node's own agent.
_NO_NODE = "doctor"


class _RecordingFingerprint(aiohttp.Fingerprint):
    """The token's pin, which also keeps the certificate that it checked."""

    certificate: bytes = b""

    def check(self, transport: asyncio.Transport) -> None:
        connection = transport.get_extra_info("ssl_object")
        if connection is not None:
            self.certificate = connection.getpeercert(binary_form=True) or b""
        super().check(transport)


async def measure(context: Context) -> ControlFacts:
    """Return the facts of this node within a few seconds; unknown values keep their defaults."""
    if not context.coordinators:
        return ControlFacts()
    timeout = aiohttp.ClientTimeout(total=_EXCHANGE_S)
    connector = aiohttp.TCPConnector(resolver=Resolver())
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=True) as session:
        found = await asyncio.gather(
            *(_examine_endpoint(session, context, at) for at in context.coordinators[:_ADDRESSES])
        )
        facts = ControlFacts(
            tuple(result for result, _ in found),
            context.fingerprint.hex(),
            versions=_versions(context),
            unsigned=_unsigned(context),
        )
        answer = next((answer for result, answer in found if result.state == ANSWERED), None)
        if answer is None:
            portal, over_overlay = await asyncio.gather(
                _portal(session, context.coordinators[0]), _over_overlay(session, context)
            )
            return replace(facts, portal=portal, over_overlay=over_overlay)
        endpoint = next(
            at for at, (result, _) in zip(context.coordinators, found, strict=False) if result.state == ANSWERED
        )
        (revision, lag_s), upgrade, tokens = await asyncio.gather(
            _wait_for_map(context, _revision(answer)),
            _upgrade(session, endpoint, context.fingerprint),
            _tokens(session, endpoint, context),
        )
    accepted = answer.get("accepted")
    return replace(
        facts,
        upgrade=upgrade,
        accepted=accepted if isinstance(accepted, bool) else None,
        revision=revision,
        coordinator_revision=_revision(answer),
        lag_s=lag_s,
        tokens=tokens,
        coordinator_version=str(answer.get("version", "")),
    )


async def _examine_endpoint(
    session: aiohttp.ClientSession, context: Context, at: Endpoint
) -> tuple[EndpointFacts, Mapping[str, object]]:
    """Return the result at one address, and the coordinator's answer."""
    proxy = proxy_for(at)
    result = EndpointFacts(str(at), proxy=proxy)
    if not proxy:
        began = time.perf_counter()
        state, detail = await _tcp(at)
        if state:
            return replace(result, state=state, detail=detail), {}
        result = replace(result, connect_ms=round((time.perf_counter() - began) * 1000, 1))
    pin = _RecordingFingerprint(context.fingerprint)
    try:
        answer = await _request(session, at, "/v1/hello", context.credential, pin)
    except Exception as error:  # Middleboxes provoke errors of every kind in TLS and HTTP libraries.
        return await _failure(session, result, at, pin.certificate, error), {}
    return replace(result, state=ANSWERED), answer


async def _over_overlay(session: aiohttp.ClientSession, context: Context) -> str:
    """Return the state of the coordinator at its overlay address; empty if that is this machine, or not known."""
    node = context.mesh_map.coordinator if context.mesh_map is not None else None
    if node is None or context.hosts_coordinator:
        return ""
    result, _ = await _examine_endpoint(session, context, Endpoint(str(node.ip), context.mesh_port))
    return result.state


async def _request(
    session: aiohttp.ClientSession, at: Endpoint, path: str, credential: str, pin: aiohttp.Fingerprint
) -> Mapping[str, object]:
    """Return the answer to one GET. Only a server with the token's certificate gets the credential.

    Raises: aiohttp's errors.
    """
    headers = {"Authorization": f"Bearer {credential}"} if credential else {}
    url = f"https://{at}{path}"
    async with session.get(url, headers=headers, ssl=pin, allow_redirects=False, raise_for_status=True) as response:
        return decode_object(await response.read())


async def _tcp(at: Endpoint) -> tuple[str, str]:
    """Return the fault of a plain connection, and its details; ("", "") on success."""
    try:
        if at.ip is None:
            await asyncio.wait_for(addresses(at.host), _TCP_S)
    except asyncio.TimeoutError:
        return UNRESOLVED, f"{NO_SERVER} in {_TCP_S:g} s"
    except OSError as error:
        return UNRESOLVED, error.strerror or str(error)
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(at.host, at.port), _TCP_S)
    except asyncio.TimeoutError:
        return NO_ANSWER, f"for {_TCP_S:g} s"
    except ConnectionRefusedError:
        return REFUSED, ""
    except OSError as error:
        unreachable = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)
        return (NO_ROUTE if error.errno in unreachable else NO_ANSWER), error.strerror or str(error)
    writer.close()
    return "", ""


async def _failure(
    session: aiohttp.ClientSession, result: EndpointFacts, at: Endpoint, certificate: bytes, error: Exception
) -> EndpointFacts:
    if describe_proxy_error(error):
        return replace(result, state=PROXY, detail=describe_proxy_error(error))
    if isinstance(error, aiohttp.ServerFingerprintMismatch):
        subject, issuer = _names(certificate)
        digest = hashlib.sha256(certificate).hexdigest()
        return replace(result, state=OTHER_CERTIFICATE, subject=subject, issuer=issuer, fingerprint=digest)
    if isinstance(error, asyncio.TimeoutError):
        return replace(result, state=PROXY if result.proxy else SILENT, detail=f"no answer in {_EXCHANGE_S:g} s")
    if isinstance(error, aiohttp.ClientResponseError):
        return replace(result, state=UNEXPECTED, detail=f"HTTP {error.status}")
    if isinstance(error, WireError):
        return replace(result, state=UNEXPECTED, detail=error.message)
    state, detail = await _without_tls(session, at, error)
    return replace(result, state=state, detail=detail)


async def _without_tls(session: aiohttp.ClientSession, at: Endpoint, error: Exception) -> tuple[str, str]:
    """Find out what answers at an address where TLS failed."""
    plain = await _plain(session, f"http://{at}/")
    if plain is not None:
        return PLAIN_HTTP, f"{plain.status}{f', to {plain.location}' if plain.location else ''}"
    if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)):
        return NOT_TLS, ""
    return CLOSED, type(error).__name__


def _names(certificate: bytes) -> tuple[str, str]:
    """Return subject and issuer; empty if it is not a certificate."""
    from cryptography import x509

    try:
        parsed = x509.load_der_x509_certificate(certificate)
        return parsed.subject.rfc4514_string()[:200], parsed.issuer.rfc4514_string()[:200]
    except ValueError:
        return "", ""


async def _plain(session: aiohttp.ClientSession, url: str) -> PortalFacts | None:
    """Return the answer of plain HTTP there; None if there is none."""
    try:
        timeout = aiohttp.ClientTimeout(total=_PORTAL_S)
        async with session.get(url, allow_redirects=False, timeout=timeout) as response:
            return PortalFacts(url, response.status, response.headers.get("Location", "")[:200])
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError):
        return None


async def _portal(session: aiohttp.ClientSession, at: Endpoint) -> PortalFacts | None:
    """Return the server that answers for the coordinator's host where browsers ask, such as a captive portal.

    A web server of that host that redirects to itself does not count.
    """
    host = f"[{at.host}]" if ":" in at.host else at.host
    result = await _plain(session, f"http://{host}/")
    if result is not None and result.location and urlsplit(result.location).hostname in (None, at.host):
        return replace(result, location="")
    return result


async def _wait_for_map(context: Context, wanted: int | None) -> tuple[int | None, float]:
    """Return this node's revision once it is the coordinator's, and the seconds that it took."""
    if context.map_of is None or wanted is None:
        return None, 0.0
    began = time.monotonic()
    return await context.map_of(wanted, _MAP_S), round(time.monotonic() - began, 2)


def _revision(answer: Mapping[str, object]) -> int | None:
    revision = answer.get("revision")
    return revision if isinstance(revision, int) and 0 <= revision <= MAX_REVISION else None


async def _upgrade(session: aiohttp.ClientSession, at: Endpoint, fingerprint: bytes) -> str:
    """Open a WebSocket like the agent's, but not as a node; the coordinator closes it at once."""
    try:
        async with session.ws_connect(
            f"https://{at}/v1/agent",
            headers={"Authorization": f"Bearer {_NO_NODE}"},
            ssl=aiohttp.Fingerprint(fingerprint),
            timeout=aiohttp.ClientWSTimeout(ws_close=_PORTAL_S),
        ):
            return ""
    except aiohttp.WSServerHandshakeError as error:
        return f"HTTP {error.status} {error.message}".strip()
    except asyncio.TimeoutError:
        return f"no answer in {_EXCHANGE_S:g} s"
    except (aiohttp.ClientError, OSError) as error:
        return describe_proxy_error(error) or type(error).__name__


async def _tokens(session: aiohttp.ClientSession, at: Endpoint, context: Context) -> tuple[TokenFacts, ...] | None:
    """Return the tokens that are still valid; only the coordinator's own node gets the list."""
    if not context.hosts_coordinator:
        return None
    try:
        answer = await _request(session, at, "/v1/tokens", context.credential, aiohttp.Fingerprint(context.fingerprint))
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError, WireError):
        return None
    listed = answer.get("tokens")
    tokens = [token for token in listed if isinstance(token, Mapping)] if isinstance(listed, list) else []
    found = [_token(token, time.time()) for token in tokens if not token.get("revoked")]
    return tuple(token for token in found if token.uses_left != 0 and (token.left_s is None or token.left_s > 0))


def _token(token: Mapping[str, object], now: float) -> TokenFacts:
    uses, used, expires = token.get("uses"), token.get("used"), token.get("expires")
    left = max(0, uses - used) if isinstance(uses, int) and isinstance(used, int) and uses else None
    return TokenFacts(str(token.get("id", "")), expires - now if isinstance(expires, (int, float)) else None, left)


def _unsigned(context: Context) -> tuple[str, ...]:
    nodes = context.mesh_map.nodes.values() if context.mesh_map is not None else ()
    return tuple(str(node.name) for node in nodes if node.attestation is None and STATIC not in node.roles)


def _versions(context: Context) -> Mapping[str, str]:
    nodes = context.mesh_map.nodes.values() if context.mesh_map is not None else ()
    return {
        str(node.name): node.versions.meshray
        for node in nodes
        if node.online and node.versions.meshray and STATIC not in node.roles
    }
