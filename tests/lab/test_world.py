"""The harness works as described: networks behave as their names imply, and nothing is left behind.

              switch wan 203.0.113.0/24
     ┌──────────────┬───────────────┬──────────────┐
  left-nat        server          other        right-nat
203.0.113.20   203.0.113.10   203.0.113.11   203.0.113.30
   (easy)                                    (symmetric)
     │                                             │
    left                                         right
192.168.7.10                                 192.168.8.10
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import leftovers
from tests.lab.firewalls import FirewallKind
from tests.lab.host import REPOSITORY, USER, USER_UID, CommandError, Host
from tests.lab.leftovers import CGROUPS, RunId, remove_cgroups, sweep
from tests.lab.waiting import DeadlineError, wait_until
from tests.lab.world import World

#: Prints the source address and port of each packet; ends after as many packets as the argument says.
WHO_SENT = """
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("0.0.0.0", 7000))
server.settimeout(10)
print("ready", flush=True)
for _ in range(int(sys.argv[1])):
    data, sender = server.recvfrom(100)
    print(*sender, flush=True)
    server.sendto(data, sender)
"""
#: Sends a packet from port 5000 to every given address, and waits for each answer.
SEND = """
import socket, sys
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.bind(("0.0.0.0", 5000))
client.settimeout(3)
for address in sys.argv[1:]:
    client.sendto(b"hello", (address, 7000))
    client.recv(100)
"""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World("test-world") as world:
        yield world


@pytest.fixture(scope="module")
def wan(world: World) -> Iterator[dict[str, Host]]:
    wan = world.switch("wan", "203.0.113.0/24")
    yield {
        "server": world.host("server", wan, "203.0.113.10"),
        "other": world.host("other", wan, "203.0.113.11"),
        "left": world.host(
            "left", world.router("left-nat", wan, "203.0.113.20", lan="192.168.7.0/24").lan, "192.168.7.10"
        ),
        "right": world.host(
            "right",
            world.router("right-nat", wan, "203.0.113.30", lan="192.168.8.0/24", kind="symmetric").lan,
            "192.168.8.10",
        ),
    }


def senders_seen(by: list[Host], sender: Host) -> list[str]:
    """Return the source of the sender's packets at each of the hosts, as "address port"."""
    servers = [host.popen([sys.executable, "-c", WHO_SENT, "1"]) for host in by]
    for host, server in zip(by, servers, strict=True):
        host.wait_until(lambda server=server: "ready" in server.output, 10, "the server")  # type: ignore[misc]
    sender.run([sys.executable, "-c", SEND, *(str(host.address) for host in by)])
    for server in servers:
        assert server.wait(10) == 0
    return [server.output.splitlines()[1] for server in servers]


def test_easy_nat_keeps_the_port_for_every_destination(wan: dict[str, Host]) -> None:
    seen = senders_seen([wan["server"], wan["other"]], wan["left"])
    assert seen == ["203.0.113.20 5000"] * 2


def test_symmetric_nat_takes_another_port_for_each_destination(wan: dict[str, Host]) -> None:
    seen = senders_seen([wan["server"], wan["other"]], wan["right"])
    assert {line.split()[0] for line in seen} == {"203.0.113.30"}
    assert len({line.split()[1] for line in seen}) == 2


def test_nothing_new_comes_through_a_nat(wan: dict[str, Host]) -> None:
    assert wan["left"].can_reach(wan["server"].address)
    for name, router in (("left", "203.0.113.20"), ("right", "203.0.113.30")):
        wan["server"].run(["ip", "route", "replace", str(wan[name].address), "via", router])
        assert not wan["server"].can_reach(wan[name].address)
        assert not wan["server"].can_reach(router)


def test_a_router_drops_and_does_not_reject(wan: dict[str, Host]) -> None:
    connect = "import socket; socket.create_connection(('203.0.113.20', 22), 1)"
    tried = wan["server"].run([sys.executable, "-c", connect], check=False)
    assert "TimeoutError" in tried.stderr


