"""The owner of a listening socket, from /proc: Ray, another program, or the kernel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from meshray.home import Home
from meshray.linux import procfs
from meshray.linux.sockets import ESTABLISHED, LISTEN, Socket
from meshray.model.address import Endpoint
from meshray.raynode import listeners
from meshray.raynode.listeners import RECHECK_S, Listeners, ListeningSocket

GCS = Endpoint("10.99.0.1", 6379)
RAY, WEB, DRIVER, STRANGER = 100, 200, 300, 400
#: The user who runs this mesh's Ray; another user of the machine.
ADA, MALLORY = 1000, 1001
RAYLET = "/home/x/venv/lib/python3.12/site-packages/ray/core/src/ray/raylet/raylet"


class Machine:
    """Sockets and processes, as files and as the kernel's answers."""

    def __init__(self, root: Path, home: Home) -> None:
        self.root = root
        self.sockets: dict[int, list[Socket]] = {LISTEN: [], ESTABLISHED: []}
        self.looks = 0
        #: The port to which a connection goes if that is not 6379, by its inode.
        self.remote_ports: dict[str, int] = {}
        self.token = f"RAY_AUTH_TOKEN_PATH={home.ray_token}\0"
        self.process(RAY, f"PATH=/bin\0RAY_AUTH_TOKEN_PATH={home.ray_token}\0", "1", "2")
        self.process(WEB, "PATH=/bin\0RAY_AUTH_TOKEN_PATH=/elsewhere/ray_token\0", "3")
        self.process(DRIVER, "", "4", "40")
        self.process(STRANGER, "", "5", "50")
        for inode, port in enumerate((6379, 41000, 8000, 10007, 10009, 2049), start=1):
            self.listen(port, str(inode))
        self.sockets[ESTABLISHED] = [
            Socket(50000, "10.99.0.2", "10.99.0.1", "40"),
            Socket(50001, "192.168.1.2", "192.168.1.1", "50"),  # Another cluster's GCS.
        ]

    def process(
        self, pid: int, environ: str, *inodes: str, uid: int = ADA, effective: int | None = None, program: str = ""
    ) -> None:
        (self.root / str(pid) / "fd").mkdir(parents=True, exist_ok=True)
        (self.root / str(pid) / "environ").write_text(environ)
        uids = (uid, uid if effective is None else effective)
        (self.root / str(pid) / "status").write_text(f"Name:\tx\nUid:\t{uids[0]}\t{uids[1]}\t0\t0\n")
        if program:
            (self.root / str(pid) / "exe").symlink_to(program)
        for inode in inodes:
            (self.root / str(pid) / "fd" / inode).symlink_to(f"socket:[{inode}]")
        (self.root / str(pid) / "fd" / "0").symlink_to("/dev/null")

    def listen(self, port: int, inode: str, address: str = "0.0.0.0") -> None:
        self.sockets[LISTEN].append(Socket(port, address, "0.0.0.0", inode))

    def answer(self, state: int, remote_port: int = 0) -> list[Socket]:
        assert bool(remote_port) is (state == ESTABLISHED)
        assert remote_port <= 65535, "the kernel's request has 16 bits for it"
        self.looks += remote_port == 6379
        if state == LISTEN:
            return list(self.sockets[state])
        return [found for found in self.sockets[state] if remote_port == self.remote_ports.get(found.inode, 6379)]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "state", tmp_path / "run")


@pytest.fixture
def machine(tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path / "proc", home)
    monkeypatch.setattr(procfs, "_PROC", made.root)
    monkeypatch.setattr(listeners, "tcp_sockets", made.answer)
    return made


@pytest.fixture
def look(home: Home, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[int, bool | None]]:
    """Return the owner of the port, without knowledge from earlier calls."""
    parents = {501: 500, 502: 501}
    monkeypatch.setattr(listeners, "parents", lambda: parents)
    return lambda: {received.port: received.of_ray for received in Listeners(home, ADA, lambda: GCS)()}


Look = Callable[[], dict[int, bool | None]]


