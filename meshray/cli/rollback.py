"""Roll back the changes of a command that fails or is interrupted.

with Rollback(app) as rollback:
    make_key()
    rollback.add("the key", forget_key)
    enrol()             # if this fails, the key is deleted again
    rollback.keep()     # success: nothing is rolled back
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import TracebackType

from meshray.cli.app import App

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Rollback:
    """A stack of rollback steps, which run in reverse order if the block fails."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._steps: list[tuple[str, Callable[[], object]]] = []
        self._failed: set[str] = set()

    def __enter__(self) -> Rollback:
        return self

    def add(self, what: str, step: Callable[[], object]) -> Callable[[], None]:
        """Add a step. ``what`` names it in the warning if it fails. Returns a function that drops the step again."""
        entry = (what, step)
        self._steps.append(entry)

        def drop() -> None:
            self._steps.remove(entry)

        return drop

    def has_failed(self, what: str) -> bool:
        """Return whether a step of this name has failed."""
        return what in self._failed

    def keep(self) -> None:
        """Keep all changes: from now on nothing is rolled back."""
        self._steps.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or not self._steps:
            return
        # Every step has a time limit. A second Ctrl-C must not leave the rollback incomplete.
        before = {number: signal.signal(number, signal.SIG_IGN) for number in _SIGNALS}
        try:
            for what, step in reversed(self._steps):
                try:
                    step()
                except Exception as failure:  # The first error is the one that matters.
                    self._failed.add(what)
                    self._app.warn(f"{what} could not be undone: {failure}")
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
