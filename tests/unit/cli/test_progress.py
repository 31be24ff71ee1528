"""Plain lines without a terminal, a live list on a terminal, no colour with NO_COLOR."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from meshray.cli.options import parse_duration, parse_labels
from meshray.cli.progress import LiveProgress, PlainProgress, open_progress
from meshray.cli.tables import age, duration
from meshray.errors import UsageError
from tests.unit.cli.fakes import Terminal


def test_plain_lines_without_repetition() -> None:
    stream = io.StringIO()
    with open_progress(stream, {"TERM": "xterm"}) as progress:
        assert isinstance(progress, PlainProgress)
        for _ in range(2):
            progress.stage("overlay", "run")
        progress.stage("overlay", "ok", "10.99.0.2")
        progress.stage("ray", "fail", "no")
    assert stream.getvalue() == "overlay: …\noverlay: ok 10.99.0.2\nray: FAILED no\n"


@pytest.mark.parametrize("environ", [{}, {"TERM": "dumb"}])
def test_a_dumb_terminal_gets_plain_lines(environ: dict[str, str]) -> None:
    assert isinstance(open_progress(Terminal(), environ), PlainProgress)


@pytest.mark.parametrize("no_colour", [True, False])
def test_live_on_a_terminal(monkeypatch: pytest.MonkeyPatch, no_colour: bool) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    if no_colour:
        monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    with pytest.raises(ZeroDivisionError), open_progress(stream, {"TERM": "xterm-256color"}) as progress:
        assert isinstance(progress, LiveProgress)
        progress.stage("overlay", "ok", "10.99.0.2")
        progress.stage("ray", "run", "starting")
        raise ZeroDivisionError
    shown = stream.getvalue()
    assert "10.99.0.2" in shown
    assert "FAILED" in shown  # The stage in progress when it ended.
    assert ("\x1b[32m" in shown) != no_colour


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("24h", 86400), ("7d", 604800), ("0", 0)])
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "24", "h", "-1h", "1.5h", "9999999999d", "24 h"])
def test_no_durations(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)


def test_labels() -> None:
    assert parse_labels(["zone=lab-2", "a=b=c"]) == {"zone": "lab-2", "a": "b=c"}
    for wrong in ("zone", "=x"):
        with pytest.raises(UsageError):
            parse_labels([wrong])


def test_ages() -> None:
    assert [age(n) for n in (5, -90, -150, 86400, 200000)] == ["in 5 s", "90 s ago", "2 min ago", "in 24 h", "in 2 d"]
    assert [duration(n) for n in (0.0, 24.4, 119.4, 120, 7199)] == ["0 s", "24 s", "119 s", "2 min", "120 min"]


def test_stages_are_aligned_and_show_their_duration(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    plain = PlainProgress(stream := io.StringIO())
    plain.stage("find ray", "run")
    now += 1.24
    plain.stage("find ray", "ok", "Ray 2.60.0")
    plain.stage("agent", "ok")
    assert stream.getvalue() == "find ray: …\nfind ray: ok Ray 2.60.0 (1.2 s)\nagent: ok\n"
    console = Console(file=(shown := io.StringIO()), width=80)
    for stages in (("preflight", "ok", "wireguard-go"), ("ray", "ok", "")):
        live = LiveProgress(io.StringIO())
        now += 3.0
        live.stage(*stages)
        console.print(live._render())
    assert shown.getvalue().splitlines() == ["ok preflight    wireguard-go  3.0 s", "ok ray          3.0 s"]
