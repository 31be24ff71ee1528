"""The way from the command line to the agent of this machine: one request, one or many answers.

A Unix socket, one JSON object a line:

    {"op": "status"}  ──►
                      ◄──  {"ok": {…}}                        the last line, or
                      ◄──  {"error": {…}, "exit_code": 5}     the last line
    {"op": "ping", "node": "gpu-1", "count": 3}  ──►
                      ◄──  {"event": {"seq": 1, "rtt_ms": 0.8}}   any number of these before

The operations and the keys of their answers are in docs/protocol.md.

    >>> ControlClient(home.control_socket).ask("status")["mesh"]
    'lab'

Only the standard library is imported: `meshray status` starts within a quarter of a second.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from meshray.errors import MeshrayError, UnreachableError, error_from_json

#: No request is longer.
MAX_REQUEST_BYTES = 64 * 1024
#: A status of 10,000 nodes has about 6 MB.
_MAX_ANSWER_BYTES = 64 * 1024 * 1024


class ControlClient:
    """Asks the agent whose socket this is."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def ask(self, op: str, *, timeout_s: float = 10, **fields: object) -> Mapping[str, object]:
        """The agent's one answer.

        Args:
            timeout_s: the longest silence that is waited for.

        Raises:
            UnreachableError: no agent runs (``agent_down``) or it does not answer (``agent_silent``).
            MeshrayError: what the agent reported instead.
        """
        *_, last = self.stream(op, timeout_s=timeout_s, **fields)
        return last

    def stream(self, op: str, *, timeout_s: float, **fields: object) -> Iterator[Mapping[str, object]]:
        """The agent's events, then its answer, as they come; raises as `ask` does."""
        with contextlib.closing(self._connect(timeout_s)) as connection:
            # A request that is refused half-way has its answer all the same.
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps({"op": op, **fields}).encode() + b"\n")
            with connection.makefile("rb") as lines:
                while True:
                    answer = self._read(lines.readline, timeout_s)
                    if "event" in answer:
                        yield _as_mapping(answer["event"])
                    elif "ok" in answer:
                        yield _as_mapping(answer["ok"])
                        return
                    else:
                        exit_code = answer.get("exit_code")
                        raise error_from_json(
                            _as_mapping(answer.get("error")), exit_code if isinstance(exit_code, int) else 1
                        )

    def _connect(self, timeout_s: float) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(self._path))
        except PermissionError:
            connection.close()
            raise MeshrayError(
                "not_root", "the agent of this machine belongs to another user", hint="run it with sudo"
            ) from None
        except OSError:
            connection.close()
            raise UnreachableError("agent_down", "no agent runs on this machine", hint="meshray up") from None
        return connection

    @staticmethod
    def _read(readline: Callable[[int], bytes], timeout_s: float) -> Mapping[str, object]:
        try:
            line = readline(_MAX_ANSWER_BYTES)
        except TimeoutError:
            raise UnreachableError(
                "agent_silent", f"the agent did not answer in {timeout_s:.0f} s", hint="meshray logs agent"
            ) from None
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise UnreachableError("agent_down", "the agent ended while it was asked", hint="meshray logs agent")
        return _as_mapping(json.loads(line))


def _as_mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}
