"""The parts of a log that a user asks for."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from meshray.node import log_reader
from meshray.node.log_reader import read_log


async def text_of(path: Path, lines: int = 10_000_000, since_s: float | None = None) -> str:
    return b"".join([data async for data in read_log(path, lines=lines, since_s=since_s)]).decode()


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("block", [1, 7, 64 * 1024])
async def test_the_last_lines_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, block: int) -> None:
    monkeypatch.setattr(log_reader, "_READ_BYTES", block)
    path = tmp_path / "agent.log"
    await asyncio.to_thread(path.write_text, "\n".join(f"line {n}" for n in range(50)) + end)
    assert await text_of(path, 1) == "line 49" + end
    assert await text_of(path, 3) == "line 47\nline 48\nline 49" + end
    assert (await text_of(path, 50)).startswith("line 0\n")
    assert (await text_of(path, 1000)).startswith("line 0\n")
    assert await text_of(path, 0) == ""


async def test_an_empty_log_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "agent.log"
    await asyncio.to_thread(path.write_text, "")
    assert await text_of(path, 5) == ""
    await asyncio.to_thread(path.write_text, "\n\n\n")
    assert await text_of(path, 2) == "\n\n"


async def test_lines_without_a_time_belong_to_the_one_before(tmp_path: Path) -> None:
    path, now = tmp_path / "agent.log", time.time()

    def at(ago_s: float) -> str:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now - ago_s))

    old = f"{at(7200)},123 ERROR it failed\nTraceback\n"
    new = f"{at(60)},001 ERROR it failed again\nTraceback\n{at(5)},001 INFO fine\n"
    await asyncio.to_thread(path.write_text, old + new)
    assert await text_of(path, since_s=600) == new
    assert await text_of(path, since_s=86400) == old + new
    assert await text_of(path, since_s=1) == ""
    assert await text_of(path, 1, since_s=600) == f"{at(5)},001 INFO fine\n"


async def test_times_in_json_are_utc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        line = '{"time": "%s.250Z", "message": "x"}\n'
        old, new = (line % time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() - ago_s)) for ago_s in (7200, 60))
        path = tmp_path / "agent.log"
        await asyncio.to_thread(path.write_text, old + new)
        assert await text_of(path, since_s=600) == new
    finally:
        monkeypatch.undo()
        time.tzset()


async def test_a_log_without_times_is_as_new_as_its_last_change(tmp_path: Path) -> None:
    path = tmp_path / "ray.log"
    await asyncio.to_thread(path.write_text, "Ray started\n")
    assert await text_of(path, since_s=600) == "Ray started\n"
    os.utime(path, (time.time() - 7200, time.time() - 7200))
    assert await text_of(path, since_s=600) == ""


async def test_a_followed_log_continues_after_its_rotation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_reader, "POLL_S", 0.001)
    path = tmp_path / "agent.log"
    await asyncio.to_thread(path.write_text, "one\n")
    output = read_log(path, lines=10, follow=True)
    assert await anext(output) == b"one\n"

    def rotate() -> None:
        with path.open("a") as file:
            file.write("two\n")
        path.rename(tmp_path / "agent.log.1")
        path.write_text("three\n")

    await asyncio.to_thread(rotate)
    found = b""
    while len(found) < len(b"two\nthree\n"):
        found += await anext(output)
    assert found == b"two\nthree\n"
    await output.aclose()