@pytest.mark.parametrize("kind", ["nft", "iptables", "ufw"])
def test_drop_inbound_admits_only_answers(kind: FirewallKind) -> None:
    with World(f"drop-{kind}") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        open_host = world.host("open", wan, "203.0.113.10")
        walled = world.host("walled", wan, "203.0.113.20")
        assert open_host.can_reach(walled.address)
        walled.drop_inbound(kind)
        connect = "import socket, sys; socket.create_connection((sys.argv[1], 7000), 2)"
        serve = [sys.executable, "-m", "http.server", "7000"]
        for server, client, comes_through in ((open_host, walled, True), (walled, open_host, False)):
            process = server.popen(serve)
            server.wait_until(lambda s=server: "7000" in s.run(["ss", "-tln"]).stdout, 10, "a listener")  # type: ignore[misc]
            tried = client.run([sys.executable, "-c", connect, str(server.address)], check=False)
            assert (tried.returncode == 0) is comes_through, tried.stderr
            if not comes_through:
                assert "TimeoutError" in tried.stderr
            process.stop()


def test_a_host_is_a_machine_of_its_own(wan: dict[str, Host]) -> None:
    left, right = wan["left"], wan["right"]
    assert left.run(["hostname"]).stdout == "left\n"
    assert left.run(["getent", "ahostsv4", "left"]).stdout.startswith("127.0.1.1")
    assert [link["ifname"] for link in left.run(["ip", "-json", "link"]).json()] == ["lo", "eth0"]
    for folder in ("/tmp", "/run", "/dev/shm", "/var/lib", "/root", "/etc"):
        left.shell(f"echo left > {folder}/whose")
        assert left.path(f"{folder}/whose").read_text() == "left\n"
        assert not right.path(f"{folder}/whose").exists()
        assert not Path(folder, "whose").exists()
    assert len(left.shell("ls -d /proc/[0-9]*").stdout.split()) < 6


def test_a_host_reaches_nothing_outside(wan: dict[str, Host]) -> None:
    assert wan["server"].run(["ip", "route", "get", "1.1.1.1"], check=False).returncode != 0
    assert not wan["left"].can_reach("1.1.1.1")


def test_commands_run_as_an_ordinary_user_too(wan: dict[str, Host]) -> None:
    answer = wan["left"].shell('id -u; echo "$HOME"; touch "$HOME/mine"; pwd', user=USER, cwd=f"/home/{USER}")
    assert answer.stdout.split() == [str(USER_UID), f"/home/{USER}", f"/home/{USER}"]
    assert wan["left"].run([sys.executable, "-c", "import meshray"], user=USER).returncode == 0


def test_a_tunnel_device_can_be_made(wan: dict[str, Host]) -> None:
    wan["left"].shell("ip tuntap add probe mode tun && ip link set probe up && ip link delete probe")


def test_orphans_are_reaped(wan: dict[str, Host]) -> None:
    left = wan["left"]
    left.shell("(setsid true & ) ; (setsid sh -c 'exit 3' &)")
    left.wait_until(lambda: "Z" not in left.shell("cat /proc/[0-9]*/stat | cut -d' ' -f3").stdout, 5, "the last zombie")


def test_a_failed_command_reports_where_and_why(wan: dict[str, Host]) -> None:
    with pytest.raises(CommandError, match=r"(?s)on left: sh -c .*: exit status 3\nsorry"):
        wan["left"].shell("echo sorry; exit 3")


def test_a_command_that_takes_too_long_is_killed(wan: dict[str, Host]) -> None:
    with pytest.raises(CommandError, match=r"not done after 0\.2 s"):
        wan["left"].run(["sleep", "4711"], deadline_s=0.2)
    wan["left"].wait_until(lambda: "4711" not in _commands(wan["left"]), 5, "the end of sleep")


def test_a_process_can_be_stopped(wan: dict[str, Host]) -> None:
    sleeper = wan["left"].popen(["sleep", "4712"])
    wan["left"].wait_until(lambda: "4712" in _commands(wan["left"]), 5, "sleep")
    assert sleeper.returncode is None
    assert sleeper.stop() == -signal.SIGTERM
    assert "4712" not in _commands(wan["left"])