def test_another_users_claim_counts_for_nothing(machine: Machine, look: Look) -> None:
    """The attack: another user's process has the environment of Ray, or a connection to the mesh's GCS."""
    machine.process(500, machine.token, "70", uid=MALLORY)
    machine.process(510, "", "71", "72", uid=MALLORY)
    machine.process(520, machine.token, "73", uid=MALLORY, effective=ADA)  # A program of Ada's with her permissions.
    for port, inode in ((5000, "70"), (5001, "71"), (5002, "73")):
        machine.listen(port, inode)
    machine.sockets[ESTABLISHED].append(Socket(50003, "10.99.0.2", "10.99.0.1", "72"))
    found = look()
    assert (found[5000], found[5001], found[5002]) == (False, False, False)


def test_a_socket_that_another_user_has_too_is_not_claimed(machine: Machine, look: Look) -> None:
    machine.process(500, machine.token, "70")
    machine.process(501, "", "70", uid=MALLORY)
    machine.process(510, machine.token, "71")
    machine.process(511, "", "71")
    machine.listen(5000, "70")
    machine.listen(5001, "71")
    found = look()
    assert (found[5000], found[5001]) == (False, True)


def test_a_manually_started_ray_is_detected(machine: Machine, look: Look) -> None:
    machine.process(500, "", "70", uid=MALLORY, program=RAYLET)
    (machine.root / "500/cmdline").write_bytes(b"raylet\0--gcs-address=192.168.1.5:6380\0--x=1\0")
    machine.process(501, "", uid=MALLORY)
    machine.process(502, "", "71", uid=MALLORY)  # A worker's child.
    machine.process(600, "", "72", uid=MALLORY, program=RAYLET.replace("raylet/raylet", "gcs/gcs_server"))
    machine.process(610, "", "73", "80", uid=MALLORY)  # Its dashboard.
    machine.process(620, "", "74", "81", uid=1002)  # Another user who calls that GCS.
    machine.process(630, "", "75", uid=MALLORY)  # Its user's other program.
    machine.process(640, "", "76", uid=MALLORY, program="/tmp/gcs_server")
    for port, inode in enumerate(("70", "71", "72", "73", "74", "75", "76"), start=5000):
        machine.listen(port, inode)
    for inode in ("80", "81"):
        machine.sockets[ESTABLISHED].append(Socket(50003, "192.168.1.5", "192.168.1.5", inode))
        machine.remote_ports[inode] = 6380
    found = look()
    assert [found[port] for port in range(5000, 5007)] == [True, True, True, True, False, False, False]


def test_what_serves_a_ray_by_hand_is_known_before_its_raylet_runs(machine: Machine, look: Look) -> None:
    """The dashboard, the server of Ray Client and the autoscaler are connected to GCS before a raylet starts."""
    machine.process(600, "", "70", uid=MALLORY, program=RAYLET.replace("raylet/raylet", "gcs/gcs_server"))
    options = b"gcs_server\0--gcs_server_port=6380\0--node-ip-address=192.168.1.5\0--x=1\0"
    (machine.root / "600/cmdline").write_bytes(options)
    machine.process(610, "", "71", "80", uid=MALLORY)
    machine.process(620, "", "72", "81", uid=1002)  # Another user who calls that GCS.
    for port, inode in enumerate(("70", "71", "72"), start=5000):
        machine.listen(port, inode)
    for inode in ("80", "81"):
        machine.sockets[ESTABLISHED].append(Socket(50003, "192.168.1.5", "192.168.1.5", inode))
        machine.remote_ports[inode] = 6380
    found = look()
    assert [found[port] for port in range(5000, 5003)] == [True, True, False]


