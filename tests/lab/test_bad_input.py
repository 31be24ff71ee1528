"""Wrong input and unsuitable machines: one line with the error, one with the fix, and no change.

            switch wan 203.0.113.0/24
    ┌───────────┬───────────┬───────────┬───────────┐
  head        other       later       outsider    walled
  a mesh      another     a mesh      in no mesh  drops all
              mesh        with Ray                inbound

Every test runs the real command in a real host, and compares that host before and after.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from meshray.model.address import Endpoint
from meshray.model.token import Token
from meshray.wireguard.engines import BUNDLED
from tests.lab.host import USER, Host, HostProcess
from tests.lab.world import World

#: Everything that a command could leave on a machine. Sizes and times of logs are not part of it.
LOOK = """
find /var/lib/meshray /run/meshray ! -name '*.log' ! -type d -exec stat -c '%n %a %U %s %Y' {} + 2>/dev/null | sort
find /var/lib/meshray /run/meshray ! -name '*.log' -type f -exec sha256sum {} + 2>/dev/null | sort
stat -c '%n %a' /etc /tmp /var/lib /var/lib/meshray /run/meshray 2>/dev/null
ip -br address | sort; ip route show table all | sort; nft list ruleset 2>/dev/null
ps -eo pid,args | grep -E 'meshray|wireguard-go|ray' | grep -vE 'grep|init.py|sh -c|ps -eo|privileged.self_check'
true
"""
#: A Ray that only reports its version, and that runs until it is stopped.
FAKE_RAY = """
mkdir -p {folder}/bin {folder}/site/ray-{version}.dist-info
printf 'Metadata-Version: 2.1\\nName: ray\\nVersion: {version}\\n' > {folder}/site/ray-{version}.dist-info/METADATA
printf '#!/bin/sh\\nPYTHONPATH={folder}/site exec %s "$@"\\n' "$(command -v python)" > {folder}/bin/python
printf '#!{folder}/bin/python\\nimport time\\ntime.sleep(600)\\n' > {folder}/bin/ray
chmod +x {folder}/bin/python {folder}/bin/ray
"""


class Place:
    """The hosts, and their known state."""

    def __init__(self, world: World) -> None:
        wan = world.switch("wan", "203.0.113.0/24")
        names = ("head", "other", "later", "outsider", "walled")
        self.head, self.other, self.later, self.outsider, self.walled = (
            world.host(name, wan, f"203.0.113.{number}") for number, name in enumerate(names, 10)
        )
        self.walled.drop_inbound()
        self.token = up(self.head, "init", "--no-ray")["token"]
        self.other_token = up(self.other, "init", "--no-ray")["token"]

    def new_token(self, *options: str) -> str:
        return str(up(self.head, "token", "create", *options)["token"])

    def mesh(self) -> Any:
        """Return tokens and nodes in the coordinator's lists."""
        nodes = up(self.head, "node", "list")["nodes"]
        return up(self.head, "token", "list")["tokens"], [(node["name"], node["ip"]) for node in nodes]


def up(host: Host, *words: str) -> dict[str, Any]:
    answer = host.run(["meshray", *words, "--json"], deadline_s=90).json()
    assert isinstance(answer, dict)
    return answer


def look(host: Host) -> str:
    return host.shell(LOOK).stdout


def refused(host: Host, words: Sequence[str], exit_code: int, code: str, *parts: str, **options: Any) -> str:
    """Run a command that must be refused; return its output. `parts` are in error or hint."""
    before = look(host)
    program = options.pop("program", "meshray")
    done = host.run([program, *words, "--json"], check=False, deadline_s=90, **options)
    answer = done.stderr
    assert done.returncode == exit_code, answer
    assert "Traceback" not in answer
    assert done.stdout.count("\n") == 1
    error = json.loads(done.stdout)["error"]
    assert error["code"] == code
    last = answer.splitlines()[-2:]
    assert last == [f"error: {error['message']}", f"hint: {error['hint']}"]
    assert error["hint"]
    for part in parts:
        assert part in f"{error['message']}\n{error['hint']}"
    assert look(host) == before
    return f"{error['message']}\n{error['hint']}"


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with World("bad-input") as world:
        yield Place(world)


