"""The client of the agent's control socket. The messages are in `meshray.protocol.control`.

>>> ControlClient(home.control_socket).request(GetStatus()).mesh
'lab'
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from meshray.errors import MeshrayError, UnreachableError, error_from_json
from meshray.linux import procfs
from meshray.linux.peer_credentials import peer_credentials
from meshray.protocol.codec import convert, encode
from meshray.protocol.control import Request, Watch

A = TypeVar("A")
E = TypeVar("E")

#: A status of 10,000 nodes has about 6 MB.
_MAX_ANSWER_BYTES = 64 * 1024 * 1024


class ControlClient:
    """A client of the agent behind a control socket."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def request(self, request: Request[A], *, timeout_s: float = 10) -> A:
        """Return the agent's answer.

        Args:
            timeout_s: the longest wait for the next line, seconds.

        Raises:
            UnreachableError: no agent runs (``agent_down``), a signal stopped it (``agent_stopped``), or it does not
                answer (``agent_silent``).
            MeshrayError: the agent reported an error.
        """
        return convert(self.request_json(request, timeout_s=timeout_s), request.answer_type())

    def request_json(self, request: Request[A], *, timeout_s: float = 10) -> Mapping[str, object]:
        """Return the agent's answer unchanged, including fields of a newer release. Raises like `request`."""
        *_, (_, answer) = self._exchange(request, timeout_s)
        return answer

    def watch(self, request: Watch[E, A], on_event: Callable[[E], None], *, timeout_s: float) -> A:
        """Pass on the agent's events as they arrive, and return its answer. Raises like `request`."""
        answer: Mapping[str, object] = {}
        for kind, value in self._exchange(request, timeout_s):
            if kind == "event":
                on_event(convert(value, request.event_type()))
            else:
                answer = value
        return convert(answer, request.answer_type())

    def _exchange(self, request: Request[A], timeout_s: float) -> Iterator[tuple[str, Mapping[str, object]]]:
        """Yield the agent's events, then its answer."""
        with contextlib.closing(self._connect(timeout_s)) as connection:
            # A request that is refused before its end has an answer too.
            with contextlib.suppress(OSError):
                connection.sendall(encode(request).encode() + b"\n")
            with connection.makefile("rb") as lines:
                while True:
                    answer = self._read(lines.readline, timeout_s)
                    if "event" in answer:
                        yield "event", _as_mapping(answer["event"])
                    elif "ok" in answer:
                        yield "ok", _as_mapping(answer["ok"])
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
        pid = peer_credentials(connection).pid
        if procfs.is_stopped(pid):
            # The kernel accepts the connection for it. Without this look, each request would wait for its timeout.
            connection.close()
            raise UnreachableError(
                "agent_stopped", f"a signal has stopped the agent (pid {pid})", hint=f"kill -CONT {pid}"
            )
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
            raise UnreachableError("agent_down", "the agent ended during the request", hint="meshray logs agent")
        return _as_mapping(json.loads(line))


def _as_mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}
