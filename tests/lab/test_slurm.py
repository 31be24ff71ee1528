"""Jobs of a real SLURM whose nodes join without root: two steps as two nodes, beside a head outside of the allocation.

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
from tests.lab.host import PERSON, Host
from tests.lab.slurm import Slurm, is_installed
from tests.lab.world import World

pytestmark = pytest.mark.skipif(not is_installed(), reason="slurmctld, slurmd, slurm-client or munge is not installed")

HOME = f"/home/{PERSON}"
#: Runs a task on each node, says on which machine and on how many nodes, and stays.
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
time.sleep(float(sys.argv[2]))
"""


@dataclass
class Site:
    """The machines of the picture."""

    cluster: Cluster
    slurm: Slurm

    @property
    def login(self) -> Host:
        """Where ada is."""
        return self.slurm.host

    def nodes(self) -> dict[str, dict[str, Any]]:
        """What the head lists, by name, without itself."""
        listed = self.cluster.head.run(["meshray", "node", "list", "--json"]).json()["nodes"]
        return {node["name"]: node for node in listed if node["name"] != "head"}

    def render(self, *words: str) -> None:
        """ada's ``job.sh``."""
        ray = [f"--ray-arg={word}" for word in RAY_ARGS if "num-cpus" not in word]
        self.login.run(["meshray", "render", "slurm", "-o", "job.sh", *ray, *words], user=PERSON, cwd=HOME)

    def wait_for(self, condition: Any, deadline_s: float, what: str) -> Any:
        """With the job's own words where it was in vain."""

        def words() -> str:
            return self.login.shell(f"tail -n 40 {HOME}/*.out /var/log/slurm*.log", check=False).stdout

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
        login.shell("mount -t tmpfs tmpfs /dev/net && mknod -m 0666 /dev/net/tun c 10 200")
        cluster = Cluster.start(head, [])
        slurm = Slurm.start(login, ("c1", "c2"))
        token = head.run(["meshray", "token", "create", "--uses", "0", "--ephemeral"]).stdout
        login.run(["sh", "-c", "umask 077; cat > meshray.token"], stdin=token, user=PERSON, cwd=HOME)
        login.run(["sh", "-c", "cat > job.py"], stdin=JOB, user=PERSON, cwd=HOME)
        yield Site(cluster, slurm)


def test_two_steps_are_two_nodes_and_leave_when_the_command_has_ended(site: Site) -> None:
    site.render("--nodes", "2", "--", "python", "job.py", "ran.json", "0")
    job = site.slurm.submit("job.sh", HOME)
    site.wait_for(lambda: site.slurm.state(job) not in ("PENDING", "RUNNING", "CONFIGURING"), UP_DEADLINE_S, "the end")
    assert site.slurm.state(job) == "COMPLETED", site.login.shell(f"cat {HOME}/*.out").stdout
    ran = json.loads(site.login.path(f"{HOME}/ran.json").read_text())
    assert len(ran) == 3
    assert len(set(ran)) == 3
    assert site.cluster.ip(site.cluster.head) in ran
    assert site.nodes() == {}
    assert site.login.shell(f"ls -d /tmp/meshray* {HOME}/meshray-*", check=False).stdout == ""


def test_the_walltime_signal_drains_and_leaves(site: Site) -> None:
    site.render("--nodes", "2")
    job = site.slurm.submit("job.sh", HOME)
    names = {f"c1-{job}-0", f"c2-{job}-1"}
    site.wait_for(lambda: set(site.nodes()) == names, UP_DEADLINE_S, "two nodes")
    assert all(node["ephemeral"] for node in site.nodes().values())
    site.wait_for(lambda: "nodes are up" in said(site, job), UP_DEADLINE_S, "nodes that are up")
    # What --signal=B:TERM@120 sends when the time is up.
    site.slurm.scancel("--batch", "--signal=TERM", str(job))
    site.wait_for(lambda: site.slurm.idle() == 2, 60, "the job's end")
    assert site.nodes() == {}
    assert "told to end: the nodes leave" in said(site, job)


def test_killed_steps_are_offline_at_once_and_have_a_minute(site: Site) -> None:
    site.render("--nodes", "2")
    job = site.slurm.submit("job.sh", HOME)
    site.wait_for(lambda: "nodes are up" in said(site, job), UP_DEADLINE_S, "nodes that are up")
    site.slurm.scancel("--signal=KILL", f"{job}.0")
    site.wait_for(
        lambda: not any(node["online"] for node in site.nodes().values()), 20, "nodes that are offline or gone"
    )


def said(site: Site, job: int) -> str:
    """What the job's script wrote."""
    log = site.login.path(f"{HOME}/slurm-{job}.out")
    return log.read_text(errors="replace") if log.exists() else ""
