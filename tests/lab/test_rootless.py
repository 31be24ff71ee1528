"""Nodes of an ordinary user, in separate namespaces: two on one machine, beside a head that root runs.

               switch wan 203.0.113.0/24
        ┌─────────────┴──────────────┐
      head                          login      ada has two nodes here, each with its own state folder:
  203.0.113.10                  203.0.113.20     first (her home)  second (MESHRAY_HOME)
                                drops all inbound

The tests build on each other, in this order; the last one removes the two nodes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.lab.cluster import RAY_ARGS, UP_DEADLINE_S, Cluster
from tests.lab.host import USER, USER_UID, Host, Result
from tests.lab.unprivileged import give_tun, traces
from tests.lab.world import World

SECOND = {"MESHRAY_HOME": f"/home/{USER}/second"}
#: The folder of a node in her home.
RUN = f"/home/{USER}/.local/share/meshray/run"
#: Prints the user, the pid and network namespaces, the capabilities, and what it sees.
LOOK = """
import json, os, socket
from pathlib import Path
status = dict(line.split(":\\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\\t" in line)
interfaces = sorted(name for _, name in socket.if_nameindex())
print(json.dumps({"uid": os.getuid(), "capabilities": int(status["CapEff"], 16), "cwd": os.getcwd(),
    "interfaces": interfaces, "name": socket.gethostbyname(socket.gethostname())}))
"""

#: Prints the answer of a gRPC server on this machine's loopback.
GREETED = """
import asyncio, sys
from meshray.doctor.ray.dial import Target, dial
print(asyncio.run(dial("127.0.0.1", Target(int(sys.argv[1]), "server", greets=True), 5)).answer)
"""


@dataclass
class Site:
    """The machines of the picture, and the answers of the commands on them."""

    cluster: Cluster
    login: Host
    before: str
    joined: dict[str, dict[str, Any]] = field(default_factory=dict)

    def ada(
        self, *words: str, second: bool = False, check: bool = True, env: Mapping[str, str] | None = None
    ) -> Result:
        """Run ``meshray WORDS`` as ada, for her first node or for the second."""
        environ = {**(SECOND if second else {}), **(env or {})}
        return self.login.run(
            ["meshray", *words], user=USER, env=environ, check=check, deadline_s=UP_DEADLINE_S, cwd=f"/home/{USER}"
        )


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with World("rootless") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head = world.host("head", wan, "203.0.113.10")
        login = world.host("login", wan, "203.0.113.20")
        login.drop_inbound()
        login.shell("ip route add default via 203.0.113.10")  # Without one, pasta has nothing to offer.
        login.run(["mkdir", "-p", f"/home/{USER}/.local/share"], user=USER)
        give_tun(login)
        yield Site(Cluster.start(head, []), login, before=traces(login))


def pid_of(site: Site, name: str) -> int:
    """Return the pid of a process of ada's first node, in her machine's namespace."""
    return int(json.loads(site.login.path(f"{RUN}/{name}.pid").read_text())["pid"])


@pytest.mark.parametrize(
    ("limit", "code", "named"),
    [
        ("max_user_namespaces", "no_namespaces", "user namespaces (user.max_user_namespaces is 0)"),
        ("max_net_namespaces", "no_namespaces", "network namespaces (user.max_net_namespaces is 0)"),
        ("", "no_tun", "/dev/net/tun (permission denied)"),
    ],
)
def test_a_missing_part_is_named_and_no_file_stays(site: Site, limit: str, code: str, named: str) -> None:
    """The limits apply in a user namespace in which they were set; in it ada is called root."""
    login, token = site.login, site.cluster.answers["head"]["token"]
    words = ["meshray", "join", "--rootless", "--json", token]
    forbid = f'echo 0 > /proc/sys/user/{limit} && exec "$@"'
    argv = ["unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh", *words] if limit else words
    login.run(["chmod", "0666" if limit else "0600", "/dev/net/tun"])
    try:
        refused = login.run(argv, user=USER, env=SECOND, check=False)
    finally:
        login.run(["chmod", "0666", "/dev/net/tun"])
    error = json.loads(refused.stdout)["error"]
    assert (refused.returncode, error["code"]) == (1, code), refused
    assert named in error["message"]
    fix = f"sysctl -w user.{limit}=" if limit else "chmod 0666 /dev/net/tun"
    assert f"ask the administrator of this machine for: {fix}" in error["hint"]
    assert "sudo " in error["hint"]
    assert token not in refused.stdout + refused.stderr
    assert traces(login) == site.before


def test_two_nodes_of_one_user_join_beside_each_other(site: Site) -> None:
    token = site.cluster.answers["head"]["token"]
    for second, port in ((False, 0), (True, 1)):
        output = site.ada("join", "--json", "--name", f"n{port}", token, "--", *RAY_ARGS, second=second).json()
        site.joined[output["node"]["name"]] = output
        assert output["ray"] == {"alive": True, "nodes": 2 + port}
        assert output["local"] == {
            "dashboard": f"http://127.0.0.1:{8265 + port}",
            "ray_client": f"ray://127.0.0.1:{10001 + port}",
        }
    assert "raylet" in site.login.run(["ps", "-u", USER, "-o", "args"]).stdout
    # None of it is in the machine's own network, but the engines' sockets are.
    assert "meshray0" not in site.login.run(["ip", "-o", "link"]).stdout
    sockets = site.login.run(["ss", "-Hlunp"]).stdout
    assert sockets.count('"meshray-engine"') == 4, sockets  # IPv4 and IPv6.


def test_objects_move_between_all_and_the_doctor_finds_nothing(site: Site) -> None:
    checks = site.cluster.head.run(["meshray", "doctor", "--deep", "--json"], check=False, deadline_s=200).json()
    assert [check for check in checks["checks"] if check["status"] == "fail"] == []
    deep = [check for check in checks["checks"] if check["code"] == "ray_deep"]
    assert [check["status"] for check in deep] == ["ok"] * 9  # Data from each to each, and to itself.
    own = site.ada("doctor", "--json", check=False).json()
    assert [check for check in own["checks"] if check["status"] in ("fail", "warn")] == []
    (guard,) = [check for check in own["checks"] if check["code"] == "guard" and check["node"] == "n0"]
    assert guard["evidence"] == "a separate network namespace: only the overlay leads in"


def test_run_enters_the_namespaces_with_the_users_rights_only(site: Site) -> None:
    seen = json.loads(site.ada("run", "--", "python", "-c", LOOK).stdout)
    assert (seen["uid"], seen["capabilities"], seen["cwd"]) == (USER_UID, 0, f"/home/{USER}")
    assert {"lo", "meshray0"} < set(seen["interfaces"])
    assert seen["name"].startswith("127.")
    assert site.ada("run", "--", "sh", "-c", "exit 7", check=False).returncode == 7
    # Another node's processes must not be visible.
    listed = [site.ada("run", "--", "ps", "ax", "-o", "args=", second=second).stdout for second in (False, True)]
    assert [text.count("raylet/raylet") for text in listed] == [1, 1]
    assert site.ada("run", "--", "getent", "ahostsv4", "login").stdout.startswith("127.")


def test_the_head_is_reached_from_outside_by_the_loopback(site: Site) -> None:
    login = site.login
    page = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8266').read().decode())"
    assert "<html" in login.run(["python", "-c", page]).stdout
    # Ray Client's server speaks gRPC: it sends a greeting.
    assert login.run(["python", "-c", GREETED, "10001"]).stdout.strip() == "open"


def test_a_killed_agent_is_succeeded_by_one_that_adopts_everything(site: Site) -> None:
    parts = ("namespace", "engine", "ray")
    before = {name: pid_of(site, name) for name in parts}
    site.login.run(["kill", "-9", str(pid_of(site, "agent"))])
    site.ada("up", "--json")
    assert {name: pid_of(site, name) for name in parts} == before
    assert site.cluster.head.can_reach(site.joined["n0"]["node"]["ip"])


def test_the_overlay_works_without_internet_access(site: Site) -> None:
    routes = site.ada("run", "--", "ip", "route").stdout
    assert "default via 203.0.113.10" in routes
    site.login.run(["pkill", "-9", "-f", "--", "--config-net"])
    site.login.wait_until(lambda: "default" not in site.ada("run", "--", "ip", "route").stdout, 10, "no way out")
    assert site.cluster.head.can_reach(site.joined["n0"]["node"]["ip"])
    assert site.ada("run", "--", "ping", "-n", "-c", "1", "-W", "2", site.cluster.ip(site.cluster.head)).returncode == 0


def test_a_node_whose_every_process_was_killed_can_come_up_and_leave(site: Site) -> None:
    """The namespaces' holder took the namespaces with it; the first node goes on."""
    second = f"/home/{USER}/second/run"
    for name in ("namespace", "agent", "engine"):
        pid = json.loads(site.login.path(f"{second}/{name}.pid").read_text())["pid"]
        site.login.run(["kill", "-9", str(pid)])
    site.login.wait_until(
        lambda: site.login.run(["pgrep", "-u", USER, "-fc", "raylet/raylet"], check=False).stdout == "1\n",
        20,
        "the end of the second node's Ray",
    )
    site.ada("leave", "--yes", second=True)
    assert SECOND["MESHRAY_HOME"] not in traces(site.login)
    assert "session_latest" in site.ada("run", "--", "ls", "/tmp/ray").stdout


def test_leaving_leaves_nothing(site: Site) -> None:
    began = time.monotonic()
    site.ada("leave")
    assert time.monotonic() - began < 30
    assert traces(site.login) == site.before
    assert [node["name"] for node in site.cluster.head.run(["meshray", "node", "list", "--json"]).json()["nodes"]] == [
        "head"
    ]
    assert site.login.run(["lsns", "-n", "-o", "command"]).stdout.count("rootless.holder") == 0