def test_invalid_tokens_are_refused(place: Place) -> None:
    outsider, join = place.outsider, ("join", "--no-ray")
    revoked, expired = place.new_token(), place.new_token("--ttl", "1s")
    made = time.monotonic()
    up(place.head, "token", "revoke", Token.parse(revoked).token_id)
    spent = place.new_token()
    up(place.walled, "join", "--no-ray", spent)
    before = place.mesh()
    refused(outsider, [*join, place.token[:-5]], 4, "token_damaged", "cut short", "copy the whole line")
    refused(outsider, [*join, "hello"], 2, "not_a_token", "meshray token create")
    refused(outsider, [*join, "-"], 2, "not_a_token", "standard input")
    refused(outsider, [*join, "@/root/no-such-file"], 2, "token_file", "/root/no-such-file", "No such file")
    strange = replace(Token.parse(place.token), coordinators=Token.parse(place.other_token).coordinators)
    refused(outsider, [*join, strange.encode()], 4, "token_other_mesh", f"{place.other.address}:51888")
    refused(outsider, [*join, revoked], 4, "token_revoked", "meshray token create")
    refused(outsider, [*join, spent], 4, "token_used_up", "meshray token create")
    time.sleep(max(0.0, made + 1.1 - time.monotonic()))
    refused(outsider, [*join, "-"], 4, "token_expired", "meshray token create", stdin=expired)
    assert place.mesh() == before
    up(place.walled, "leave")


def test_taken_and_invalid_names_are_refused(place: Place) -> None:
    before = place.mesh()
    join = ("join", "--no-ray", place.token)
    refused(place.outsider, [*join, "--name", "head"], 4, "name_taken", "head", "head-2")
    for name in ("no_host_name", ""):
        refused(place.outsider, [*join, "--name", name], 2, "bad_name", repr(name)[:40])
    assert place.mesh() == before


def test_a_network_that_overlaps_a_route(place: Place) -> None:
    outsider = place.outsider
    token = place.new_token()
    before = place.mesh()
    outsider.run(["ip", "route", "add", "10.99.5.0/24", "via", str(place.head.address)])
    try:
        chosen = ["init", "--no-ray", "--network", "10.99.0.0/16"]
        refused(outsider, chosen, 1, "network_overlap", "10.99.5.0/24 on eth0", "--network 10.201.0.0/16")
        assert up(outsider, "init", "--no-ray")["node"]["ip"] == "10.201.0.1"
        up(outsider, "leave", "--yes")
        # Only the coordinator knows the network: this machine was a node for a moment, and returns the token's use.
        refused(
            outsider, ["join", "--no-ray", token], 1, "network_overlap", "10.99.5.0/24 on eth0", "create the mesh again"
        )
        assert place.mesh() == before
    finally:
        outsider.run(["ip", "route", "delete", "10.99.5.0/24"])
    # A wider one, of an office's VPN, remains beside the overlay.
    outsider.run(["ip", "route", "add", "10.0.0.0/8", "via", str(place.head.address)])
    up(outsider, "join", "--no-ray", token)
    assert outsider.can_reach("10.99.0.1", deadline_s=10)
    up(outsider, "leave")
    outsider.run(["ip", "route", "delete", "10.0.0.0/8"])


@pytest.mark.parametrize("kind", ["udp", "tcp"])
def test_a_port_in_use(place: Place, kind: str) -> None:
    holder = hold_port(place.outsider, kind, 51888)
    try:
        refused(
            place.outsider, ["init", "--no-ray"], 1, "port_in_use", f"{kind.upper()} port 51888", "python", "--port"
        )
        # A worker accepts any port.
        up(place.outsider, "join", "--no-ray", place.token)
        up(place.outsider, "leave")
    finally:
        holder.stop()


def test_wireguard_is_unavailable(place: Place) -> None:
    outsider = place.outsider
    for words in (["init", "--no-ray"], ["join", "--no-ray", place.token]):
        outsider.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/net"])
        try:
            refused(outsider, words, 1, "no_tun", "/dev/net/tun is missing", "modprobe tun")
        finally:
            outsider.run(["umount", "/dev/net"])
        meshray = outsider.shell("command -v meshray").stdout.strip()
        lost = ["PATH=/nonexistent", meshray, *words]
        built = BUNDLED.exists()
        if built:
            outsider.shell(f"touch /root/no-engine; mount --bind /root/no-engine {BUNDLED}")
        try:
            refused(outsider, lost, 1, "no_wireguard", "apt-get install wireguard-go", program="/usr/bin/env")
        finally:
            if built:
                outsider.run(["umount", BUNDLED])


