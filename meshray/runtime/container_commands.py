"""Commands with --json, run by the meshray in a node's container.

>>> run_command(container, ["down", "--json"], console)
{'node': 'gpu-1', 'was_running': True}
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from meshray.errors import MeshrayError, error_from_json

if TYPE_CHECKING:
    from meshray.runtime.base import Answer, Console, Container

#: The first process of a container that starts brings the node up, and other commands wait for that.
_BUSY_S, _BUSY_POLL_S = 180.0, 0.3


def run_command(
    container: Container,
    words: Sequence[str],
    console: Console,
    *,
    stdin: bytes = b"",
    environ: Mapping[str, str] | None = None,
) -> Answer:
    """Return what a meshray command in the container answers; show its progress as it comes.

    Args:
        words: --json among them.
        environ: variables that the command gets.

    Raises:
        MeshrayError: what it failed with.
    """
    container.require_running()
    answer, lines, input_ = bytearray(), _ProgressLines(console), iter((stdin, b""))
    feed = (lambda: next(input_, b"")) if stdin else None
    code = container.meshray(words, out=answer.extend, err=lines.feed, stdin=feed, environ=environ)
    return parse(bytes(answer), code)


def parse(answer: bytes, code: int) -> Answer:
    """Return the answer in a command's standard output. Raises MeshrayError if it is an error, or missing."""
    try:
        found = json.loads(answer.strip().splitlines()[-1])
    except (ValueError, IndexError):
        found = {}
    if not isinstance(found, dict) or not found or "error" in found:
        error = found.get("error") if isinstance(found, dict) else None
        missing = {"code": "container_silent", "message": "meshray in the container ended without an answer"}
        raise error_from_json(error if isinstance(error, dict) else missing, code or 1)
    return {name: value for name, value in found.items() if name != "schema"}


def retry_while_busy(attempt: Callable[[], Answer]) -> Answer:
    """Return what the attempt returns; repeat it while another command is changing the node."""
    deadline = time.monotonic() + _BUSY_S
    while True:
        try:
            return attempt()
        except MeshrayError as error:
            if error.code != "busy" or time.monotonic() > deadline:
                raise
        time.sleep(_BUSY_POLL_S)


class _ProgressLines:
    """Shows the progress of a command in the container. Its error is shown once, by the caller."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take the next piece of its standard error."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if not line.startswith((b"error: ", b"hint: ")):
                self._console.note(line.decode(errors="replace"))
