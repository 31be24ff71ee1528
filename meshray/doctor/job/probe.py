"""Run the Ray program of ``doctor --deep`` (`program`) in the interpreter of this node's Ray.

>>> move_between_all(python, environ, None, {"10.99.0.1": "head", "10.99.0.2": "gpu-1"}, soak=False, report=print)
DeepFacts(soak=False, skipped='', error='', steps=(Step(...), ...))
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import msgspec

from meshray.doctor.job import transfer_program
from meshray.doctor.job.facts import SOAK_S, DeepFacts, Step
from meshray.linux.user import User
from meshray.protocol.codec import WireError, decode

#: The time until the program is in the cluster, seconds: it imports Ray and asks the GCS.
_START_S = 60.0


class _Event(msgspec.Struct):
    """One line of the program: ``task``, ``move``, ``wait`` or ``done``; empty: a line of Ray."""

    step: str = ""
    again: bool = False
    source: str = ""
    target: str = ""
    seconds: int | float = 0.0
    error: str = ""


def move_between_all(
    python: Path,
    environ: Mapping[str, str],
    user: User | None,
    nodes: Mapping[str, str],
    *,
    soak: bool,
    report: Callable[[str], None],
    wrap: Callable[[list[str]], list[str]] = list,
) -> DeepFacts:
    """Run a task on every node and move data between every ordered pair; with ``soak`` once more after `SOAK_S`.

    Returns within a bounded time, which grows with the number of nodes; everything that it started has ended then.

    Args:
        python: the interpreter of this node's Ray.
        environ: the environment of a driver on this node; see `meshray.raynode.command.client_environment`.
        user: the user to run it as, if it is not the current one.
        nodes: the names of the nodes on which Ray should run, by their overlay addresses.
        wrap: the prefix that runs a command where this node's Ray is.
        report: called with a line for every step.
    """
    pause_s = SOAK_S if soak else 0
    order = {"nodes": dict(nodes), "again_after_s": pause_s}
    command = wrap([str(python), "-", json.dumps(order)])
    rounds = (
        transfer_program.DETECTION_S
        + transfer_program.TASK_S
        + len(nodes) * (transfer_program.MOVE_S + transfer_program.ANSWER_S)
    )
    deadline_s = _START_S + rounds * (2 if soak else 1) + pause_s
    steps: list[Step] = []
    done = False
    with tempfile.TemporaryFile() as errors:
        try:
            with _running(command, environ, user, errors, deadline_s) as process:
                for line in process.stdout or ():
                    event = _event(line)
                    done = done or event.step == "done"
                    _report(event, report)
                    if event.step in ("task", "move"):
                        steps.append(Step(event.again, event.source, event.target, event.seconds, event.error))
                    if event.step == "wait" and any(step.error for step in steps):
                        # What fails now needs no second round.
                        done = True
                        break
        except OSError as error:
            return DeepFacts(soak, error=f"{python}: {error.strerror}")
        return DeepFacts(soak, error="" if done else _last_line(errors, deadline_s), steps=tuple(steps))


@contextlib.contextmanager
def _running(
    command: Sequence[str], environ: Mapping[str, str], user: User | None, errors: IO[bytes], deadline_s: float
) -> Iterator[subprocess.Popen[bytes]]:
    identity = {} if user is None else {"user": user.uid, "group": user.gid, "extra_groups": list(user.groups)}
    with Path(transfer_program.__file__).open("rb") as program:
        process = subprocess.Popen(
            list(command),
            cwd="/",
            env=dict(environ),
            stdin=program,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
            **identity,  # type: ignore[call-overload]
        )
    out_of_time = threading.Timer(deadline_s, _end, (process,))
    out_of_time.start()
    try:
        yield process
    finally:
        out_of_time.cancel()
        _end(process)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the program if it still runs; Ray ends the tasks and objects of a driver that is gone."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _event(line: bytes) -> _Event:
    try:
        return decode(line, _Event)
    except WireError:  # Ray writes its own messages to standard output.
        return _Event()


def _report(event: _Event, report: Callable[[str], None]) -> None:
    result = event.error or "ok"
    if event.step == "task":
        report(f"task on {event.target}: {result}")
    elif event.step == "move":
        report(f"data from {event.source} to {event.target}: {result} ({event.seconds} s)")
    elif event.step == "wait":
        report(f"again in {event.seconds} s")


def _last_line(errors: IO[bytes], deadline_s: float) -> str:
    errors.seek(0)
    lines = [line for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else f"it printed nothing for {deadline_s:.0f} s, or was killed"
