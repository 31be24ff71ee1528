"""Threads of the doctor's own: asyncio's few are shared, and waiting for one would look like a slow machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

#: Threads are made when they are wanted; one survey wants eight at most.
_POOL = ThreadPoolExecutor(16, "doctor")


async def in_thread(look: Callable[[], T]) -> T:
    """Runs what blocks; raises what it raises."""
    return await asyncio.get_running_loop().run_in_executor(_POOL, look)
