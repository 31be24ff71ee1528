"""Jobs of a real SLURM whose nodes join without root: two steps as two nodes, and a head outside of the allocation.

               switch wan 203.0.113.0/24
        ┌─────────────┴──────────────┐
      head                         login      slurmctld, munged, and two slurmd: compute nodes c1 and c2;
  203.0.113.10                 203.0.113.20   ada submits from her home folder
  root, Ray head               drops all inbound

The tests build on each other, in this order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab.cluster import RAY_ARGS, UP_DEADLINE_S, Cluster
from tests.lab.host import REPOSITORY, USER, Host
from tests.lab.slurm import Slurm, is_installed
from tests.lab.unprivileged import give_tun
from tests.lab.world import World

pytestmark = pytest.mark.skipif(not is_installed(), reason="slurmctld, slurmd, slurm-client or munge is not installed")

HOME = f"/home/{USER}"
#: Runs a task on each node, prints where they ran, and stays.
JOB = """
import json, ray, sys, time
from pathlib import Path
ray.init("auto", log_to_driver=False)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
alive = [node for node in ray.nodes() if node["Alive"]]
@ray.remote(num_cpus=0)
def address():
    return ray.util.get_node_ip_address()
ran = ray.get([address.options(scheduling_strategy=On(node["NodeID"], soft=False)).remote() for node in alive])
Path(sys.argv[1]).write_text(json.dumps(sorted(ran)))
time.sleep(600)
"""
#: Tasks of another driver on the two nodes of the job; they take some seconds.
OTHER_DRIVER = """
import ray, time
ray.init("auto", log_to_driver=False)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
own = ray.get_runtime_context().get_node_id()
others = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != own]
@ray.remote(num_cpus=0)
class Started:
    def __init__(self):
        self.number = 0
    def add(self, more):
        self.number += more
        return self.number
started = Started.options(scheduling_strategy=On(own, soft=False)).remote()
@ray.remote(num_cpus=0, max_retries=0)
def work():
    ray.get(started.add.remote(1))
    time.sleep(8)
    return 1
running = [work.options(scheduling_strategy=On(node, soft=False)).remote() for node in others]
while ray.get(started.add.remote(0)) < 2:
    time.sleep(0.1)
