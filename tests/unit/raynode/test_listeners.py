"""Whose a listening socket is, out of /proc: Ray's, somebody else's, or the kernel's."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from meshray.raynode import listeners
from meshray.raynode.listeners import AGAIN_S, Heard, Listeners
from meshray.raynode.sockets import ESTABLISHED, LISTEN, TcpSocket
from meshray.settings import Home

HEAD = IPv4Address("10.99.0.1")
RAY, WEB, DRIVER, STRANGER = 100, 200, 300, 400


class Machine:
    """Sockets and processes, as files and as what the kernel answers."""

    def __init__(self, root: Path, home: Home) -> None:
        self.root = root
        self.sockets: dict[int, list[TcpSocket]] = {LISTEN: [], ESTABLISHED: []}
        self.looks = 0
        self.process(RAY, f"PATH=/bin\0RAY_AUTH_TOKEN_PATH={home.ray_token}\0", "1", "2")
        self.process(WEB, "PATH=/bin\0RAY_AUTH_TOKEN_PATH=/elsewhere/ray_token\0", "3")
        self.process(DRIVER, "", "4", "40")
        self.process(STRANGER, "", "5", "50")
        for inode, port in enumerate((6379, 41000, 8000, 10007, 10009, 2049), start=1):
            self.listen(port, str(inode))
        self.sockets[ESTABLISHED] = [
            TcpSocket(50000, "10.99.0.2", "10.99.0.1", "40"),
            TcpSocket(50001, "192.168.1.2", "192.168.1.1", "50"),  # another cluster's GCS
        ]

    def process(self, pid: int, environ: str, *inodes: str) -> None:
        (self.root / str(pid) / "fd").mkdir(parents=True, exist_ok=True)
        (self.root / str(pid) / "environ").write_text(environ)
        for inode in inodes:
            (self.root / str(pid) / "fd" / inode).symlink_to(f"socket:[{inode}]")
        (self.root / str(pid) / "fd" / "0").symlink_to("/dev/null")

    def listen(self, port: int, inode: str) -> None:
        self.sockets[LISTEN].append(TcpSocket(port, "0.0.0.0", "0.0.0.0", inode))

    def answer(self, state: int, remote_port: int = 0) -> list[TcpSocket]:
        assert (remote_port == 6379) is (state == ESTABLISHED)
        self.looks += state == ESTABLISHED
        return list(self.sockets[state])


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "state", tmp_path / "run")


@pytest.fixture
def machine(tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path / "proc", home)
    monkeypatch.setattr(listeners, "_PROC", made.root)
    monkeypatch.setattr(listeners, "tcp_sockets", made.answer)
    return made


def test_whose_they_are(machine: Machine, home: Home) -> None:
    found = {heard.port: heard.of_ray for heard in Listeners(home, HEAD)()}
    assert found == {6379: True, 41000: True, 8000: False, 10007: True, 10009: False, 2049: None}


def test_nothing_new_costs_no_look_at_processes(machine: Machine, home: Home) -> None:
    look = Listeners(home, HEAD)
    first = look()
    assert look() == first
    assert machine.looks == 1
    machine.listen(41001, "7")
    (machine.root / "100/fd/7").symlink_to("socket:[7]")
    assert Heard(41001, "0.0.0.0", True) in look()
    assert machine.looks == 2


def test_who_was_a_stranger_may_become_a_driver(machine: Machine, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("meshray.raynode.listeners.time.monotonic", lambda: now[0])
    look = Listeners(home, HEAD)
    assert Heard(10009, "0.0.0.0", False) in look()
    machine.sockets[ESTABLISHED].append(TcpSocket(50002, "10.99.0.2", "10.99.0.1", "50"))
    assert Heard(10009, "0.0.0.0", False) in look()
    now[0] += AGAIN_S + 1
    assert Heard(10009, "0.0.0.0", True) in look()
