"""A stopped agent, and one whose socket was removed, are recognised at once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshray.client.agent import ControlClient
from meshray.errors import UnreachableError
from meshray.linux import procfs
from meshray.protocol.control import GetStatus

_LISTEN = """
import socket, sys, time
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print(flush=True)
time.sleep(60)
"""


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that listens like an agent, and answers nothing."""
    command = [sys.executable, "-S", "-c", _LISTEN, str(tmp_path / "agent.sock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_stopped_agent_is_reported_with_the_command_that_continues_it(
    agent: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    os.kill(agent.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, agent.pid, os.WSTOPPED | os.WNOWAIT)
    with pytest.raises(UnreachableError) as caught:
        ControlClient(tmp_path / "agent.sock").request(GetStatus(), timeout_s=20)
    assert (caught.value.code, caught.value.hint) == ("agent_stopped", f"kill -CONT {agent.pid}")


def test_a_running_agent_is_not_reported_as_stopped(agent: subprocess.Popen[bytes], tmp_path: Path) -> None:
    with pytest.raises(UnreachableError) as caught:
        ControlClient(tmp_path / "agent.sock").request(GetStatus(), timeout_s=0.2)
    assert caught.value.code == "agent_silent"


def test_a_process_listens_at_its_socket_even_if_the_file_is_gone(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.sock")
    assert not procfs.listens_at(os.getpid(), path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        assert not procfs.listens_at(os.getpid(), path)
        server.listen()
        Path(path).unlink()
        assert procfs.listens_at(os.getpid(), path)
        assert not procfs.listens_at(1, path)
