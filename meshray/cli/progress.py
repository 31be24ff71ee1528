"""Progress by stage on stderr: live on a terminal, one plain line a stage elsewhere.

with app.progress() as progress:
    progress.stage("overlay", "run", "starting the tunnel")
    progress.stage("overlay", "ok", "kernel WireGuard, 10.99.0.2")
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TextIO

from meshray.model.printable import escaped

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.spinner import Spinner

#: state → (what a person sees, colour of it). The word alone carries the meaning.
_WORDS = {"run": ("…", "cyan"), "ok": ("ok", "green"), "fail": ("FAILED", "red"), "skip": ("skipped", "dim")}


class Progress(Protocol):
    """Told of every stage; a context manager."""

    def __enter__(self) -> Progress: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def stage(self, name: str, state: str, detail: str = "") -> None:
        """``state`` is run, ok, fail or skip."""


class PlainProgress:
    """One line when a stage begins and one when it ends; repeated news is not repeated."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last: dict[str, tuple[str, str]] = {}

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def stage(self, name: str, state: str, detail: str = "") -> None:
        """Writes a line where there is news."""
        name, detail = escaped(name), escaped(detail)
        if self._last.get(name) == (state, detail):
            return
        self._last[name] = (state, detail)
        word = _WORDS.get(state, (state, ""))[0]
        # Whoever stopped reading (`2>&1 | head`) still wants the work done.
        with contextlib.suppress(OSError):
            self._stream.write(f"{name}: {word}{' ' + detail if detail else ''}\n")
            self._stream.flush()


class LiveProgress:
    """A growing list of stages with a spinner at the one that is at work."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._stages: dict[str, tuple[str, str]] = {}
        self._spinners: dict[str, Spinner] = {}
        self._live: Live = Live(console=Console(file=stream), get_renderable=self._render, refresh_per_second=10)

    def __enter__(self) -> LiveProgress:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:  # what was at work when it ended is where it ended
            self._stages.update(
                {name: ("fail", detail) for name, (state, detail) in self._stages.items() if state == "run"}
            )
        self._live.refresh()
        self._live.stop()

    def stage(self, name: str, state: str, detail: str = "") -> None:
        """Shown at the next refresh."""
        self._stages[escaped(name)] = (state, escaped(detail))

    def _render(self) -> RenderableType:
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1))
        for name, (state, detail) in list(self._stages.items()):
            word, colour = _WORDS.get(state, (state, ""))
            mark: RenderableType = Text(word, style=colour)
            if state == "run":  # kept, so that it goes on turning where it was
                mark = self._spinners.setdefault(name, Spinner("dots", style=colour))
            table.add_row(mark, Text(name), Text(detail, style="dim"))
        return table


def open_progress(stream: TextIO, environ: Mapping[str, str]) -> Progress:
    """Live where the stream is a terminal that can move its cursor."""
    if stream.isatty() and environ.get("TERM", "dumb") != "dumb":
        return LiveProgress(stream)
    return PlainProgress(stream)
