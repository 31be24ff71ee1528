"""The connections to an engine: one for all reads, and a new one after the engine has ended."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshray.errors import MeshrayError
from meshray.wireguard.engine_socket import EngineSocket


class FakeEngine:
    """Answers reads with its port, and counts its connections."""

    def __init__(self, path: Path, port: int, *, truncated: bool = False) -> None:
        path.unlink(missing_ok=True)
        self.connections: list[socket.socket] = []
        self.requests: list[bytes] = []
        self._answer = f"listen_port={port}\nerrno=0\n{'' if truncated else chr(10)}".encode()
        self._truncated = truncated
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            while request := connection.recv(4096):
                self.requests.append(request)
                connection.sendall(self._answer)
                if self._truncated:
                    connection.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """End as a killed process does: the kernel closes everything, and the file stays."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "meshray0.sock"


def test_all_reads_use_one_connection_whose_owner_is_checked_once(path: Path) -> None:
    engine, owners = FakeEngine(path, 51888), list[int]()
    engine_socket = EngineSocket(path, require_owner=owners.append)
    assert {engine_socket.read() for _ in range(20)} == {"listen_port=51888\nerrno=0\n\n"}
    assert owners == [os.getpid()]
    assert len(engine.connections) == 1
    assert engine.requests == [b"get=1\n\n"] * 20
    engine_socket.query("set=1\nlisten_port=1\n\n")
    assert len(engine.connections) == 2
    engine_socket.close()
    engine.end()


def test_a_new_engine_is_found_and_checked_again(path: Path) -> None:
    owners = list[int]()
    engine_socket = EngineSocket(path, require_owner=owners.append)
    first = FakeEngine(path, 1)
    assert engine_socket.read().startswith("listen_port=1\n")
    first.end()
    second = FakeEngine(path, 2)
    assert engine_socket.read().startswith("listen_port=2\n")
    assert len(owners) == 2
    second.end()
    with pytest.raises(ConnectionRefusedError):
        engine_socket.read()
    path.unlink()
    with pytest.raises(FileNotFoundError):
        engine_socket.read()


def test_another_engine_is_not_read(path: Path) -> None:
    def refuse(pid: int) -> None:
        raise MeshrayError("foreign_interface", f"{pid} is not ours")

    engine = FakeEngine(path, 1)
    with pytest.raises(MeshrayError, match="not ours"):
        EngineSocket(path, require_owner=refuse).read()
    assert engine.requests == []
    engine.end()


def test_a_truncated_answer_is_returned_and_its_connection_is_not_used_again(path: Path) -> None:
    engine = FakeEngine(path, 1, truncated=True)
    engine_socket = EngineSocket(path, require_owner=lambda pid: None)
    assert engine_socket.read() == engine_socket.read() == "listen_port=1\nerrno=0\n"
    assert len(engine.connections) == 2
    engine.end()
