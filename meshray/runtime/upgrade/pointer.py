"""The one file that says which version of meshray this node runs: version.json in MESHRAY_HOME.

    (no file) ──begin──► trial ──keep──► kept ──begin──► trial ──…
                           └────give_back──► returned ──begin──► …

Each change replaces the whole file (rename and fsync). A trial that is not kept before its deadline, or before the
machine restarts, counts as given back, whether or not that could be written.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from meshray.home import Home
from meshray.linux.clock import boot_s
from meshray.linux.files import write_atomically

TRIAL, KEPT, RETURNED = "trial", "kept", "returned"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_LONGEST_REASON = 300


class Pointer(msgspec.Struct, frozen=True):
    """The content of the file.

    Attributes:
        state: `TRIAL`, `KEPT` or `RETURNED`.
        python: the interpreter of the version that runs.
        previous: the interpreter of the version before it, which runs again if the trial fails.
        launcher: the interpreter of the installed version, which the unit or the user starts. It reads this file.
        stamp: identifies the launcher's files. Once they were installed again, this file no longer applies.
        version, build: the version that was or is tried.
        boot, deadline_s: the end of the trial, seconds of the boot clock of this boot.
        peers: ids of the nodes to which there was a path before.
        reason: why the trial failed.
    """

    state: str
    python: str
    previous: str
    launcher: str
    stamp: str
    version: str = ""
    build: str = ""
    boot: str = ""
    deadline_s: float = 0.0
    peers: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Moment:
    """A time on the boot clock, which is comparable only within the same boot."""

    boot: str
    seconds: float

    @classmethod
    def now(cls) -> Moment:
        """Return the current time."""
        return cls(_BOOT_ID.read_text().strip(), boot_s())


def is_over(pointer: Pointer, now: Moment) -> bool:
    """Return whether this trial has ended without a result (pure)."""
    return pointer.state == TRIAL and (pointer.boot != now.boot or now.seconds >= pointer.deadline_s)


def read(home: Home) -> Pointer | None:
    """Return the content of the file; None if there is none, or if it is not readable."""
    try:
        return msgspec.json.decode(home.version_pointer.read_bytes(), type=Pointer)
    except (OSError, msgspec.MsgspecError):
        return None


def begin(home: Home, pointer: Pointer) -> None:
    """Begin a trial."""
    with _locked(home):
        _write(home, pointer)


def keep(home: Home) -> bool:
    """End the trial: the new version works. Return False if it was given back meanwhile."""
    with _locked(home):
        pointer = read(home)
        if pointer is None or pointer.state != TRIAL:
            return pointer is not None and pointer.state == KEPT
        _write(home, msgspec.structs.replace(pointer, state=KEPT))
        return True


def give_back(home: Home, reason: str) -> bool:
    """End the trial: the previous version runs again. Return False if there is no trial any more."""
    with _locked(home):
        pointer = read(home)
        if pointer is None or pointer.state != TRIAL:
            return False
        changes = {"state": RETURNED, "python": pointer.previous, "reason": reason[:_LONGEST_REASON]}
        _write(home, msgspec.structs.replace(pointer, **changes))
        return True


def discard(home: Home) -> None:
    """Remove the file: the installed version runs."""
    with _locked(home):
        home.version_pointer.unlink(missing_ok=True)


def _write(home: Home, pointer: Pointer) -> None:
    write_atomically(home.version_pointer, msgspec.json.encode(pointer))


@contextlib.contextmanager
def _locked(home: Home) -> Iterator[None]:
    """Let only one process change the file: the agent keeps and the watchdog gives back at the same moment."""
    with (home.state / ".version.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