def test_not_root(place: Place) -> None:
    outsider = place.outsider
    meshray = outsider.shell("command -v meshray").stdout.strip()
    for command in ("up", "down", "leave"):
        refused(outsider, [command], 1, "not_enrolled", "not in a mesh", user=USER)
    # It may be a node of root, which the user cannot read.
    outsider.shell("install -d -m 700 /var/lib/meshray")
    for command in ("up", "down", "leave"):
        output = refused(outsider, [command], 1, "not_root", user=USER)
        assert output.splitlines()[-1] == f"sudo {meshray} {command} --json"
    outsider.shell("rmdir /var/lib/meshray")


def test_a_missing_ray_is_reported(place: Place) -> None:
    outsider, before = place.outsider, place.mesh()
    refused(outsider, ["join", "--ray", "/nonexistent", place.token], 1, "ray_missing", "/nonexistent", "--ray PATH")
    ray = outsider.shell("command -v ray").stdout.strip()
    outsider.run(["mount", "--bind", "/dev/null", ray])
    try:
        for words in (["init"], ["join", place.token]):
            refused(outsider, words, 1, "ray_missing", "Ray is not installed", "pip install", "--no-ray")
    finally:
        outsider.run(["umount", ray])
    assert place.mesh() == before


def test_another_ray_than_the_head_s_and_ctrl_c_while_ray_starts(place: Place) -> None:
    later, outsider = place.later, place.outsider
    before = look(later)
    later.shell(FAKE_RAY.format(folder="/root/ray", version="2.59.0"))
    outsider.shell(FAKE_RAY.format(folder="/root/ray", version="2.58.1"))
    init = later.popen(["meshray", "init", "--ray", "/root/ray"])
    later.wait_until(lambda: "\nray: …" in init.output, 60, "init has come to Ray")
    later.wait_until(lambda: "coordinator: ok" in init.output, 30, "the coordinator")
    token = up(later, "token", "create")["token"]
    refused(
        outsider,
        ["join", "--ray", "/root/ray", token],
        1,
        "version_mismatch",
        "Ray 2.59.0",
        "Ray 2.58.1",
        "--env match",
    )
    assert [item["used"] for item in up(later, "token", "list")["tokens"]] == [0, 0]
    init.send_signal(signal.SIGINT)
    assert init.wait(60) == 130, init.output
    assert init.output.splitlines()[-1] == "error: interrupted"
    assert "Traceback" not in init.output
    later.shell("rm -r /var/lib/meshray/log.failed && rmdir /var/lib/meshray")
    assert look(later) == before


def test_a_coordinator_that_cannot_be_reached(place: Place) -> None:
    token = Token.parse(place.token)

    def to(*endpoints: str) -> list[str]:
        places = tuple(Endpoint.parse(endpoint) for endpoint in endpoints)
        return ["join", "--no-ray", replace(token, coordinators=places).encode()]

    outsider, code = place.outsider, "coordinator_unreachable"
    walled = f"{place.walled.address}:51888"
    refused(outsider, to(walled), 5, code, f"{walled}: no answer in 30 s", "TCP port 51888")
    refused(
        outsider,
        to("203.0.113.10:1", "no-such-host.example:51888", "198.51.100.7:51888"),
        5,
        code,
        "203.0.113.10:1: connection refused",
        "no-such-host.example:51888: the name does not resolve",
        "198.51.100.7:51888: network is unreachable",
    )
    # One address that answers is enough.
    up(outsider, *to("198.51.100.7:51888", "203.0.113.10:51888"))
    up(outsider, "leave")


def test_init_and_join_on_a_machine_that_is_a_node_already(place: Place) -> None:
    again = up(place.head, "init", "--no-ray")
    assert (again["already"], again["token"], again["node"]["name"]) == (True, None, "head")
    refused(
        place.head,
        ["init", "--no-ray", "--network", "10.7.0.0/16"],
        1,
        "already_enrolled",
        "head of a mesh already",
        "meshray token create",
    )
    refused(
        place.head, ["join", "--no-ray", place.other_token], 1, "already_enrolled", "head of a mesh", "meshray leave"
    )
    up(place.outsider, "join", "--no-ray", place.token)
    # The guard closes the agent's port for metrics within a second after it listens.
    rules = ["nft", "list", "ruleset"]
    place.outsider.wait_until(lambda: "dport 20190" in place.outsider.run(rules).stdout, 10, "the guard's rule")
    node = up(place.outsider, "status")["nodes"][-1]
    again = up(place.outsider, "join", "--no-ray", place.token)
    assert (again["already"], again["node"]) == (True, {"name": "outsider", "ip": node["ip"]})
    refused(place.outsider, ["join", "--no-ray", place.other_token], 1, "already_enrolled", "meshray leave")
    refused(place.outsider, ["init", "--no-ray"], 1, "already_enrolled", "as outsider", "meshray leave")
    up(place.outsider, "leave")


