"""Read a log from near its end, and follow it, in parts that do not block an event loop.

>>> async for data in read_log(home.logs / "agent.log", lines=100, follow=True): ...
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncGenerator
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO

_READ_BYTES = 64 * 1024
#: The interval at which a followed log is read, seconds.
POLL_S = 0.5
#: The time in a line of a log: as text in local time, in JSON in UTC.
_TIME = re.compile(rb"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:[.,]\d+)?(Z?)")
#: The time is near the start of a line.
_TIME_BYTES = 64


async def read_log(
    path: Path, *, lines: int, since_s: float | None = None, follow: bool = False
) -> AsyncGenerator[bytes, None]:
    """Yield the last lines of a log, and with ``follow`` what is added to it, until the caller stops.

    Args:
        since_s: only from the first line of the last seconds on. Lines without a time belong to the one before.

    Raises:
        OSError: the log cannot be read.
    """
    file = await asyncio.to_thread(_open_at, path, lines, since_s)
    try:
        while True:
            data = await asyncio.to_thread(file.read, _READ_BYTES)
            if data:
                yield data
                continue
            if not follow:
                return
            await asyncio.sleep(POLL_S)
            if _was_replaced(file, path):
                # The rest of the old file precedes the new one.
                if rest := await asyncio.to_thread(file.read):
                    yield rest
                file.close()
                file = await asyncio.to_thread(path.open, "rb")
    finally:
        file.close()


def _open_at(path: Path, lines: int, since_s: float | None) -> BinaryIO:
    file = path.open("rb")
    try:
        start = 0 if since_s is None else _start_of(file, time.time() - since_s)
        file.seek(max(start, _start_of_last(file, lines)))
    except BaseException:
        file.close()
        raise
    return file


def _start_of_last(file: BinaryIO, lines: int) -> int:
    """Return the position of the first of the last lines."""
    end = place = file.seek(0, os.SEEK_END)
    missing, is_last = lines, True
    if not lines:
        return end
    while place:
        size = min(_READ_BYTES, place)
        place = file.seek(place - size)
        block = file.read(size)
        if is_last and block.endswith(b"\n"):
            missing += 1  # This one ends the last line.
        is_last = False
        found = block.count(b"\n")
        if found < missing:
            missing -= found
            continue
        at = len(block)
        for _ in range(missing):
            at = block.rindex(b"\n", 0, at)
        return place + at + 1
    return 0


def _start_of(file: BinaryIO, since: float) -> int:
    """Return the position of the first line from this time on (unix seconds); the end if there is none."""
    place, has_times = file.seek(0), False
    for line in file:
        at = _time_of(line[:_TIME_BYTES])
        if at is not None and at >= since:
            return place
        has_times = has_times or at is not None
        place += len(line)
    # A log without times is as new as its last change.
    return 0 if not has_times and os.fstat(file.fileno()).st_mtime >= since else place


def _time_of(line: bytes) -> float | None:
    found = _TIME.search(line)
    if found is None:
        return None
    try:
        at = datetime.fromisoformat(f"{found[1].decode()}T{found[2].decode()}")
    except ValueError:
        return None
    return (at.replace(tzinfo=timezone.utc) if found[3] else at).timestamp()


def _was_replaced(file: BinaryIO, path: Path) -> bool:
    """Return whether another file has this path now, or this one was truncated."""
    try:
        found, own = path.stat(), os.fstat(file.fileno())
    except FileNotFoundError:
        return False
    return found.st_ino != own.st_ino or own.st_size < file.tell()
