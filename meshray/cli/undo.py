"""Rolling back what a command had begun when it fails or is interrupted.

with Undo(app) as undo:
    make_key()
    undo.add("the key", forget_key)
    enrol()                 # fails: the key is forgotten again
    undo.keep()             # all went well: nothing is undone
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import TracebackType

from meshray.cli.app import App

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Undo:
    """A stack of steps back, taken in reverse where the block does not end well."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._steps: list[tuple[str, Callable[[], object]]] = []
        self._failed: set[str] = set()

    def __enter__(self) -> Undo:
        return self

    def add(self, what: str, step: Callable[[], object]) -> Callable[[], None]:
        """``what`` names in a warning what could not be undone. Returns what drops the step again."""
        entry = (what, step)
        self._steps.append(entry)

        def drop() -> None:
            self._steps.remove(entry)

        return drop

    def has_failed(self, what: str) -> bool:
        """Whether a step of this name could not be undone."""
        return what in self._failed

    def keep(self) -> None:
        """From here on nothing is undone."""
        self._steps.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or not self._steps:
            return
        # Every step is bounded in time. A second Ctrl-C must not leave half of it behind.
        before = {number: signal.signal(number, signal.SIG_IGN) for number in _SIGNALS}
        try:
            for what, step in reversed(self._steps):
                try:
                    step()
                except Exception as failure:  # the first error is the one that matters
                    self._failed.add(what)
                    self._app.warn(f"{what} could not be undone: {failure}")
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
