"""Levels and formats of log lines, and their destinations besides the file."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pty
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshray.agent.connection.coordinator_process import CoordinatorProcess
from meshray.errors import UsageError
from meshray.home import Home
from meshray.runtime import agent_service, log_format, log_output
from meshray.runtime.log_output import DescriptorHandler, find_listener, given_descriptor

EVIL = "\x1b[2J\r\nforged\u202e"
JSON = {"MESHRAY_LOG_FORMAT": "json"}


def record(message: str, level: int = logging.ERROR, *, failed: bool = False) -> logging.LogRecord:
    try:
        raise ValueError(EVIL)
    except ValueError:
        info = sys.exc_info() if failed else None
    return logging.LogRecord("meshray.agent.agent", level, __file__, 1, "node %s", (message,), info)


@pytest.fixture
def levels() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("meshray")
    before, handlers = (root.level, ours.level), list(root.handlers)
    yield
    root.setLevel(before[0])
    ours.setLevel(before[1])
    root.handlers[:] = handlers


def test_json_is_one_ascii_object_a_line() -> None:
    line = log_format.formatter(JSON).format(record(EVIL, failed=True))
    assert line.isascii()
    assert line.isprintable()
    found = json.loads(line)
    assert found.keys() == {"time", "level", "logger", "message", "exception"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found["time"])
    assert (found["level"], found["logger"], found["message"]) == ("error", "meshray.agent.agent", "node " + EVIL)
    assert found["exception"].startswith("Traceback")
    assert "exception" not in json.loads(log_format.formatter(JSON).format(record("x")))


def test_the_time_is_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = record("x")
    entry.created, entry.msecs = 1_700_000_000.25, 250.0
    assert json.loads(log_format.formatter(JSON).format(entry))["time"] == "2023-11-14T22:13:20.250Z"


def test_the_journal_gets_priorities_and_no_second_timestamp() -> None:
    lines = log_format.formatter({}, journal=True).format(record(EVIL, failed=True)).splitlines()
    assert lines[0] == "<3>node \\x1b[2J\\r\\nforged\\u202e"
    assert all(line.startswith("<3>") for line in lines)
    assert log_format.formatter({}, journal=True).format(record("x", logging.INFO)) == "<6>node x"


@pytest.mark.parametrize(("said", "ours", "others"), [("debug", 10, 20), ("info", 20, 20), ("WARNING", 30, 30)])
def test_debug_is_for_meshray_alone(levels: None, said: str, ours: int, others: int) -> None:
    """pyroute2 would log netlink messages, and keys are in them."""
    log_format.set_levels({"MESHRAY_LOG": said})
    assert logging.getLogger("meshray.agent").getEffectiveLevel() == ours
    assert logging.getLogger("pyroute2").getEffectiveLevel() == others


@pytest.mark.parametrize("environ", [{"MESHRAY_LOG": "loud"}, {"MESHRAY_LOG_FORMAT": "xml"}])
def test_another_word_is_refused_before_anything_is_begun(environ: dict[str, str]) -> None:
    ((name, value),) = environ.items()
    with pytest.raises(UsageError, match=f"{name} is '{value}'"):
        agent_service.require_valid(environ)


def test_the_settings_go_into_the_unit() -> None:
    environ = {"MESHRAY_LOG": "debug", "MESHRAY_LOG_FORMAT": "json"}
    assert agent_service.passed_on(environ) == environ


def test_the_last_error_is_found_in_either_form(tmp_path: Path) -> None:
    home = Home(tmp_path, tmp_path / "run")
    home.logs.mkdir()
    lines = [log_format.formatter(JSON).format(entry) for entry in (record("full"), record("y", logging.INFO))]
    (home.logs / "agent.log").write_text("\n".join(lines) + "\n")
    assert agent_service.last_logged_error(home) == "node full"
    (home.logs / "agent.log").write_text(log_format.formatter({}).format(record("full")) + "\n{not json\n")
    assert agent_service.last_logged_error(home).endswith("ERROR node full")


def listener_of(stderr: int, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> int | None:
    class Stream:
        def fileno(self) -> int:
            return stderr

    monkeypatch.setattr(log_output.sys, "stderr", Stream())  # type: ignore[attr-defined]
    found = find_listener(environ)
    if found is not None:
        os.close(found)
    return found


def test_the_listening_processes_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reading, pipe = os.pipe()
    one, other = socket.socketpair()
    about = os.fstat(one.fileno())
    journal = {"JOURNAL_STREAM": f"{about.st_dev}:{about.st_ino}"}
    leader, terminal = pty.openpty()
    with (tmp_path / "file").open("w") as file, one, other:
        assert listener_of(pipe, {}, monkeypatch) is not None
        assert listener_of(one.fileno(), journal, monkeypatch) is not None
        # The variable is inherited by programs whose standard error is something else by then.
        assert listener_of(one.fileno(), {"JOURNAL_STREAM": "1:1"}, monkeypatch) is None
        assert listener_of(file.fileno(), {}, monkeypatch) is None
        assert listener_of(terminal, {}, monkeypatch) is None
    for descriptor in (reading, pipe, leader, terminal):
        os.close(descriptor)


def test_a_stalled_reader_does_not_block_others() -> None:
    reading, writing = os.pipe()
    handler = DescriptorHandler(writing)
    handler.setFormatter(log_format.formatter(JSON))
    for _ in range(100):
        handler.emit(record("x" * 3000))
    read = os.read(reading, 1 << 20)
    handler.emit(record("again"))
    lines = (read + os.read(reading, 1 << 20)).decode().splitlines()
    messages = [json.loads(line)["message"] for line in lines if line.endswith("}")]
    dropped = [message for message in messages if "were dropped" in message]
    assert len(dropped) == 1
    assert int(dropped[0].split()[0]) > 50
    assert messages[-1] == "node again"
    os.close(reading)
    handler.emit(record("nobody there"))
    os.close(writing)


def test_the_coordinator_logs_where_its_agent_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A coordinator without a store ends with an error; what is logged before reaches the agent's pipe as JSON."""
    reading, writing = os.pipe()
    listeners = [writing]
    monkeypatch.setattr("meshray.agent.connection.coordinator_process.find_listener", lambda environ: listeners.pop())
    started: list[dict[str, object]] = []
    process = CoordinatorProcess(Home(tmp_path, tmp_path / "run"), 51888)

    def spawn(argv: list[str], **given: object) -> None:
        started.append(given)
        raise asyncio.CancelledError

    monkeypatch.setattr(process._process, "spawn", spawn)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(process.run())
    environ = started[0]["env"]
    assert isinstance(environ, dict)
    assert (environ["MESHRAY_LOG_FD"], started[0]["keep"]) == (str(writing), (writing,))
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(writing)  # The agent keeps no end of it.
    os.close(reading)
    assert given_descriptor({"MESHRAY_LOG_FD": "987654"}) is None
    assert given_descriptor({"MESHRAY_LOG_FD": "-1"}) is None
    assert given_descriptor({}) is None


def test_a_process_logs_to_both(tmp_path: Path) -> None:
    program = (
        "import logging, os, sys\n"
        "from meshray.runtime.log_output import given_descriptor, start_logging\n"
        "start_logging(logging.FileHandler(sys.argv[1]), os.environ, given_descriptor(os.environ))\n"
        "logging.getLogger('meshray.x').debug('one')\n"
        "logging.getLogger('other').debug('two')\n"
    )
    reading, writing = os.pipe()
    environ = {**os.environ, **JSON, "MESHRAY_LOG": "debug", "MESHRAY_LOG_FD": str(writing)}
    words = [sys.executable, "-c", program, str(tmp_path / "log")]
    subprocess.run(words, env=environ, pass_fds=[writing], check=True, timeout=20)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        lines = pipe.read().splitlines()
    assert [json.loads(line)["message"] for line in lines] == ["one"]
    assert (tmp_path / "log").read_text().splitlines() == lines
