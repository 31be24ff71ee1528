"""Two real engines, wireguard-go and meshray's own, in two network namespaces; the oracles: `wg`, `ip`, `ping`, /proc.

Each host is one `unshare --net --mount` with its own /run. Every action of meshray runs in a separate process inside
such a host (``python test_wireguard_device.py ACTION``), so each action also proves that the engine outlives its
starter and is found again.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.model.address import Endpoint
from meshray.model.keys import PresharedKey, PrivateKey, PublicKey
from meshray.wireguard.conf import render
from meshray.wireguard.config import DeviceConfig, DeviceState, PeerConfig
from meshray.wireguard.engines import BUNDLED
from meshray.wireguard.open import check_available, open_device
from meshray.wireguard.plan import plan

NAME = "meshray0"
PORT = 51888
ROOT = Path(__file__).resolve().parents[2]


# ---- what runs inside a host


def _config(spec: dict[str, Any]) -> DeviceConfig:
    peers = [
        PeerConfig(
            PublicKey.parse(peer["key"]),
            frozenset(IPv4Network(text) for text in peer["allowed"]),
            preshared_key=PresharedKey(bytes.fromhex(peer["psk"])) if peer.get("psk") else None,
            endpoint=Endpoint.parse(peer["endpoint"]) if peer.get("endpoint") else None,
            keepalive_s=peer.get("keepalive", 0),
        )
        for peer in spec["peers"]
    ]
    addresses = tuple(IPv4Interface(text) for text in spec["addresses"])
    by_key = {peer.public_key: peer for peer in peers}
    return DeviceConfig(PrivateKey.parse(spec["key"]), spec.get("port", PORT), addresses, spec.get("mtu", 1380), by_key)


def _state(state: DeviceState | None) -> dict[str, Any] | None:
    if state is None:
        return None
    return {
        "port": state.listen_port,
        "mtu": state.mtu,
        "up": state.up,
        "addresses": [str(address) for address in state.addresses],
        "peers": {
            str(key): {
                "allowed": sorted(str(network) for network in peer.config.allowed_ips),
                "endpoint": str(peer.config.endpoint),
                "keepalive": peer.config.keepalive_s,
                "psk": peer.config.preshared_key is not None,
                "handshake": peer.last_handshake,
                "rx": peer.rx_bytes,
                "tx": peer.tx_bytes,
            }
            for key, peer in state.peers.items()
        },
    }


def _act(action: str, spec: dict[str, Any]) -> object:
    if action == "check":
        return check_available()
    device = open_device(NAME, Home.from_environment())
    if action == "read":
        return _state(device.read())
    if action == "remove":
        device.remove()
        device.remove()
        return None
    steps = plan(device.read(), _config(spec))
    device.apply(steps)
    if action == "apply-and-die":
        print(json.dumps([str(step) for step in steps]), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return [str(step) for step in steps]


def main() -> None:
    try:
        answer = _act(sys.argv[1], json.load(sys.stdin))
    except MeshrayError as error:
        answer = {"error": error.to_json()}
    print(json.dumps(answer))


# ---- the hosts


@dataclass
class Host:
    """A network and mount namespace, held by one sleeping process."""

    pid: int
    folder: Path
    program: str

    def run(self, *argv: str, stdin: str = "", check: bool = True) -> str:
        inside = ["nsenter", "-t", str(self.pid), "-m", "-n", "--wd=/", *argv]
        environ = {
            **os.environ,
            "MESHRAY_HOME": str(self.folder / "state"),
            "MESHRAY_RUN": str(self.folder / "run"),
            "MESHRAY_WIREGUARD": "userspace",
            "MESHRAY_ENGINE": self.program,
            "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        }
        result = subprocess.run(
            inside, input=stdin, capture_output=True, text=True, timeout=60, env=environ, check=False
        )
        if check and result.returncode != 0:
            raise AssertionError(f"{argv}: {result.returncode}\n{result.stdout}\n{result.stderr}")
        return result.stdout

    def act(self, action: str, spec: dict[str, Any] | None = None) -> Any:
        spec = spec or {}
        return json.loads(self.run(sys.executable, __file__, action, stdin=json.dumps(spec), check="die" not in action))

    def engine(self) -> int | None:
        file = self.folder / "run" / "engine.pid"
        return int(json.loads(file.read_text())["pid"]) if file.exists() else None


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    if shutil.which("wireguard-go") is None:
        pytest.skip("needs wireguard-go")
    # The other tests of this tier run with meshray's own engine: here it is the other end, and the stock one is tested.
    programs = {"one": "wireguard-go", "two": str(BUNDLED) if BUNDLED.exists() else "wireguard-go"}
    holders = [_holder() for _ in range(2)]
    one, two = (
        Host(holder.pid, tmp_path / name, program)
        for holder, (name, program) in zip(holders, programs.items(), strict=True)
    )
    try:
        for host in (one, two):
            (host.folder / "state").mkdir(parents=True)
            (host.folder / "run").mkdir()
            host.run("ip", "link", "set", "lo", "up")
        subprocess.run(
            f"ip link add wan netns {one.pid} type veth peer name wan netns {two.pid}".split(),
            check=True,
            timeout=10,
        )
        for host, address in ((one, "192.0.2.1/24"), (two, "192.0.2.2/24")):
            host.run("ip", "address", "add", address, "dev", "wan")
            host.run("ip", "link", "set", "wan", "up")
        yield one, two
    finally:
        for host in (one, two):
            engine = host.engine()
            if engine is not None and _lives(engine):
                os.kill(engine, signal.SIGKILL)
        for holder in holders:
            holder.kill()
            holder.wait(10)


def _holder() -> subprocess.Popen[bytes]:
    script = "mount -t tmpfs tmpfs /run && echo ready && exec sleep 600"
    holder = subprocess.Popen(
        ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", script],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert holder.stdout is not None
    with holder.stdout as output:
        assert output.readline() == b"ready\n"
    return holder


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _until(condition: Callable[[], bool], deadline_s: float = 10) -> bool:
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


KEYS = [PrivateKey.generate(), PrivateKey.generate(), PrivateKey.generate()]
PUBLIC = [str(key.public()) for key in KEYS]
PSK = os.urandom(32).hex()


def _spec(own: int, other: int, **changes: Any) -> dict[str, Any]:
    peer = {
        "key": PUBLIC[other],
        "allowed": ["10.99.0.0/16"],
        "psk": PSK,
        "endpoint": f"192.0.2.{other + 1}:{PORT}",
        "keepalive": 20,
    }
    addresses = [f"10.99.0.{own + 1}/16", f"10.99.128.{own + 1}/32"]
    return {"key": KEYS[own].reveal(), "addresses": addresses, "peers": [{**peer, **changes}]}


def _ping(host: Host, address: str, *options: str) -> bool:
    return " 0% packet loss" in host.run("ping", "-c", "2", "-i", "0.2", "-W", "3", *options, address, check=False)


def _dump(host: Host) -> list[list[str]]:
    return [line.split("\t") for line in host.run("wg", "show", NAME, "dump").splitlines()]


def _address_facts(host: Host) -> tuple[set[str], dict[str, Any]]:
    link = json.loads(host.run("ip", "-json", "-4", "address", "show", "dev", NAME))[0]
    return {f"{entry['local']}/{entry['prefixlen']}" for entry in link["addr_info"]}, link


def test_two_engines_talk_and_every_tool_agrees(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    assert one.act("read") is None
    # The process that made the first device is killed right after; the engine continues.
    steps = one.act("apply-and-die", _spec(0, 1))
    assert steps[0] == "create the device"
    assert not any(KEYS[0].reveal() in step or PSK in step for step in steps)
    engine = one.engine()
    assert engine is not None
    assert _lives(engine)
    two.act("apply", _spec(1, 0))

    assert _ping(one, "10.99.0.2")
    assert _ping(two, "10.99.128.1")
    assert _ping(one, "10.99.0.2", "-M", "do", "-s", str(1380 - 28))

    for host, own, other in ((one, 0, 1), (two, 1, 0)):
        state = host.act("read")
        (private, public, port, _), peer = _dump(host)
        assert (private, public, int(port)) == (KEYS[own].reveal(), PUBLIC[own], state["port"])
        seen = state["peers"][PUBLIC[other]]
        assert peer[0] == PUBLIC[other]
        assert (peer[2], peer[3].split(","), int(peer[7])) == (seen["endpoint"], seen["allowed"], seen["keepalive"])
        assert bytes.fromhex(PSK) == PresharedKey.parse(peer[1]).raw
        assert int(peer[4]) == int(seen["handshake"]) > time.time() - 60
        assert 0 < seen["rx"] <= int(peer[5])
        assert 0 < seen["tx"] <= int(peer[6])
        addresses, link = _address_facts(host)
        assert addresses == set(state["addresses"])
        assert (link["mtu"], state["mtu"], state["up"], "UP" in link["flags"]) == (1380, 1380, True, True)
        assert host.act("apply", _spec(own, other)) == []
    # Adopted, not started a second time.
    assert one.engine() == engine


def test_moving_allowed_ips_between_peers(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    two.act("apply", _spec(1, 0))
    hub = {"key": PUBLIC[2], "allowed": ["10.99.0.0/16"], "endpoint": "192.0.2.9:51888"}
    direct = _spec(0, 1, allowed=["10.99.128.2/32"])
    direct["peers"].append(hub)
    one.act("apply", direct)
    assert _ping(one, "10.99.128.2")
    assert not _ping(one, "10.99.0.2", "-W", "1")

    direct["peers"][0]["allowed"] = ["10.99.128.2/32", "10.99.0.2/32"]
    assert one.act("apply", direct) == [f"update peer {PUBLIC[1]}: allowed 10.99.0.2/32 10.99.128.2/32"]
    assert _ping(one, "10.99.0.2")

    # And from one peer to the other in one step: the hub gets the direct peer's addresses.
    hub["allowed"] = ["10.99.0.0/16", "10.99.0.2/32"]
    direct["peers"][0]["allowed"] = ["10.99.128.2/32"]
    assert len(one.act("apply", direct)) == 1
    allowed = {line[0]: set(line[3].split(",")) for line in _dump(one)[1:]}
    assert allowed == {PUBLIC[1]: {"10.99.128.2/32"}, PUBLIC[2]: {"10.99.0.0/16", "10.99.0.2/32"}}
    assert one.act("apply", direct) == []


def test_changes_of_everything_converge(hosts: tuple[Host, Host]) -> None:
    one, _ = hosts
    one.act("apply", _spec(0, 1))
    other = _spec(0, 2, psk=None, keepalive=0)
    other.update(port=PORT + 1, mtu=1280, addresses=["10.99.0.8/16", "10.99.128.1/32", "10.99.0.9/16"])
    one.act("apply", other)
    assert one.act("apply", other) == []
    device, peer = _dump(one)
    assert int(device[2]) == PORT + 1
    assert peer[:2] == [PUBLIC[2], "(none)"]
    assert _address_facts(one)[0] == set(other["addresses"])
    # The primary is removed, and would take its secondary along.
    other["addresses"] = ["10.99.0.9/16"]
    one.act("apply", other)
    assert one.act("apply", other) == []
    assert _address_facts(one)[0] == {"10.99.0.9/16"}


def test_a_peer_without_endpoint_keeps_the_learnt_one(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    one.act("apply", _spec(0, 1, endpoint=None))
    two.act("apply", _spec(1, 0))
    assert _ping(two, "10.99.0.1")
    assert one.act("read")["peers"][PUBLIC[1]]["endpoint"] == f"192.0.2.2:{PORT}"
    assert one.act("apply", _spec(0, 1, endpoint=None)) == []


def test_a_peer_moves_to_ipv6_and_the_engine_to_another_address(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    one.act("apply", _spec(0, 1))
    two.act("apply", _spec(1, 0))
    assert _ping(two, "10.99.0.1")
    for host, address in ((one, "2001:db8::1/64"), (two, "2001:db8::2/64")):
        host.run("ip", "address", "add", address, "dev", "wan", "nodad")
    two.act("apply", _spec(1, 0, endpoint=f"[2001:db8::1]:{PORT}"))
    assert _ping(two, "10.99.0.1")
    assert _until(lambda: one.act("read")["peers"][PUBLIC[1]]["endpoint"] == f"[2001:db8::2]:{PORT}")
    # Packets came to this address, and answers leave from the address to which packets came; until it is removed.
    for gone, new in (("2001:db8::2/64", "2001:db8::3/64"), ("192.0.2.2/24", "192.0.2.3/24")):
        two.run("ip", "address", "add", new, "dev", "wan", *(["nodad"] if ":" in new else []))
        two.run("ip", "address", "delete", gone, "dev", "wan")
    assert _ping(two, "10.99.0.1")
    assert one.act("read")["peers"][PUBLIC[1]]["endpoint"] == f"[2001:db8::3]:{PORT}"


def test_remove_leaves_nothing(hosts: tuple[Host, Host]) -> None:
    one, _ = hosts
    one.act("apply", _spec(0, 1))
    engine = one.engine()
    assert engine is not None
    one.act("remove")
    assert not _lives(engine)
    assert one.act("read") is None
    assert NAME not in one.run("ip", "-json", "link")
    assert one.run("ls", "/run/wireguard") == ""
    assert str(PORT) not in one.run("ss", "-lun")
    assert list((one.folder / "run").iterdir()) == []


def test_a_killed_engine_is_replaced(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    one.act("apply", _spec(0, 1))
    two.act("apply", _spec(1, 0))
    engine = one.engine()
    assert engine is not None
    os.kill(engine, signal.SIGKILL)
    assert _until(lambda: NAME not in one.run("ip", "-json", "link"))
    assert one.act("read") is None
    assert one.act("apply", _spec(0, 1))[0] == "create the device"
    assert _ping(one, "10.99.0.2")


def test_an_engine_whose_pid_file_was_lost_is_still_ours(hosts: tuple[Host, Host]) -> None:
    one, _ = hosts
    one.act("apply", _spec(0, 1))
    engine = one.engine()
    assert engine is not None
    (one.folder / "run" / "engine.pid").unlink()
    assert one.act("apply", _spec(0, 1)) == []
    one.act("remove")
    assert _until(lambda: not _lives(engine))
    assert NAME not in one.run("ip", "-json", "link")
    assert one.run("ls", "/run/wireguard") == ""


def test_foreign_objects_are_not_touched(hosts: tuple[Host, Host]) -> None:
    one, _ = hosts
    one.run("ip", "tuntap", "add", "dev", NAME, "mode", "tun")
    for action in ("read", "apply"):
        assert one.act(action, _spec(0, 1))["error"]["code"] == "foreign_interface"
    one.act("remove")
    assert NAME in one.run("ip", "-json", "link")
    one.run("ip", "link", "delete", NAME)

    # Another engine of the same name, in another network namespace but with the same /run.
    script = f"wireguard-go -f {NAME} >/run/foreign.log 2>&1 & echo $!"
    foreign = int(one.run("unshare", "--net", "sh", "-c", script))
    try:
        assert _until(lambda: f"{NAME}.sock" in one.run("sh", "-c", "ls /run/wireguard 2>/dev/null || true"))
        assert one.act("apply", _spec(0, 1))["error"]["code"] == "foreign_interface"
        one.act("remove")
        assert _lives(foreign)
    finally:
        os.kill(foreign, signal.SIGKILL)


def test_a_port_in_use_is_named_each_time(hosts: tuple[Host, Host]) -> None:
    one, _ = hosts
    script = f"import socket,time;s=socket.socket(2,2);s.bind(('',{PORT}));print(1,flush=True);time.sleep(60)"
    inside = ["nsenter", "-t", str(one.pid), "-n", sys.executable, "-c", script]
    with subprocess.Popen(inside, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            for _ in range(2):
                error = one.act("apply", _spec(0, 1))["error"]
                assert error["code"] == "port_in_use"
                assert str(PORT) in error["message"]
        finally:
            other.kill()
    one.act("apply", _spec(0, 1))
    assert one.act("read")["port"] == PORT


def test_a_missing_part_is_named_and_nothing_is_left_behind(hosts: tuple[Host, Host]) -> None:
    one, _ = hosts
    before = one.run("ip", "-json", "link")
    assert one.act("check") == "userspace"
    without_root = one.run("setpriv", "--bounding-set=-net_admin", sys.executable, __file__, "check", stdin="{}")
    assert json.loads(without_root)["error"]["code"] == "not_root"
    one.run("mount", "-t", "tmpfs", "tmpfs", "/dev/net")
    error = one.act("check")["error"]
    assert error["code"] == "no_tun"
    assert "/dev/net/tun is missing" in error["message"]
    assert "modprobe tun" in error["hint"]
    assert one.run("ip", "-json", "link") == before


@pytest.mark.parametrize("secrets", [True, False])
def test_wg_quick_and_wg_accept_what_is_rendered(hosts: tuple[Host, Host], tmp_path: Path, secrets: bool) -> None:
    one, _ = hosts
    spec = _spec(0, 1)
    spec["peers"].append({"key": PUBLIC[2], "allowed": ["10.98.0.0/16", "10.97.0.0/16"], "endpoint": "[2001:db8::7]:1"})
    config = _config(spec)
    file = tmp_path / "overlay.conf"
    file.write_text(render(config, {KEYS[1].public(): "head"}, secrets=secrets))
    file.chmod(0o600)
    stripped = one.run("wg-quick", "strip", str(file))
    assert "Address" not in stripped
    assert "MTU" not in stripped
    # `wg` works with any engine; this one is meshray's, of another identity and without peers.
    one.act("apply", {"key": PrivateKey.generate().reveal(), "port": PORT + 1, "addresses": [], "peers": []})
    one.run("wg", "setconf", NAME, "/dev/stdin", stdin=stripped)
    device, *peers = _dump(one)
    assert (device[0] == KEYS[0].reveal(), int(device[2])) == (secrets, PORT)
    shown = {(line[0], line[1], line[2], frozenset(line[3].split(",")), line[7]) for line in peers}
    psk = PresharedKey(bytes.fromhex(PSK)).reveal() if secrets else "(none)"
    assert shown == {
        (PUBLIC[1], psk, f"192.0.2.2:{PORT}", frozenset(["10.99.0.0/16"]), "20"),
        (PUBLIC[2], "(none)", "[2001:db8::7]:1", frozenset(["10.98.0.0/16", "10.97.0.0/16"]), "off"),
    }


if __name__ == "__main__":
    main()
