"""Try all addresses of the coordinator at once, and report the result of each.

>>> await race(endpoints, connect, stagger_s=0.3)
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from meshray.client.https_proxy import describe_proxy_error, proxy_error, proxy_for, unusable_proxy
from meshray.errors import MeshrayError, RefusedError, UnreachableError
from meshray.model.address import Endpoint

#: The timeout of TCP and TLS to one address, seconds. A dropping firewall never answers.
CONNECT_TIMEOUT_S = 5.0

_OTHER_CERTIFICATE = "another certificate answered"

T = TypeVar("T")


class TimedOutError(UnreachableError):
    """No address answered, and at least one of them neither refused nor was unreachable: its machine may be busy."""


class ComeAgainError(UnreachableError):
    """The coordinator answered that too many agents connect at the same time.

    Attributes:
        after_s: the time until the next attempt, seconds.
    """

    def __init__(self, after_s: float) -> None:
        super().__init__(
            "coordinator_busy",
            f"too many agents connect to the coordinator at the same time; it answers again in {after_s:.0f} s",
            hint="retry; on the head: meshray status",
        )
        self.after_s = after_s


async def race(
    endpoints: Sequence[Endpoint],
    attempt: Callable[[Endpoint], Awaitable[T]],
    *,
    stagger_s: float = 0.0,
    timeout_s: float = CONNECT_TIMEOUT_S,
    waited_s: float = 0.0,
    discard: Callable[[T], Awaitable[None]] | None = None,
) -> T:
    """Return the result of the first successful attempt, and cancel the others.

    Args:
        stagger_s: the head start of each endpoint over the next one, seconds, which saves attempts if the first works.
        timeout_s: the timeout of each attempt, seconds.
        waited_s: the time of earlier rounds without an answer, for the message.
        discard: closes what another attempt opened at the same moment as the winner.

    Raises:
        RefusedError, ComeAgainError: an attempt was refused (another address of the same coordinator would refuse it
            too).
        TimedOutError: no attempt succeeded, and at least one timed out.
        UnreachableError: all attempts failed; the message lists every endpoint with its result.
    """

    async def late(endpoint: Endpoint, delay_s: float) -> T:
        await asyncio.sleep(delay_s)
        return await asyncio.wait_for(attempt(endpoint), timeout_s)

    loop = asyncio.get_running_loop()
    attempts = {loop.create_task(late(endpoint, n * stagger_s)): endpoint for n, endpoint in enumerate(endpoints)}
    try:
        winner, failures = await _first(attempts)
        await _end_others(attempts, winner, discard)
    except BaseException:
        # After a cancellation at any moment nobody takes the winner's result either.
        await _end_others(attempts, None, discard)
        raise
    if winner is not None:
        return winner.result()
    raise _unreachable(endpoints, failures, waited_s + timeout_s)


async def _first(
    attempts: Mapping[asyncio.Task[T], Endpoint],
) -> tuple[asyncio.Task[T] | None, dict[Endpoint, Exception]]:
    """Return the first successful task, or None, and the failures at the other addresses. Raises a refusal."""
    failures: dict[Endpoint, Exception] = {}
    pending = set(attempts)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            error = task.exception()
            if error is None:
                return task, failures
            if isinstance(error, RefusedError | ComeAgainError) or not isinstance(error, Exception):
                raise error
            failures[attempts[task]] = error
    return None, failures


async def _end_others(
    attempts: Mapping[asyncio.Task[T], Endpoint],
    winner: asyncio.Task[T] | None,
    discard: Callable[[T], Awaitable[None]] | None,
) -> None:
    for task in attempts:
        task.cancel()
    results = await asyncio.gather(*attempts, return_exceptions=True)
    for task, result in zip(attempts, results, strict=True):
        if discard is not None and task is not winner and not isinstance(result, BaseException):
            await discard(result)


def _unreachable(
    endpoints: Sequence[Endpoint], failures: Mapping[Endpoint, Exception], waited_s: float
) -> MeshrayError:
    causes = {endpoint: describe(error, waited_s) for endpoint, error in failures.items()}
    tried = "; ".join(f"{endpoint}: {causes[endpoint]}{_through(endpoint)}" for endpoint in endpoints)
    if _OTHER_CERTIFICATE in causes.values():
        return RefusedError(
            "token_other_mesh",
            f"not the coordinator that this token is for ({tried})",
            hint="make a new token on the head: meshray token create",
        )
    for endpoint, error in failures.items():
        if describe_proxy_error(error):
            return proxy_error(endpoint, error)
    port = endpoints[0].port if endpoints else "of the mesh"
    details = tried or "no address is known"
    hint = f"on the head: is it up (meshray status), and is TCP port {port} open in its firewall?"
    if other := unusable_proxy(os.environ):
        details, hint = f"{details}; {other}", "HTTPS_PROXY=http://HOST:PORT, if this network needs a proxy"
    is_silent = any(isinstance(error, asyncio.TimeoutError) for error in failures.values())
    kind = TimedOutError if is_silent else UnreachableError
    return kind("coordinator_unreachable", f"the coordinator does not answer ({details})", hint=hint)


def _through(endpoint: Endpoint) -> str:
    proxy = proxy_for(endpoint)
    return f", through the proxy {proxy}" if proxy else ""


def describe(error: Exception, waited_s: float = CONNECT_TIMEOUT_S) -> str:
    """Describe the failure at one address in a few words. ``waited_s`` is the time after which it timed out."""
    import aiohttp

    phrases: list[tuple[type[Exception], str]] = [
        (aiohttp.ServerFingerprintMismatch, _OTHER_CERTIFICATE),
        (asyncio.TimeoutError, f"no answer in {waited_s:.0f} s"),
        (aiohttp.ClientConnectorDNSError, "the name does not resolve"),
        (aiohttp.ClientSSLError, "the server at this address does not use TLS"),
        (aiohttp.ServerDisconnectedError, "it closed the connection"),
    ]
    for kind, phrase in phrases:
        if isinstance(error, kind):
            return phrase
    if isinstance(error, aiohttp.ClientConnectorError):
        return os.strerror(error.os_error.errno).lower() if error.os_error.errno else "no connection"
    if isinstance(error, aiohttp.ClientResponseError):
        return f"HTTP {error.status}"
    return getattr(error, "message", "") or type(error).__name__