def test_a_timed_out_wait_shows_the_logs(wan: dict[str, Host]) -> None:
    wan["left"].popen(["echo", "last words"]).wait(5)
    with pytest.raises(DeadlineError, match=r"(?s)in vain for pigs that fly on left .*last words"):
        wan["left"].wait_until(lambda: False, 0.1, "pigs that fly")


#: A world with some content, for as long as it is kept alive.
KEEPER = """
import signal, sys, time
from tests.lab.world import World
# A job in a script's background was born deaf to Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
with World("kept") as world:
    host = world.host("host", world.switch("wan", "203.0.113.0/24"), "203.0.113.10")
    host.popen(["sleep", "4713"])
    print(host.pid, world._folder, flush=True)
    if sys.argv[1] == "raise":
        raise RuntimeError("on purpose")
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["raise", signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_however_a_world_ends(how: str | signal.Signals) -> None:
    interfaces = _interfaces()
    keeper = subprocess.Popen(
        [sys.executable, "-c", KEEPER, str(how)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=REPOSITORY,
        start_new_session=True,
    )
    assert keeper.stdout
    pid, folder = keeper.stdout.readline().split()
    if isinstance(how, signal.Signals):
        # To the whole group, as a terminal does with Ctrl-C.
        os.killpg(keeper.pid, how)
    assert keeper.wait(10) != 0
    keeper.stdout.close()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 5, "the end of the host")
    if how == signal.SIGKILL:
        assert folder in sweep()
    assert not Path(folder).exists()
    assert _interfaces() == interfaces


def test_a_dead_runs_processes_are_swept_and_a_living_ones_are_not() -> None:
    init = [sys.executable, "-I", str(REPOSITORY / "tests/lab/init.py")]
    dead = RunId(pid=RunId.mine().pid, started=RunId.mine().started + 1)
    with (
        subprocess.Popen([*init, f"{dead}-w-h"], stdin=subprocess.PIPE) as of_dead,
        subprocess.Popen([*init, f"{RunId.mine()}-w-h"], stdin=subprocess.PIPE) as of_living,
        tempfile.TemporaryDirectory(prefix=f"{RunId.mine()}-") as kept,
    ):
        wait_until(lambda: f"process {of_dead.pid} of {dead}-w-h" in sweep(), 5, "the sweep")
        assert of_dead.wait(5) == -signal.SIGKILL
        assert of_living.poll() is None
        assert Path(kept).exists()
        of_living.kill()


def test_a_dead_runs_control_groups_are_swept_and_a_living_ones_are_not() -> None:
    dead = RunId(pid=RunId.mine().pid, started=RunId.mine().started + 1)
    parent = next((one for one in CGROUPS.iterdir() if (one / "cgroup.procs").exists()), CGROUPS)
    groups = [parent / f"{run}-sweep" for run in (dead, RunId.mine())]
    try:
        for group in groups:
            (group / "pod" / "container").mkdir(parents=True)
        assert f"control groups {dead}-sweep" in sweep()
        assert [group.exists() for group in groups] == [False, True]
    finally:
        for group in groups:
            remove_cgroups(group.name)


def test_two_sweeps_at_once_remove_a_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tmp_path / "meshray-lab-1-1-sweep"
    group.mkdir()
    real = os.scandir

    def removed_by_the_other(folder: str | Path) -> object:
        if Path(folder) == group:
            group.rmdir()
        return real(folder)

    monkeypatch.setattr(leftovers, "CGROUPS", tmp_path)
    monkeypatch.setattr(os, "scandir", removed_by_the_other)
    remove_cgroups(group.name)
    assert not group.exists()


def test_a_world_starts_quickly(wan: dict[str, Host]) -> None:
    # Measured: 0.4 s for four hosts and 4 ms for a command; ten times that means a fault.
    assert wan["left"].run(["true"], deadline_s=1).returncode == 0


def _commands(host: Host) -> str:
    return host.shell("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '").stdout


def _interfaces() -> list[str]:
    links = json.loads(subprocess.run(["ip", "-json", "link"], check=True, capture_output=True).stdout)
    return [link["ifname"] for link in links]
