"""Orders from the head to nodes without sshd, with real processes: logs, archives, refusals, a node that vanishes.

               switch wan 203.0.113.0/24
      ┌─────────────┼─────────────┬─────────────┐
    head          worker        private       outside
203.0.113.10        .21           .22           .40
                           with --no-remote   in no mesh
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab.cluster import Cluster
from tests.lab.host import Host
from tests.lab.world import World

LOG = "/var/lib/meshray/log/agent.log"
LINE = "2026-01-01 12:00:00,000 INFO " + "x" * 70 + "\n"
#: The size of the log, bytes.
SIZE = 10 * 2**20
#: The time until the head notices that a node's machine is gone, seconds: its connection is found dead within 45.
NOTICED_S = 60
#: The machine that is in no mesh.
OUTSIDE = "203.0.113.40"
#: Follows a log on a terminal, and prints the exit code and whether the terminal has its settings as before.
FOLLOW = """
import os, pty, subprocess, sys, termios
ours, theirs = pty.openpty()
before = termios.tcgetattr(theirs)
words = ["meshray", "node", "logs", "worker", "-f", "--lines", "1"]
process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
os.set_blocking(ours, False)
output = b""
while process.poll() is None or output[-1:] != b"\\n":
    try:
        part = os.read(ours, 65536)
    except BlockingIOError:
        if process.poll() is not None:
            break
        import time
        time.sleep(0.05)
        continue
    output += part
    sys.stdout.write(part.decode(errors="replace"))
    sys.stdout.flush()
