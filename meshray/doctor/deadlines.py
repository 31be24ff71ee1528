"""How long a probe is waited for, and where it runs: a slow one holds up neither the others nor whoever asks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)

#: Threads are made when they are wanted; one survey wants eight at most. They are the doctor's own: asyncio's few are
#: shared, and waiting for one would look like a slow machine.
_POOL = ThreadPoolExecutor(16, "doctor")


async def in_thread(look: Callable[[], T]) -> T:
    """Runs what blocks; raises what it raises."""
    return await asyncio.get_running_loop().run_in_executor(_POOL, look)


async def in_time(look: Awaitable[T], patience_s: float) -> T | None:
    """What was found; None where it took longer than that, seconds, or the probe failed."""
    try:
        return await asyncio.wait_for(look, patience_s)
    except asyncio.TimeoutError:
        return None
    except Exception:  # the other probes are still worth a look
        log.exception("a probe of the doctor failed")
        return None
