"""Deadlines and threads of probes: a slow probe delays neither the others nor the user."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)


async def in_thread(call: Callable[[], T]) -> T:
    """Run a blocking function in a thread that does not delay the process's exit; raises the function's exception."""
    found: Future[T] = Future()
    found.set_running_or_notify_cancel()

    def run() -> None:
        try:
            found.set_result(call())
        except BaseException as error:
            found.set_exception(error)

    Thread(target=run, name="doctor", daemon=True).start()
    return await asyncio.wrap_future(found)


async def in_time(call: Awaitable[T], timeout_s: float) -> T | None:
    """Return the result; None if it took longer than this, seconds, or the probe failed."""
    try:
        return await asyncio.wait_for(call, timeout_s)
    except asyncio.TimeoutError:
        return None
    except Exception:  # The other probes are still useful.
        log.exception("a probe of the doctor failed")
        return None
