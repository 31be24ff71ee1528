"""How long a probe is waited for, and where it runs: a slow one holds up neither the others nor whoever asks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)


async def in_thread(look: Callable[[], T]) -> T:
    """Run what blocks in a thread of its own, which does not hold up the end of the process; raises what it raises."""
    found: Future[T] = Future()
    found.set_running_or_notify_cancel()

    def run() -> None:
        try:
            found.set_result(look())
        except BaseException as error:
            found.set_exception(error)

    Thread(target=run, name="doctor", daemon=True).start()
    return await asyncio.wrap_future(found)


async def in_time(look: Awaitable[T], patience_s: float) -> T | None:
    """What was found; None where it took longer than that, seconds, or the probe failed."""
    try:
        return await asyncio.wait_for(look, patience_s)
    except asyncio.TimeoutError:
        return None
    except Exception:  # the other probes are still worth a look
        log.exception("a probe of the doctor failed")
        return None
