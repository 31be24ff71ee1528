"""meshray is upgraded on all nodes from the head, without ssh, while Ray works.

           switch wan 192.88.99.0/24
 ┌────────────┬────────────┐
head         one          two          no sshd anywhere; the new version is installed on the head only

The tests share one cluster, in this order.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from meshray.coordinator.audit_log import read_log
from tests.lab.cluster import Cluster
from tests.lab.host import REPOSITORY, Host
from tests.lab.previous import install_changed
from tests.lab.world import World

VERSIONS = "/usr/local/lib/meshray/"
UPGRADE_S = 300
#: From the order until the old version works again.
BACK_S = 90
#: The processes of an upgrade that are killed.
VICTIMS = ("agent", "upgrade", "installer")
KILLS = {"one": 14, "two": 6}
#: Most upgrades take less, from the order until the version is kept, seconds.
LONGEST_S = 6.0
SEED = int(os.environ.get("MESHRAY_UPGRADE_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
#: Each task is lost with its worker: Ray does not try it again.
JOB = """
import ray, time
ray.init("auto", log_to_driver=False)
@ray.remote(num_cpus=1, max_retries=0)
def work(number):
    time.sleep(0.5)
    return number
waiting = [work.remote(number) for number in range(180)]
print("started", flush=True)
print(len(set(ray.get(waiting))))
"""
#: The agent of this version ends while it is imported; it hangs; it has a module that cannot be imported.
DIES = {"meshray/runtime/upgrade/launch.py": "\nif _MARK in sys.argv:\n    os._exit(7)\n"}
HANGS = {"meshray/runtime/upgrade/launch.py": "\nif _MARK in sys.argv:\n    __import__('time').sleep(1000)\n"}
BROKEN = {"meshray/agent/roaming.py": "\nraise RuntimeError('broken')\n"}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    path = REPOSITORY / ".cache/upgrades"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with World("upgrades") as world:
        wan = world.switch("wan", "192.88.99.0/24")
        head, one, two = (world.host(name, wan, f"192.88.99.{10 + n}") for n, name in enumerate(("head", "one", "two")))
        yield Cluster.start(head, [one, two])


def upgrade(host: Host, programs: Path, *words: str) -> dict[str, dict[str, Any]]:
    """Run `meshray node upgrade` with the version of these programs; return the result of each node."""
    done = host.run([programs / "meshray", "node", "upgrade", "--json", *words], check=False, deadline_s=UPGRADE_S)
    answer = json.loads(done.stdout)
    assert "nodes" in answer, answer
    return {node["node"]: node for node in answer["nodes"]}


def pid_of(host: Host, name: str) -> int:
    try:
        return int(json.loads(host.path(f"/run/meshray/{name}.pid").read_text())["pid"])
    except (FileNotFoundError, ValueError):
        return 0


def python_of(host: Host, name: str = "agent") -> str:
    return host.run(["cat", f"/proc/{pid_of(host, name)}/cmdline"]).stdout.split("\0")[0]


def adopted(cluster: Cluster) -> list[tuple[int, int]]:
    return [(pid_of(host, "engine"), pid_of(host, "ray")) for host in cluster.hosts]


def is_whole(cluster: Cluster) -> bool:
    """Return whether each node's agent sees three nodes with paths and Ray, and no problem."""
    for host in cluster.hosts:
        status = cluster.meshray(host, "status", check=False)
        nodes = status.get("nodes", [])
        if len(nodes) != 3 or status["problems"]:
            return False
        if not all(node["online"] and node["ray"]["alive"] and node["path"]["kind"] != "none" for node in nodes):
            return False
    return True


def test_a_job_runs_through_the_upgrade_of_all_nodes(cluster: Cluster, folder: Path) -> None:
    new = install_changed(folder / "new", {"meshray/errors.py": "\n# newer\n"})
    before = adopted(cluster)
    job = cluster.head.popen(["meshray", "run", "--", "python", "-c", JOB], name="job", cwd=REPOSITORY)
    cluster.head.wait_until(lambda: "started" in job.output, 60, "the job")
    first = upgrade(cluster.head, new, "one", "--wait")
    assert first["one"]["done"] == "upgraded", first
    # A mesh of both versions works, and status names the skew: the head's own is the reference.
    status = cluster.meshray(cluster.head, "status", check=False)
    assert "one runs another meshray" in " ".join(status["notices"])
    assert len({node["build"] for node in status["nodes"]}) == 2
    cluster.head.wait_until(lambda: is_whole(cluster), 30, "a whole mesh of both versions")
    rest = upgrade(cluster.head, new, "--all", "--wait")
    assert [(name, node["done"]) for name, node in rest.items()] == [
        ("one", "already"),
        ("two", "upgraded"),
        ("head", "upgraded"),
    ]
    assert job.returncode is None, "the job has ended too early to show anything"
    assert job.wait(120) == 0
    assert job.output.splitlines()[-1] == "180"
    assert adopted(cluster) == before
    assert all(python_of(host).startswith(VERSIONS) for host in cluster.hosts)
    assert python_of(cluster.head, "coordinator") == python_of(cluster.head)
    head = cluster.head
    head.wait_until(lambda: cluster.meshray(head, "status", check=False)["notices"] == [], 30, "no skew")
    orders = [
        (record.event, record.node, record.details.get("code"))
        for record in read_log(cluster.head.path("/var/lib/meshray/audit.log")).records
        if record.details.get("order") == "upgrade"
    ]
    assert [order[:2] for order in orders] == [
        (event, node) for node in ("one", "one", "two", "head") for event in ("order", "order_ended")
    ]
    assert {code for _, _, code in orders} == {None, "done"}