@pytest.mark.parametrize("port", [b"65536", b"9" * 5000])
def test_a_claim_with_an_impossible_port_is_ignored(machine: Machine, look: Look, port: bytes) -> None:
    """The attack: an ordinary user's programs have the names of Ray's, and words that end the agent's guard."""
    machine.process(500, "", "70", uid=MALLORY, program=f"/home/mallory{RAYLET}")
    (machine.root / "500/cmdline").write_bytes(b"raylet\0--gcs-address=192.168.1.5:" + port + b"\0")
    machine.process(600, "", "71", uid=MALLORY, program=RAYLET.replace("raylet/raylet", "gcs/gcs_server"))
    options = b"gcs_server\0--gcs_server_port=" + port + b"\0--node-ip-address=192.168.1.5\0"
    (machine.root / "600/cmdline").write_bytes(options)
    for listening, inode in ((5000, "70"), (5001, "71")):
        machine.listen(listening, inode)
    assert [look()[listening] for listening in (5000, 5001, 6379)] == [True, True, True]


def test_a_raylets_child_of_another_user_is_not_rays(machine: Machine, look: Look) -> None:
    machine.process(500, "", uid=MALLORY, program=f"{RAYLET} (deleted)")
    machine.process(501, "", "70", uid=MALLORY)
    machine.process(502, "", "71", uid=0)
    machine.listen(5000, "70")
    machine.listen(5001, "71")
    found = look()
    assert (found[5000], found[5001]) == (True, False)


def test_listeners_are_attributed_to_ray_or_not(machine: Machine, look: Look) -> None:
    found = look()
    assert found == {6379: True, 41000: True, 8000: False, 10007: True, 10009: False, 2049: None}


def test_nothing_new_costs_no_look_at_processes(machine: Machine, home: Home) -> None:
    look = Listeners(home, ADA, lambda: GCS)
    first = look()
    assert look() == first
    assert machine.looks == 1
    machine.listen(41001, "7")
    (machine.root / "100/fd/7").symlink_to("socket:[7]")
    assert ListeningSocket(41001, "0.0.0.0", True) in look()
    assert machine.looks == 2


def test_a_process_without_a_gcs_connection_may_become_a_driver(
    machine: Machine, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("meshray.raynode.listeners.time.monotonic", lambda: now[0])
    look = Listeners(home, ADA, lambda: GCS)
    assert ListeningSocket(10009, "0.0.0.0", False) in look()
    machine.sockets[ESTABLISHED].append(Socket(50002, "10.99.0.2", "10.99.0.1", "50"))
    assert ListeningSocket(10009, "0.0.0.0", False) in look()
    now[0] += RECHECK_S + 1
    assert ListeningSocket(10009, "0.0.0.0", True) in look()


def test_a_driver_of_a_mesh_whose_gcs_has_another_port_is_known(machine: Machine, home: Home) -> None:
    machine.process(510, "", "71", "72", uid=ADA)
    machine.listen(5001, "71")
    machine.sockets[ESTABLISHED].append(Socket(50003, "10.99.0.2", "10.99.0.1", "72"))
    machine.remote_ports["72"] = 6380
    assert ListeningSocket(5001, "0.0.0.0", False) in Listeners(home, ADA, lambda: GCS)()
    assert ListeningSocket(5001, "0.0.0.0", True) in Listeners(home, ADA, lambda: Endpoint("10.99.0.1", 6380))()


def test_in_a_pod_a_hidden_program_is_rays(machine: Machine, home: Home) -> None:
    """The kernel's own sockets (2049) have no program either; a pod has none."""
    found = {found.port: found.of_ray for found in Listeners(home, ADA, lambda: GCS, hidden=True)()}
    assert found == {6379: True, 41000: True, 8000: False, 10007: True, 10009: False, 2049: True}


@pytest.mark.parametrize(
    ("environ", "external", "hides", "is_machines", "expected"),
    [
        ({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, False, True, False, True),
        ({}, True, True, False, True),
        ({}, False, True, False, False),
        ({}, True, False, False, False),
        ({}, True, True, True, False),
    ],
    ids=["worker pod", "sidecar", "container", "everything is seen", "the machine's network"],
)
def test_where_hidden_programs_are_rays(
    environ: dict[str, str],
    external: bool,
    hides: bool,
    is_machines: bool,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listeners, "hides_processes", lambda: hides)
    monkeypatch.setattr(listeners, "shares_machines_network", lambda: is_machines)
    assert listeners.hidden_are_rays(environ, external=external) is expected