print()
print("ended", process.returncode, termios.tcgetattr(theirs) == before, flush=True)
"""


@dataclass
class Mesh:
    world: World
    cluster: Cluster

    @property
    def head(self) -> Host:
        return self.cluster.head

    def host(self, name: str) -> Host:
        return self.world.hosts[name]

    def audited(self) -> list[dict[str, Any]]:
        """Return the records about orders, after a check of the chain."""
        audit = self.head.run(["meshray", "audit", "--json", "--lines", "1000"]).json()
        assert audit["intact"] is True
        return [record for record in audit["records"] if record["event"].startswith("order")]


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with World("orders") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head, worker, private = (
            world.host(name, wan, f"203.0.113.{number}")
            for name, number in (("head", 10), ("worker", 21), ("private", 22))
        )
        world.host("outside", wan, OUTSIDE)
        cluster = Cluster.without_ray(head, [worker])
        token = cluster.answers["head"]["token"]
        cluster.answers["private"] = cluster.meshray(private, "join", token, "--no-ray", "--no-remote")
        yield Mesh(world, cluster)


def test_status_names_the_node_that_refuses_and_refusals_are_audited(mesh: Mesh) -> None:
    def refusing() -> list[str]:
        status = mesh.cluster.meshray(mesh.head, "status", check=False)
        return [node["name"] for node in status["nodes"] if node["no_remote"]]

    mesh.world.wait_until(lambda: refusing() == ["private"], 10, "the head knows which node refuses")
    text = mesh.head.run(["meshray", "status"], check=False).stdout
    assert "nodes that refuse remote orders except drain (--no-remote): private" in text
    for words in (["logs", "private"], ["restart", "private"], ["bundle", "private", "/root/private.tar.gz"]):
        refused = mesh.head.run(["meshray", "node", *words, "--json"], check=False)
        assert (refused.returncode, refused.json()["error"]["code"]) == (4, "remote_refused")
    assert not mesh.head.path("/root/private.tar.gz").exists()
    member = mesh.host("worker").run(["meshray", "node", "logs", "head", "--json"], check=False)
    assert (member.returncode, member.json()["error"]["code"]) == (4, "not_admin")
    records = mesh.audited()
    assert [(record["event"], record["node"]) for record in records] == [
        *[("order", "private"), ("order_refused", "private")] * 3,
        ("order_refused", "head"),
    ]
    assert (records[-1]["by"], records[-1]["details"]["code"]) == ("root on worker", "not_admin")


def test_ten_megabytes_of_logs_do_not_delay_a_status(mesh: Mesh) -> None:
    worker, head = mesh.host("worker"), mesh.head
    with worker.path(LOG).open("a") as file:
        file.write(LINE * (SIZE // len(LINE) + 1))
    size = worker.path(LOG).stat().st_size

    def ask() -> float:
        began = time.monotonic()
        for host in (head, worker):
            host.run(["meshray", "status"], check=False)
        return time.monotonic() - began

    quiet = statistics.median([ask() for _ in range(3)])
    began = time.monotonic()
    reading = head.popen(["sh", "-c", "meshray node logs worker --lines 10000000 > /root/log"], name="logs")
    slowest = 0.0
    while reading.returncode is None:
        slowest = max(slowest, ask())
        assert time.monotonic() < began + 120, "the log does not end"
    took = time.monotonic() - began
    assert reading.wait(1) == 0, reading.output
    received = head.path("/root/log").stat().st_size
    assert size <= received < size + 10_000  # The agent itself wrote some lines.
    print(f"two statuses: {quiet:.2f} s, and beside {received} bytes of logs in {took:.1f} s at most {slowest:.2f} s")
    assert slowest < 1 + 4 * quiet


def test_a_pass_gives_orders_without_root_and_from_outside_until_it_is_revoked(mesh: Mesh) -> None:
    head, outside = mesh.head, mesh.host("outside")

    def invite(name: str) -> dict[str, Any]:
        words = ["meshray", "web", "invite", name, "--admin", "--host", str(head.address), "--json"]
        made: dict[str, Any] = head.run(words).json()
        return made

    ana, ben, before = invite("ana"), invite("ben"), len(mesh.audited())
    order = ["meshray", "node", "logs", "worker", "-n", "1"]
    assert "not_root" in head.run([*order, "--json"], user="ada", check=False).stdout
    assert "INFO" in head.run([*order, "--pass", "-"], user="ada", stdin=ana["url"]).stdout
    upgrade = ["meshray", "node", "upgrade", "worker", "--pass", "-", "--json"]
    refused = head.run(upgrade, user="ada", stdin=ana["url"], check=False)
    assert (refused.returncode, refused.json()["error"]["code"]) == (4, "order_needs_root")
    outside.path("/root/invitation").write_text(ben["url"])
    followed = outside.popen([*order, "-f", "--pass", "@/root/invitation"], name="follow")
    mesh.world.wait_until(lambda: "INFO" in followed.output, 20, "the log is followed")
    arguments = outside.shell("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout
    secret = ben["url"].partition("#")[2].partition(".")[0]
    assert "@/root/invitation" in arguments
    assert secret not in arguments
    head.run(["meshray", "web", "revoke", "ben"])
    assert followed.wait(10) == 4, followed.output
    assert "the session of this pass has ended" in followed.output
    given = [(record["event"], record["by"], record["source"]) for record in mesh.audited()[before:]]
    of_ana, of_ben = (f"pass {made['id']} of {made['name']}" for made in (ana, ben))
    assert given == [
        *[("order", of_ana, str(head.address)), ("order_ended", of_ana, str(head.address))],
        *[("order", of_ben, OUTSIDE), ("order_ended", of_ben, OUTSIDE)],
    ]


def test_a_node_that_vanishes_in_the_middle_of_orders_is_named(mesh: Mesh) -> None:
    head, worker = mesh.head, mesh.host("worker")
    followed = head.popen(["python3", "-c", FOLLOW], name="follow")
    mesh.world.wait_until(lambda: "INFO" in followed.output, 20, "the log is followed")
    given = len([record for record in mesh.audited() if record["event"] == "order"])
    bundle = head.popen(["meshray", "node", "bundle", "worker", "/root/worker.tar.gz", "--json"], name="bundle")
    mesh.world.wait_until(
        lambda: len([record for record in mesh.audited() if record["event"] == "order"]) > given, 20, "the order"
    )
    worker.end()
    began = time.monotonic()
    mesh.world.wait_until(lambda: "\nended " in followed.output, NOTICED_S, "the head notices")
    assert bundle.wait(NOTICED_S) == 5, bundle.output
    print(f"noticed after {time.monotonic() - began:.1f} s")
    assert followed.output.rstrip().endswith("ended 5 True"), followed.output
    assert "the connection of worker's agent ended before it finished the order" in followed.output
    error = json.loads(bundle.output.splitlines()[-1])["error"]
    assert (error["code"], "worker" in error["message"]) == ("node_offline", True)
    assert not head.path("/root/worker.tar.gz").exists()
    ended = [record for record in mesh.audited() if record["event"] == "order_ended"]
    assert [record["details"]["code"] for record in ended[-2:]] == ["node_offline"] * 2
    # The others go on, and the next order names the node at once.
    again = head.run(["meshray", "node", "logs", "worker", "--json"], check=False)
    assert (again.returncode, again.json()["error"]["code"]) == (5, "node_offline")
    assert head.run(["meshray", "node", "logs", "head", "-n", "1"]).stdout
