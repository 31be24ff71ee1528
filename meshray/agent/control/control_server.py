"""The agent's end of the control socket; the protocol is in `meshray.client.agent`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from meshray.agent.status.progress import Emit
from meshray.client.agent import MAX_REQUEST_BYTES
from meshray.errors import MeshrayError, UsageError
from meshray.model import wire
from meshray.protocol.codec import WireError, decode_object

log = logging.getLogger(__name__)

#: The command line sends its request at once; who has not sent it whole by then is told so, seconds.
REQUEST_S = 10.0

#: An operation: takes the request and a way to tell events, returns the last answer.
Operation = Callable[[Mapping[str, object], Emit], Awaitable[Mapping[str, object]]]

_CREDENTIALS = struct.Struct("3i")  # struct ucred of SO_PEERCRED, unix(7): pid, uid, gid


class ControlServer:
    """Answers the command line.

    Args:
        operations: what anybody may ask who may open the socket.
        owner_operations: what only root (or whoever runs the agent) may ask.
        user_uid: the user for whom Ray runs; may open the socket besides root.
        request_s: a request must be here whole within this; shorter for tests.
    """

    def __init__(
        self,
        operations: Mapping[str, Operation],
        owner_operations: Mapping[str, Operation],
        user_uid: int,
        request_s: float = REQUEST_S,
    ) -> None:
        self._request_s = request_s
        self._operations = operations
        self._owner_operations = owner_operations
        self._user_uid = user_uid
        self._server: asyncio.Server | None = None
        self._path: Path | None = None

    async def open(self, path: Path) -> None:
        """Listens; a socket that a killed agent left behind is replaced."""
        _remove(path)
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, str(path), limit=MAX_REQUEST_BYTES)
        finally:
            os.umask(before)
        if os.geteuid() == 0:
            os.chown(path, self._user_uid, -1)
        self._path = path

    def close(self) -> None:
        """Ends listening and removes the socket."""
        if self._server is not None:
            self._server.close()
        if self._path is not None:
            _remove(self._path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def tell(answer: Mapping[str, object]) -> None:
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()

        # Who hangs up early has no further interest in the answer, nor has anybody where the agent ends: before Python
        # 3.12 asyncio logs the cancellation of a connection's task as an error.
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            try:
                request = decode_object(await self._line(reader))
                operation = self._allowed(wire.text(request, "op", 32), _peer_uid(writer))
                await tell({"ok": await operation(request, lambda event: tell({"event": event}))})
            except MeshrayError as error:
                await tell({"error": error.to_json(), "exit_code": error.exit_code})
            except ConnectionError:
                raise
            except Exception:
                log.exception("an operation failed")
                await tell(_failure("agent_failed", "the agent failed at this request; its log tells why"))
        writer.close()

    async def _line(self, reader: asyncio.StreamReader) -> bytes:
        try:
            return await asyncio.wait_for(reader.readline(), self._request_s)
        except asyncio.TimeoutError:
            raise WireError(f"no whole request came within {self._request_s:g} s") from None
        except ValueError:
            raise WireError(f"the request is too long: more than {MAX_REQUEST_BYTES // 1024} KiB") from None

    def _allowed(self, op: str, uid: int) -> Operation:
        if op in self._operations:
            return self._operations[op]
        if op not in self._owner_operations:
            raise UsageError("bad_operation", f"the agent knows no operation {op!r}")
        if uid not in (0, os.geteuid()):
            raise MeshrayError("not_root", "this needs root", hint="run it with sudo")
        return self._owner_operations[op]


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _failure(code: str, message: str) -> dict[str, object]:
    error = MeshrayError(code, message, hint="meshray logs agent")
    return {"error": error.to_json(), "exit_code": error.exit_code}


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    connection: socket.socket = writer.get_extra_info("socket")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])
