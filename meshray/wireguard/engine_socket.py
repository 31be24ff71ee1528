"""The socket on which an engine is configured and read (wireguard.com/xplatform).

    connections = EngineSocket(Path("/var/run/wireguard/meshray0.sock"), require_owner=check)
    state = parse(connections.read())

The device is read every second or more often, so the connection for reads stays open. A connection leads to one process
until that ends, and its name is not looked up again: the owner is checked only when it is opened.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from threading import Lock

from meshray.linux.peer_credentials import peer_credentials
from meshray.wireguard.uapi import READ

#: An engine answers within a millisecond; after this time it counts as hung, seconds.
_ANSWER_S = 5.0
_READ_BYTES = 65536


class EngineSocket:
    """Connections to an engine. Threads may share it.

    Args:
        require_owner: called with the pid of the process that listens, for each new connection; it raises an error if
            that is not the expected engine.
    """

    def __init__(self, path: Path, *, require_owner: Callable[[int], None]) -> None:
        self._path = path
        self._require_owner = require_owner
        self._reading: socket.socket | None = None
        self._lock = Lock()

    def query(self, text: str) -> str:
        """Send a request over a new connection, and return the answer; a truncated one if the engine ends.

        Raises:
            OSError: nothing listens there, or it does not answer in time.
            MeshrayError: as ``require_owner`` does.
        """
        with self._connect() as connection:
            return _exchange(connection, text)

    def read(self) -> str:
        """Return the answer to `READ`; raises as `query` does."""
        with self._lock:
            kept, self._reading = self._reading, None
            if kept is not None and (answer := _answer_of(kept)):
                self._reading = kept
                return answer
            # The engine has ended, and another one may have been started.
            connection = self._connect()
            try:
                answer = _exchange(connection, READ)
            except BaseException:
                connection.close()
                raise
            if _is_complete(answer):
                self._reading = connection
            else:
                connection.close()
            return answer

    def close(self) -> None:
        """Close the connection for reads."""
        with self._lock:
            kept, self._reading = self._reading, None
        if kept is not None:
            kept.close()

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_ANSWER_S)
            connection.connect(str(self._path))
            self._require_owner(peer_credentials(connection).pid)
        except BaseException:
            connection.close()
            raise
        return connection


def _answer_of(kept: socket.socket) -> str:
    """Return the answer of an open connection; close it and return an empty text if its engine has ended."""
    try:
        answer = _exchange(kept, READ)
    except ConnectionError:
        answer = ""
    except BaseException:
        # After a late answer the next one would be taken for it.
        kept.close()
        raise
    if _is_complete(answer):
        return answer
    kept.close()
    return ""


def _exchange(connection: socket.socket, text: str) -> str:
    connection.sendall(text.encode("ascii"))
    parts: list[bytes] = []
    end = b""
    while end != b"\n\n":
        received = connection.recv(_READ_BYTES)
        if not received:
            break
        parts.append(received)
        end = (end + received)[-2:]
    return b"".join(parts).decode("ascii", errors="replace")


def _is_complete(answer: str) -> bool:
    return answer.endswith("\n\n")