def test_commands_that_need_a_node_report_it_elsewhere(place: Place) -> None:
    for words in (["up"], ["down"], ["leave"]):
        refused(place.outsider, words, 1, "not_enrolled", "meshray join")
    for words in (["status"], ["token", "list"], ["ping", "head"], ["env"]):
        refused(place.outsider, words, 5, "agent_down", "not in a mesh", "meshray init")


def test_damaged_state_is_kept_and_named_and_a_lost_map_is_restored(place: Place) -> None:
    node = place.outsider
    up(node, "join", "--no-ray", place.token)
    for host, names in (
        (node, ("map.json", "node.json", "private.key")),
        (place.other, ("map.json", "coordinator.db")),
    ):
        ip = up(host, "status")["nodes"][-1]["ip"]
        up(host, "down")
        host.shell("cp -a /var/lib/meshray /root/good")
        for name in names:
            host.shell(f"printf 'half a f' > /var/lib/meshray/{name}")
            refused(host, ["up"], 1, _code(name), f"/var/lib/meshray/{name} is damaged")
            host.shell("rm -r /var/lib/meshray && cp -a /root/good /var/lib/meshray")
        host.shell("rm -r /root/good /var/lib/meshray/map.json")
        assert up(host, "up")["node"]["ip"] == ip
    up(node, "leave")


def test_folders_that_are_not_meshray_s(place: Place) -> None:
    outsider, token = place.outsider, place.new_token()
    before = place.mesh()
    outsider.shell("mkdir /root/tiny && mount -t tmpfs -o size=4k tmpfs /root/tiny")
    try:
        for words in (["init", "--no-ray"], ["join", "--no-ray", token]):
            refused(outsider, words, 1, "state_foreign", "/etc is not empty", env={"MESHRAY_HOME": "/etc"})
            full = {"MESHRAY_HOME": "/root/tiny/state"}
            refused(outsider, words, 1, "system", "/root/tiny/state", "No space left", "MESHRAY_HOME", env=full)
            assert outsider.shell("ls -A /root/tiny").stdout == ""
        outsider.run(["mount", "-o", "remount,ro", "/root/tiny"])
        refused(outsider, words, 1, "system", "/root/tiny/state", "Read-only", "MESHRAY_HOME", env=full)
        refused(outsider, words, 1, "state_damaged", "Not a directory", env={"MESHRAY_HOME": "/dev/null"})
    finally:
        outsider.run(["umount", "/root/tiny"])
    assert place.mesh() == before


@pytest.mark.parametrize("ending", [">/dev/full", ">&-", "2>&1 | head -1"])
def test_an_unread_answer_undoes_nothing(place: Place, ending: str) -> None:
    outsider = place.outsider
    answer = outsider.shell(f"meshray join --no-ray {place.token} {ending}", check=False).stderr
    assert "Traceback" not in answer
    assert "unexpected" not in answer
    assert "Exception ignored" not in answer
    assert up(outsider, "status")["self"] == "outsider"
    up(outsider, "leave")


def hold_port(host: Host, kind: str, port: int) -> HostProcess:
    number = {"tcp": "socket.SOCK_STREAM", "udp": "socket.SOCK_DGRAM"}[kind]
    code = (
        f"import socket, time; s = socket.socket(socket.AF_INET, {number});"
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1);"
        f"s.bind(('0.0.0.0', {port})); {'s.listen();' if kind == 'tcp' else ''}"
        "print('bound', flush=True); time.sleep(300)"
    )
    holder = host.popen(["python", "-c", code])
    host.wait_until(lambda: "bound" in holder.output, 20, f"{kind} port {port} is taken")
    return holder


def _code(name: str) -> str:
    return {"map.json": "cache_damaged", "coordinator.db": "store_corrupt"}.get(name, "state_damaged")
