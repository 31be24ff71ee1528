"""Progress by stage on stderr: live on a terminal, one plain line per stage elsewhere.

with app.progress() as progress:
    progress.stage("overlay", "run", "starting the tunnel")
    progress.stage("overlay", "ok", "kernel WireGuard, 10.99.0.2")
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from meshray.model.printable import escaped

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.spinner import Spinner

    from meshray.runtime.base import Progress

#: state → (the text for users, its colour). The word alone carries the meaning.
_WORDS = {"run": ("…", "cyan"), "ok": ("ok", "green"), "fail": ("FAILED", "red"), "skip": ("skipped", "dim")}


#: The columns of the mark and of a stage's name: the blocks of one command are aligned.
_MARK_WIDTH, _NAME_WIDTH = 3, 13
#: Shorter times are not shown, seconds.
_SHORTEST_S = 0.1


class _Times:
    """The duration of each stage: from its own beginning, else from the end of the previous one."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._began: dict[str, float] = {}
        self._took: dict[str, float] = {}

    def look(self, name: str, state: str) -> str:
        now = time.monotonic()
        if state == "run":
            self._began.setdefault(name, now)
            return ""
        if name not in self._took:
            self._took[name] = now - self._began.get(name, self._last)
            self._last = now
        took = self._took[name]
        return f"{took:.1f} s" if took >= _SHORTEST_S else ""


class PlainProgress:
    """Print one line when a stage begins and one when it ends; repeated states are printed once."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last: dict[str, tuple[str, str]] = {}
        self._times = _Times()

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def stage(self, name: str, state: str, detail: str = "") -> None:
        """Write a line if the state is new."""
        name, detail = escaped(name), escaped(detail)
        if self._last.get(name) == (state, detail):
            return
        self._last[name] = (state, detail)
        word, took = _WORDS.get(state, (state, ""))[0], self._times.look(name, state)
        # A user who stopped reading (`2>&1 | head`) still wants the work to finish.
        with contextlib.suppress(OSError):
            self._stream.write(f"{name}: {word}{' ' + detail if detail else ''}{f' ({took})' if took else ''}\n")
            self._stream.flush()


class LiveProgress:
    """A growing list of stages, with a spinner at the one in progress."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._stages: dict[str, tuple[str, str, str]] = {}
        self._times = _Times()
        self._spinners: dict[str, Spinner] = {}
        self._live: Live = Live(console=Console(file=stream), get_renderable=self._render, refresh_per_second=10)

    def __enter__(self) -> LiveProgress:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:  # The stage in progress is where it ended.
            self._stages.update(
                {name: ("fail", detail, "") for name, (state, detail, _) in self._stages.items() if state == "run"}
            )
        self._live.refresh()
        self._live.stop()

    def stage(self, name: str, state: str, detail: str = "") -> None:
        """Update a stage, which is shown at the next refresh."""
        self._stages[escaped(name)] = (state, escaped(detail), self._times.look(name, state))

    def _render(self) -> RenderableType:
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        # The spaces are part of the texts: releases of rich differ in whether a minimum width includes the padding.
        table = Table.grid()
        for width in (_MARK_WIDTH, _NAME_WIDTH, None):
            table.add_column(min_width=width)
        for name, (state, detail, took) in list(self._stages.items()):
            word, colour = _WORDS.get(state, (state, ""))
            mark: RenderableType = Text(f"{word} ", style=colour)
            if state == "run":  # The spinner is kept, so that it continues from its position.
                mark = self._spinners.setdefault(name, Spinner("dots", style=colour))
            after = "  " if detail and took else ""
            table.add_row(mark, Text(f"{name} "), Text(f"{detail}{after}{took}", style="dim"))
        return table


def open_progress(stream: TextIO, environ: Mapping[str, str]) -> Progress:
    """Return a live display if the stream is a terminal that can move its cursor."""
    if stream.isatty() and environ.get("TERM", "dumb") != "dumb":
        return LiveProgress(stream)
    return PlainProgress(stream)