def test_a_version_that_cannot_be_imported_is_not_tried(cluster: Cluster, folder: Path) -> None:
    broken = install_changed(folder / "broken", BROKEN)
    refused = upgrade(cluster.head, broken, "--all", "--wait")
    assert {node["done"] for node in refused.values()} == {"refused"}
    assert "RuntimeError: broken" in refused["one"]["error"]["message"]


def test_failures_and_kill_9_at_any_moment_leave_working_nodes(cluster: Cluster, folder: Path) -> None:
    before, dice = adopted(cluster), random.Random(SEED)
    print(f"MESHRAY_UPGRADE_SEED={SEED}")
    bad = {name: install_changed(folder / name, changes) for name, changes in (("dies", DIES), ("hangs", HANGS))}
    good = [install_changed(folder / name, {"meshray/errors.py": f"\n# {name}\n"}) for name in ("a", "b", "c")]
    builds = {path: build_of(cluster.head, path) for path in good}
    plans = {
        node: [(dice.choice(VICTIMS), dice.uniform(0.0, LONGEST_S)) for _ in range(n)] for node, n in KILLS.items()
    }

    def run(node: str, name: str) -> None:
        host = next(host for host in cluster.workers if host.name == node)
        python, began = python_of(host), time.monotonic()
        result, took_s = upgrade(cluster.head, bad[name], node, "--wait")[node], time.monotonic() - began
        print(f"{node}: a version that {name}: back after {took_s:.0f} s")
        assert result["done"] == "returned", result
        assert took_s < BACK_S
        assert python_of(host) == python
        host.wait_until(lambda: works(host), 30, "a working node")
        for number, (part, after_s) in enumerate(plans[node]):
            # A kill may have left any of them, and a node does not install the build that it runs.
            programs = next(path for path in good[number % 3 :] + good if builds[path] not in python_of(host))
            kill_during_upgrade(cluster.head, host, programs, part, after_s)
            host.wait_until(lambda: works(host), BACK_S, f"a working node after kill {number} ({part})")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, ("one", "two"), ("dies", "hangs")))
    cluster.head.wait_until(lambda: is_whole(cluster), 60, "a whole mesh")
    assert adopted(cluster) == before


def build_of(host: Host, programs: Path) -> str:
    code = "from meshray.installation.build import own_build; print(own_build())"
    return host.run([programs / "python", "-I", "-c", code]).stdout.strip()


def kill_during_upgrade(head: Host, host: Host, programs: Path, part: str, after_s: float) -> None:
    """Kill a process of an upgrade, some time after the node has received the order."""
    watchdog = pid_of(host, "upgrade")
    order = head.popen([str(programs / "meshray"), "node", "upgrade", host.name, "--json"], name=f"to-{host.name}")
    host.wait_until(lambda: pid_of(host, "upgrade") != watchdog, 60, "the order")
    time.sleep(after_s)
    pid = victim(host, part)
    host.run(["kill", "-9", str(pid)])
    print(f"{host.name}: kill -9 {part} ({pid}) {after_s:.2f} s after the order")
    order.wait(60)


def victim(host: Host, part: str) -> int:
    """Return the pid of this process of an upgrade, or of the agent if it does not run now."""
    found = ""
    if part == "installer":
        found = host.run(["pgrep", "-f", "meshray.runtime.upgrade.installer"], check=False).stdout
    elif host.run(["kill", "-0", str(pid_of(host, part))], check=False).returncode == 0:
        found = str(pid_of(host, part))
    return int(found.split()[0]) if found else pid_of(host, "agent")


def works(host: Host) -> bool:
    """Return whether this node has no problem, and no version on trial."""
    pointer = host.path("/var/lib/meshray/version.json")
    is_on_trial = pointer.exists() and json.loads(pointer.read_text())["state"] == "trial"
    return not is_on_trial and host.run(["meshray", "status", "--json"], check=False).returncode == 0
