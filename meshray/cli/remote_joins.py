"""`meshray node add --from`: run `meshray join` on many machines, some at a time.

file ──► machine_list ──► remote_join.add_node per machine, in threads ──► one line each, a summary, an exit code

A machine that fails does not stop the others. The command can be repeated: `join` on a machine that is a node already
brings it up and answers so.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from meshray.cli.app import App
from meshray.cli.join_result import JoinResult
from meshray.cli.result import Result
from meshray.cli.tables import Paint, columns, plain
from meshray.cli.user_file import read_as_user
from meshray.errors import MeshrayError, UnreachableError, UsageError
from meshray.model.amounts import counted
from meshray.protocol.node_answers import AddedMachine, MachineError, NodeAddFrom

if TYPE_CHECKING:
    from meshray.cli.lock_file import LockFile
    from meshray.cli.machine_list import Machine, MachineList
    from meshray.runtime.base import Progress

#: ssh cannot ask for passwords of several machines at a time.
_OPTIONS = ("-o", "BatchMode=yes")
#: A join that lost its connection still runs there, and ends when the network is back: the pauses until it is tried
#: again, seconds.
_BUSY_S = (2.0, 4.0, 8.0, 16.0, 30.0, 60.0)
#: A coordinator or an agent that does not answer may be busy with the other machines: the pause until such a machine is
#: tried once more, seconds.
_UNANSWERED_S = (10.0,)
#: The longest file that is read, characters.
_LONGEST = 4 * 1024 * 1024


@dataclass(frozen=True)
class AddedFromResult(Result[NodeAddFrom]):
    """``node add --from``."""

    @property
    def exit_code(self) -> int:
        """1 if a machine could not be added."""
        return MeshrayError.exit_code if self.answer.failed else 0

    def text(self, paint: Paint = plain) -> str:
        """Return one line per machine, the causes of what failed, and the summary."""
        rows = [("MACHINE", "RESULT", "NODE", "IP", "TOOK")]
        causes = []
        for machine in self.answer.machines:
            node = (machine.node.name, machine.node.ip) if machine.node is not None else ("-", "-")
            rows.append((machine.machine, machine.done, *node, f"{machine.took_s:.1f} s" if machine.took_s else "-"))
            if machine.error is not None:
                causes.append(f"{machine.machine}: {machine.error.message}")
                causes += [f"  hint: {machine.error.hint}"] if machine.error.hint else []
        colours = {"failed": "red", "added": "green"}
        table = columns(rows, lambda row, column: colours.get(rows[row][1], "") if column == 1 else "", paint)
        summary = f"{counted(self.answer.added, 'node')} added, {self.answer.already} already in the mesh"
        summary += f", {self.answer.failed} failed" if self.answer.failed else ""
        repeat = ["The same command again adds the rest."] if self.answer.failed else []
        return "\n".join([table, *causes, summary, *repeat])


@dataclass(frozen=True)
class JoinOptions:
    """What is the same for all machines.

    Attributes:
        program: the name or path of meshray there.
        options: the options of `meshray join` there.
        ray: the arguments after ``--`` there.
        parallel: the number of machines at a time.
    """

    program: str
    options: tuple[str, ...] = ()
    ray: tuple[str, ...] = ()
    parallel: int = 8
    lock: LockFile | None = None


def read_list(app: App, file: str, groups: Sequence[str]) -> MachineList:
    """Read the file as the user who typed the command.

    Raises:
        UsageError: ``file_unreadable``, and as `parse_list`.
    """
    from meshray.cli.machine_list import parse_list

    try:
        text = read_as_user(file, app.environ, _LONGEST)
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(
            "file_unreadable", f"{file} cannot be read: {cause}", hint="--from hosts.ini, or a cluster file"
        ) from None
    return parse_list(file, text, groups=groups, folder=Path.cwd())


def add_machines(app: App, found: MachineList, options: JoinOptions) -> AddedFromResult:
    """Add all machines of the list, and return the result of each.

    Raises:
        MeshrayError: this machine cannot create tokens, so that no machine could join.
    """
    app.api("GET", "/v1/tokens")  # One error instead of the same one for each machine.
    for note in found.notes:
        app.warn(note)
    results = {label: AddedMachine(label, "head") for label in found.heads}
    with app.progress() as progress:
        for label, fault in found.faults.items():
            progress.stage(label, "fail", fault.message)
        results |= _added(app, progress, found.machines, options)
    results |= {label: AddedMachine(label, "failed", error=_reported(fault)) for label, fault in found.faults.items()}
    counts = {done: sum(result.done == done for result in results.values()) for done in ("added", "already", "failed")}
    return AddedFromResult(NodeAddFrom(tuple(results.values()), **counts))


def _added(app: App, progress: Progress, machines: Sequence[Machine], options: JoinOptions) -> dict[str, AddedMachine]:
    """Return the results in the order of the machines, after all have ended."""
    results: dict[str, AddedMachine] = {}
    with _Connections().until_done(options.parallel) as (connections, pool):
        pending: set[Future[AddedMachine]] = {
            pool.submit(_add, app, machine, options, connections, progress.stage) for machine in machines
        }
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for result in (future.result() for future in done):
                results[result.machine] = result
                if result.error is not None:
                    progress.stage(result.machine, "fail", result.error.message)
                elif result.node is not None:
                    before = ", was in the mesh" if result.done == "already" else ""
                    progress.stage(result.machine, "ok", f"{result.node.name}, {result.node.ip}{before}")
    return {machine.label: results[machine.label] for machine in machines}


def _add(
    app: App, machine: Machine, options: JoinOptions, connections: _Connections, stage: Callable[[str, str, str], None]
) -> AddedMachine:
    from meshray.cli.remote_join import SshLink, add_node

    stage(machine.label, "run", str(machine.target))

    def on_line(line: str) -> None:
        if app.stderr.isatty():  # Elsewhere every line would be kept.
            stage(machine.label, "run", line)

    link = SshLink(on_line, _OPTIONS, connections.add)
    words = [*(("--name", machine.name) if machine.name else ()), *options.options]
    began = time.monotonic()
    busy, unanswered = iter(_BUSY_S), iter(_UNANSWERED_S)
    while True:
        try:
            joined: JoinResult = add_node(
                app, machine.target, options.program, words, options.ray, lock=options.lock, link=link
            )
        except MeshrayError as error:
            pause_s, why = None, ""
            if error.code == "busy":
                pause_s, why = next(busy, None), "waits for the other meshray command there to end"
            elif isinstance(error, UnreachableError) and error.code != "ssh_failed":
                pause_s, why = next(unanswered, None), f"tries once more: {error.message}"
            if pause_s is not None:
                stage(machine.label, "run", why)
                if not connections.ended.wait(pause_s):
                    continue
            took_s = round(time.monotonic() - began, 1)
            return AddedMachine(machine.label, "failed", error=_reported(error), took_s=took_s)
        done = "added" if joined.fresh else "already"
        return AddedMachine(machine.label, done, joined.answer.node, took_s=round(time.monotonic() - began, 1))


def _reported(error: MeshrayError) -> MachineError:
    return MachineError(error.code, error.message, error.hint)


@dataclass
class _Connections:
    """The running processes of ssh, which end with this command.

    Attributes:
        ended: set when the command is interrupted.
    """

    ended: threading.Event = field(default_factory=threading.Event)
    _processes: list[subprocess.Popen[str]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, process: subprocess.Popen[str]) -> None:
        """Remember a process; end it at once if the command was interrupted."""
        with self._lock:
            self._processes.append(process)
            if self.ended.is_set():
                process.terminate()

    @contextmanager
    def until_done(self, parallel: int) -> Iterator[tuple[_Connections, ThreadPoolExecutor]]:
        """Provide threads; if the block is interrupted, begin nothing more and end what runs."""
        pool = ThreadPoolExecutor(parallel, thread_name_prefix="node-add")
        try:
            yield self, pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            with self._lock:
                self.ended.set()
                for process in self._processes:
                    process.terminate()
            raise
        finally:
            pool.shutdown(wait=True)