print("started 2")
print("ended", sum(ray.get(running)))
"""


@dataclass
class Site:
    """The machines of the picture."""

    cluster: Cluster
    slurm: Slurm

    @property
    def login(self) -> Host:
        """ada's host."""
        return self.slurm.host

    def nodes(self) -> dict[str, dict[str, Any]]:
        """Return the head's list of nodes by name, without itself."""
        listed = self.cluster.head.run(["meshray", "node", "list", "--json"]).json()["nodes"]
        return {node["name"]: node for node in listed if node["name"] != "head"}

    def render(self, *words: str) -> None:
        """Render ada's ``job.sh``."""
        ray = [f"--ray-arg={word}" for word in RAY_ARGS if "num-cpus" not in word]
        self.login.run(["meshray", "render", "slurm", "-o", "job.sh", *ray, *words], user=USER, cwd=HOME)

    def wait_for(self, condition: Any, deadline_s: float, what: str) -> Any:
        """Wait; on failure show the job's output."""

        def words() -> str:
            answer = self.login.shell(f"tail -n 40 {HOME}/*.out /var/log/slurm*.log", check=False).stdout
            return f"left: {leftovers(self)}\n{answer}"

        try:
            return self.login.wait_until(condition, deadline_s, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{words()}") from None


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with World("slurm") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head = world.host("head", wan, "203.0.113.10")
        login = world.host("login", wan, "203.0.113.20")
        login.drop_inbound()
        give_tun(login)
        cluster = Cluster.start(head, [])
        slurm = Slurm.start(login, ("c1", "c2"))
        token = head.run(["meshray", "token", "create", "--uses", "0", "--ephemeral", "--ttl", "7d"]).stdout
        login.run(["sh", "-c", "umask 077; cat > meshray.token"], stdin=token, user=USER, cwd=HOME)
        login.run(["sh", "-c", "cat > job.py"], stdin=JOB, user=USER, cwd=HOME)
        yield Site(cluster, slurm)


def test_two_steps_are_two_nodes_and_tasks_run_on_each(site: Site) -> None:
    site.render("--nodes", "2", "--", "python", "job.py", "ran.json")
    job = site.slurm.submit("job.sh", HOME)
    ran = site.login.path(f"{HOME}/ran.json")
    site.wait_for(lambda: ran.exists() or not site.slurm.jobs(), UP_DEADLINE_S, "tasks, or the job's early end")
    assert ran.exists(), job_log(site, job)
    nodes = site.nodes()
    assert set(nodes) == {f"c1-{job}-0", f"c2-{job}-1"}
    assert all(node["online"] and node["ephemeral"] for node in nodes.values())
    assert set(json.loads(ran.read_text())) == {
        site.cluster.ip(site.cluster.head),
        *(node["ip"] for node in nodes.values()),
    }


def test_the_signal_before_the_end_drains_both_and_they_leave(site: Site) -> None:
    """Another driver's tasks run on both nodes when the signal comes, and all of them end well."""
    (job,) = site.slurm.jobs()
    driver = site.cluster.head.popen(["meshray", "run", "--", "python", "-u", "-c", OTHER_DRIVER], cwd=REPOSITORY)
    site.wait_for(lambda: "started 2" in driver.output, UP_DEADLINE_S, f"tasks: {driver.output}")
    # --signal=B:TERM@120 sends this two minutes before the time is up.
    site.slurm.scancel("--batch", "--signal=TERM", str(job))
    site.wait_for(lambda: not site.slurm.jobs(), UP_DEADLINE_S, "the job's end")
    assert driver.wait(30) == 0, driver.output
    assert "ended 2" in driver.output
    assert site.nodes() == {}
    assert "the job ends" in job_log(site, job)
    assert "orderly" not in job_log(site, job)
    assert leftovers(site) == ""


def test_the_head_may_be_in_the_job(site: Site) -> None:
    """A mesh of its own, made by the first step, which the second one joins; scancel ends both."""
    site.render("--head", "--nodes", "2", "--", "python", "job.py", "inside.json")
    job = site.slurm.submit("job.sh", HOME)
    ran = site.login.path(f"{HOME}/inside.json")
    site.wait_for(lambda: ran.exists() or not site.slurm.jobs(), UP_DEADLINE_S, "tasks, or the job's early end")
    assert ran.exists(), job_log(site, job)
    assert json.loads(ran.read_text()) == ["10.99.0.1", "10.99.0.2"]
    assert site.nodes() == {}  # Of the other mesh.
    site.slurm.scancel(str(job))
    site.wait_for(lambda: not site.slurm.jobs(), UP_DEADLINE_S, "the job's end")
    site.wait_for(lambda: leftovers(site) == "", 30, "an end without leftovers")


def test_a_killed_job_is_offline_at_once_and_ephemeral(site: Site) -> None:
    """Nobody says goodbye; that such a node is gone from the map within 60 s is the registry's own test."""
    site.render("--nodes", "2")
    site.slurm.submit("job.sh", HOME)
    site.wait_for(lambda: [node["online"] for node in site.nodes().values()] == [True] * 2, UP_DEADLINE_S, "two nodes")
    # Like a machine that is reset, or one without memory: SLURM's own SIGKILL comes after a SIGTERM, which it also
    # sends to processes that are alive when the first has ended. A stopped process cannot react to that.
    for number in ("-STOP", "-KILL"):
        site.login.run(["pkill", number, "-u", USER])
    site.wait_for(lambda: [node["online"] for node in site.nodes().values()] == [False] * 2, 30, "nodes that are gone")
    assert all(node["ephemeral"] for node in site.nodes().values())
    # The kernel takes a moment for processes that hold much memory.
    left = ["ps", "-u", USER, "-o", "args="]
    site.wait_for(lambda: site.login.run(left, check=False).stdout == "", 10, "the end of every process")


def leftovers(site: Site) -> str:
    """Return files and processes of ada's nodes."""
    return site.login.shell(f"ls -d /tmp/meshray* {HOME}/meshray-*; ps -u {USER} -o args=", check=False).stdout


def job_log(site: Site, job: int) -> str:
    """Return the output of the job's script."""
    log = site.login.path(f"{HOME}/slurm-{job}.out")
    return log.read_text(errors="replace") if log.exists() else ""
