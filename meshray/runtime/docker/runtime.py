"""A node in a Docker container: the container is started before the command in it, and stopped or removed after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from meshray.errors import MeshrayError, UnreachableError
from meshray.home import Home
from meshray.node.state_folder import claimed, delete_state
from meshray.runtime.base import Answer, Command, Console
from meshray.runtime.container_commands import parse, retry_while_busy, run_command
from meshray.runtime.docker.engine import open_engine
from meshray.runtime.docker.node_container import NodeContainer, remove_container
from meshray.runtime.docker.record import Record, load


class Docker:
    """See `meshray.runtime.base.Runtime`."""

    def __init__(self, home: Home, environ: Mapping[str, str]) -> None:
        self._home = home
        self._environ = environ

    def container(self) -> NodeContainer:
        """Return the node's container.

        Raises:
            MeshrayError: ``state_damaged``, ``not_enrolled``, and as `open_engine` and `NodeContainer.of`.
        """
        return self._find(self._record())

    def up(self, command: Command, console: Console) -> Answer:
        """See `Runtime.up`."""
        with claimed(self._home):
            return self.bring_up(command.words, console)

    def bring_up(self, words: Sequence[str], console: Console, stdin: bytes = b"") -> Answer:
        """Start the container unless it runs; return what the command with these words answers in it."""
        container = self.container()
        if not container.runs:
            with console.progress() as progress:
                progress.stage("container", "run", container.name)
                container.start()
                progress.stage("container", "ok", container.name)
        return retry_while_busy(lambda: run_command(self.container(), words, console, stdin=stdin))

    def down(self, command: Command, console: Console) -> Answer:
        """See `Runtime.down`."""
        with claimed(self._home):
            return self.take_down(command.words, console)

    def take_down(self, words: Sequence[str], console: Console) -> Answer:
        """Run the command with these words, and stop the container. An ephemeral node has left the mesh with that, so
        its container is removed."""
        record = self._record()
        container = self._find(record)
        answer: Answer = {}
        try:
            if container.runs:
                answer = retry_while_busy(lambda: run_command(container, words, console))
        finally:
            # Even if the command failed: the container's first process takes the node down.
            container.stop()
            if record.ephemeral:
                self._remove(record)
        return {"node": str(answer.get("node", record.name)), "was_running": answer.get("was_running") is True}

    def leave(self, command: Command, console: Console, *, yes: bool) -> Answer:
        """See `Runtime.leave`."""
        with claimed(self._home):
            record = self._record()
            answer: Answer = {}
            try:
                container = self._find(record)
                if container.runs:
                    answer = retry_while_busy(lambda: run_command(container, command.words, console))
                else:
                    code, output = container.run_once(command.words)
                    answer = parse(output, code)
            except MeshrayError as error:
                if isinstance(error, UnreachableError) and error.code != "container_gone":
                    raise
                question = f"{error.message}. The coordinator cannot be notified, so it keeps listing this node."
                console.confirm(question, yes)
            self._remove(record)
        return {"node": str(answer.get("node", record.name)), "unenrolled": answer.get("unenrolled") is True}

    def _record(self) -> Record:
        record = load(self._home)
        if record is None:
            raise MeshrayError(
                "not_enrolled", "this machine is not in a mesh", hint="meshray init, or meshray join TOKEN"
            )
        return record

    def _find(self, record: Record) -> NodeContainer:
        return NodeContainer.of(open_engine(self._environ, record.engine), record)

    def _remove(self, record: Record) -> None:
        """Remove the container, the node's state in it, and the record of it."""
        remove_container(open_engine(self._environ, record.engine), record)
        self._home.container.unlink(missing_ok=True)
        delete_state(self._home)
