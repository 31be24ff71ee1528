"""The agent's end of the control socket; the messages are in `meshray.protocol.control`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from meshray.agent.status.startup_progress import Emit
from meshray.errors import MeshrayError, UsageError
from meshray.linux.peer_credentials import peer_credentials
from meshray.protocol.codec import WireError, decode, to_json
from meshray.protocol.control import MAX_REQUEST_BYTES, Request

log = logging.getLogger(__name__)

#: The command line sends its request at once. A request that is incomplete after this time is refused, seconds.
REQUEST_S = 10.0

#: An operation takes the request and a function that sends an event, and returns the answer.
Operation = Callable[[Any, Emit], Awaitable[object]]
Operations = Mapping[type[Request[Any]], Operation]


class _Named(msgspec.Struct):
    op: Annotated[str, msgspec.Meta(max_length=32)]


class ControlServer:
    """The server of the control socket.

    Args:
        operations: the operations for everyone who may open the socket.
        owner_operations: the operations for root and the user who runs the agent.
        user_uid: the user for whom Ray runs, who may open the socket as well as root.
        request_s: a request must be complete within this time, seconds; shorter for tests.
    """

    def __init__(
        self,
        operations: Operations,
        owner_operations: Operations,
        user_uid: int,
        request_s: float = REQUEST_S,
    ) -> None:
        self._request_s = request_s
        self._operations = {form.operation(): (form, operation) for form, operation in operations.items()}
        self._owner_operations = {form.operation(): (form, operation) for form, operation in owner_operations.items()}
        self._user_uid = user_uid
        self._server: asyncio.Server | None = None
        self._path: Path | None = None

    async def open(self, path: Path) -> None:
        """Listen. A socket that a killed agent left behind is replaced."""
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
        """Stop listening and remove the socket."""
        if self._server is not None:
            self._server.close()
        if self._path is not None:
            _remove(self._path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def send(answer: Mapping[str, object]) -> None:
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()

        async def emit(event: msgspec.Struct) -> None:
            await send({"event": to_json(event)})

        # A client that hangs up early needs no answer, nor does a client when the agent ends: before Python 3.12
        # asyncio logs the cancellation of a connection's task as an error.
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            try:
                line = await self._read_line(reader)
                form, operation = self._allowed(decode(line, _Named).op, _peer_uid(writer))
                await send({"ok": to_json(await operation(decode(line, form), emit))})
            except MeshrayError as error:
                await send({"error": error.to_json(), "exit_code": error.exit_code})
            except ConnectionError:
                raise
            except Exception:
                log.exception("an operation failed")
                await send(_failure("agent_failed", "the agent failed to process this request; its log shows why"))
        writer.close()

    async def _read_line(self, reader: asyncio.StreamReader) -> bytes:
        try:
            return await asyncio.wait_for(reader.readline(), self._request_s)
        except asyncio.TimeoutError:
            raise WireError(f"no complete request arrived within {self._request_s:g} s") from None
        except ValueError:
            raise WireError(f"the request is too long: more than {MAX_REQUEST_BYTES // 1024} KiB") from None

    def _allowed(self, op: str, uid: int) -> tuple[type[Request[Any]], Operation]:
        if op in self._operations:
            return self._operations[op]
        if op not in self._owner_operations:
            raise UsageError("bad_operation", f"the agent does not know the operation {op!r}")
        if uid not in (0, os.geteuid()):
            raise MeshrayError("not_root", "this needs root", hint="run it with sudo")
        return self._owner_operations[op]


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _failure(code: str, message: str) -> dict[str, object]:
    error = MeshrayError(code, message, hint="meshray logs agent")
    return {"error": error.to_json(), "exit_code": error.exit_code}


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    return peer_credentials(writer.get_extra_info("socket")).uid
