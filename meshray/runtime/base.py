"""Where a node lives: directly on this machine, in namespaces without root, or in a container.

`meshray.runtime.selection` chooses. A runtime in which this very meshray runs the agent is an `AgentRuntime`. Any other
has a `Container` with a meshray of its own, in which commands about the node run.

>>> runtime_of(home, environ).up(Command(["up", "--json"], run=start_node), console)
{'mesh': 'lab', 'node': {'name': 'gpu-1', 'ip': '10.99.0.2'}, …}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

#: The fields that a command answers with --json, without the schema.
Answer = Mapping[str, object]
#: Takes what a command in a container writes.
Sink = Callable[[bytes], object]


class Progress(Protocol):
    """Shows stages; a context manager."""

    def __enter__(self) -> Progress: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def stage(self, name: str, state: str, detail: str = "") -> None:
        """``state`` is run, ok, fail or skip."""


class Console(Protocol):
    """The user at the command line."""

    def progress(self) -> Progress:
        """Return a context manager that shows stages."""

    def note(self, text: str) -> None:
        """Show one line of progress."""

    def warn(self, text: str) -> None:
        """Show one line that does not stop anything."""

    def confirm(self, question: str, yes: bool) -> None:
        """Ask before something that cannot be undone; ``yes``: do not ask. Raises MeshrayError if the user refuses."""

    def sudo_line(self) -> str:
        """Return the command that the user typed, with sudo."""


@dataclass(frozen=True)
class Command:
    """`meshray up`, `down` or `leave`.

    Attributes:
        words: the command for a meshray in a container, with --json.
        run: executes the command in this process, and returns what it answers with --json.
    """

    words: Sequence[str]
    run: Callable[[], Answer]


class Container(Protocol):
    """The container of a node, with a meshray that runs the commands about the node."""

    @property
    def name(self) -> str:
        """The name for messages."""

    @property
    def runs(self) -> bool:
        """Whether commands can be run in it."""

    def require_running(self) -> None:
        """Raise UnreachableError if it is stopped."""

    def meshray(
        self,
        arguments: Sequence[str],
        *,
        out: Sink,
        err: Sink,
        stdin: Callable[[], bytes] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> int:
        """Run a meshray command in it to its end, and return the exit code.

        Args:
            stdin: is called again and again until it returns nothing.
            environ: additional variables for the command.
        """

    def replace_process(self, arguments: Sequence[str]) -> None:
        """Become the program that runs a meshray command in it for a user at a terminal, if that is installed."""

    def read(self, path: str) -> bytes | None:
        """Return the content of a file in it; None if the file does not exist."""

    def unlink(self, path: str) -> None:
        """Remove a file in it."""

    def read_log(self, part: str) -> bytes | None:
        """Return what a part of the node wrote, even if the container is stopped; None: nothing."""


class Runtime(Protocol):
    """Where this machine's node lives."""

    def container(self) -> Container | None:
        """Return the node's container; None: this meshray itself runs the commands about the node.

        Raises:
            MeshrayError: the container's engine does not answer, or the container does not exist.
        """

    def up(self, command: Command, console: Console) -> Answer:
        """Bring the node up, and return the summary of its agent."""

    def down(self, command: Command, console: Console) -> Answer:
        """Take the node down, and return ``node`` and ``was_running``."""

    def leave(self, command: Command, console: Console, *, yes: bool) -> Answer:
        """Un-enrol the node and remove its state, and return ``node`` and ``unenrolled``.

        Args:
            yes: do not ask the user.
        """


class AgentRuntime(Runtime, Protocol):
    """A runtime in which this very meshray runs the agent."""

    @property
    def has_own_network(self) -> bool:
        """Whether overlay and Ray are in a network namespace apart from the machine's."""

    def preflight(self, console: Console) -> str:
        """Return which WireGuard a node on this machine will have, as text for users.

        Raises:
            MeshrayError: what this machine lacks.
        """

    def enter(self, listen_port: int) -> None:
        """Prepare this process for the agent. Must be called before it has threads.

        Args:
            listen_port: of the node's WireGuard; 0: any.
        """

    def entered(self, listen_port: int) -> AbstractContextManager[None]:
        """Return a context manager around the agent's life."""

    def inside(self, command: Sequence[str]) -> list[str]:
        """Return the command that runs this one where the node's Ray is."""

    async def lost(self) -> None:
        """Wait until the agent cannot continue here, if ever, and raise MeshrayError."""
