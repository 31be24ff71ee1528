"""A network outage loses no work in progress; an outage longer than the patience ends in Ray's own error.

               switch wan 203.0.113.0/24
          ┌───────────┴───────────┐
        head                     nat     silently loses everything during the gap
   203.0.113.10             203.0.113.30
                                  │ switch nat-lan 192.168.7.0/24
                                nested
                             192.168.7.10

Five programs are at work over the path when it breaks: tasks, an actor's calls, the transfer of a large object, a
driver on the far side, and a job that was submitted from there. Each was started through `meshray run`. All but the
transfer work through all gaps, and report the number of their calls and the failed ones after each call.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.lab.cluster import Cluster
from tests.lab.host import Host, HostProcess
from tests.lab.test_reliability import BACK_DEADLINE_S
from tests.lab.topologies import one_of_each
from tests.lab.trouble import silenced
from tests.lab.world import Router, World

#: Seconds. The longest is just below the default patience of 120 s.
GAPS = (5, 30, 60, 110)
#: The time until all programs go on after the path is back; the longest waits for Ray to request the object again.
AFTER_S = 90
STARTED_S = 120
RAY_ARGS = ("--num-cpus=3", f"--object-store-memory={1200 * 2**20}")
OBJECT_BYTES = 500 * 2**20
GO_ON, ON_ITS_WAY = "/tmp/go-on", "/tmp/under-way"
ALL = ("tasks", "actor", "far", "job")

_BEGIN = f"""
import json, os, sys, time
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
ray.init("auto", log_to_driver=False)
ids = {{node["NodeManagerHostname"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}}
def on(name): return dict(num_cpus=0.1, scheduling_strategy=NodeAffinitySchedulingStrategy(ids[name], soft=False))
def is_over(): return os.path.exists("{GO_ON}")
calls, errors = 0, []
def get(reference):
    global calls
    calls += 1
    try:
        return ray.get(reference)
    except Exception as error:
        errors.append(f"{{type(error).__name__}}: {{str(error)[:300]}}")
def under_way(name): open("{ON_ITS_WAY}-" + name, "w").close()
def tell(name):
    with open(f"/tmp/{{name}}.new", "w") as file:
        json.dump({{"calls": calls, "errors": errors}}, file)
    os.replace(f"/tmp/{{name}}.new", f"/tmp/{{name}}.json")
"""
TASKS = f"""{_BEGIN}
@ray.remote(max_retries=0, **on("nested"))
def work(seconds):
    time.sleep(seconds)
    return seconds
get(work.remote(0))
under_way("tasks")
while not is_over():
    for reference in [work.remote(0.5), work.remote(1.5)]:
        get(reference)
    tell("tasks")
tell("tasks")
"""
ACTOR = f"""{_BEGIN}
@ray.remote(**on("nested"))
class Counter:
    def __init__(self): self.count = 0
    def add(self):
        time.sleep(0.5)
        self.count += 1
        return self.count
counter = Counter.remote()
get(counter.add.remote())
under_way("actor")
while not is_over():
    get(counter.add.remote())
    tell("actor")
if get(counter.add.remote()) != calls: errors.append("a call was lost or made twice")
tell("actor")
"""
OBJECT = f"""{_BEGIN}
import numpy
@ray.remote(max_retries=0, **on("nested"))
def large(): return numpy.ones({OBJECT_BYTES}, dtype=numpy.uint8)
reference = large.remote()
ray.wait([reference], fetch_local=False)
under_way("object")
while not os.path.exists("{GO_ON}-object"): time.sleep(0.02)
got = get(reference)
if got is not None and int(got[-1]) != 1: errors.append("another object came")
tell("object")
"""
FAR = f"""{_BEGIN}
@ray.remote(max_retries=0, **on("head"))
def work(): time.sleep(0.5)
get(work.remote())
under_way("far")
while not is_over():
    get(work.remote())
    tell("far")
tell("far")
"""
JOB = f"""{_BEGIN}
@ray.remote(max_retries=0, **on("nested"))
def work(): time.sleep(0.5)
get(work.remote())
under_way("job")
while not is_over():
    get(work.remote())
    tell("job")
tell("job")
"""


@dataclass
class Stage:
    """The cluster, and the router before its worker."""

    world: World
    cluster: Cluster
    nat: Router
    head: Host
    nested: Host
    programs: dict[str, HostProcess] = field(default_factory=dict)

    def start(self) -> None:
        """Start the programs that work through all gaps; return when each has made its first call."""
        self.head.path("/tmp/job.py").write_text(JOB)
        run = ["meshray", "run", "--"]
        self.programs = {
            "tasks": self.head.popen([*run, sys.executable, "-c", TASKS], name="tasks"),
            "actor": self.head.popen([*run, sys.executable, "-c", ACTOR], name="actor"),
            "far": self.nested.popen([*run, sys.executable, "-c", FAR], name="far"),
            "job": self.nested.popen([*run, "ray", "job", "submit", "--", sys.executable, "/tmp/job.py"], name="job"),
        }
        assert tuple(self.programs) == ALL
        for name in ALL:
            self.await_first_call(name)

    def start_transfer(self) -> HostProcess:
        """Start the program of the large object, which then waits for its sign."""
        self.head.shell(f"rm -f /tmp/object.json {GO_ON}-object {ON_ITS_WAY}-object")
        program = self.head.popen(["meshray", "run", "--", sys.executable, "-c", OBJECT], name="object")
        self.await_first_call("object")
        return program

    def await_first_call(self, name: str) -> None:
        place = self.nested if name == "far" else self.head
        self.world.wait_until(place.path(f"{ON_ITS_WAY}-{name}").exists, STARTED_S, f"{name} at work")

    def calls(self, name: str) -> int:
        """Return the number of the program's calls that have ended."""
        place = self.nested if name == "far" else self.head
        return int(str(self.record(name)["calls"])) if place.path(f"/tmp/{name}.json").exists() else 0

    def record(self, name: str) -> dict[str, object]:
        """Return the program's report on its calls."""
        place = self.nested if name == "far" else self.head
        told = json.loads(place.path(f"/tmp/{name}.json").read_text())
        assert isinstance(told, dict)
        return told

    def received(self) -> int:
        """Return the bytes that the head received over the overlay."""
        return int(self.head.path("/sys/class/net/meshray0/statistics/rx_bytes").read_text())

    def raylets(self) -> list[str]:
        """Return the pids of the raylets, which survive whatever happens to the path."""
        return [host.run(["pgrep", "-f", "raylet/raylet"], check=False).stdout for host in (self.head, self.nested)]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with World("gaps") as world:
        hosts = one_of_each(world)
        cluster = Cluster.start(hosts.head, [hosts.nested], ray_args=RAY_ARGS)
        nat = Router(world.hosts["nat"], hosts.lan, "easy")
        stage = Stage(world, cluster, nat, hosts.head, hosts.nested)
        stage.start()
        yield stage


def is_whole(stage: Stage) -> bool:
    """Return whether no node reports a fault, and Ray counts both."""
    status = stage.cluster.meshray(stage.head, "status", check=False)
    return status.get("problems") == [] and [node["ray"]["alive"] for node in status["nodes"]] == [True, True]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("gap_s", GAPS)
def test_a_gap_loses_nothing(stage: Stage, gap_s: int) -> None:
    stage.world.wait_until(lambda: is_whole(stage), BACK_DEADLINE_S, "the cluster before the gap")
    raylets = stage.raylets()
    transfer = stage.start_transfer()
    begun = stage.received()
    stage.head.path(f"{GO_ON}-object").touch()
    stage.world.wait_until(lambda: stage.received() > begun + OBJECT_BYTES // 20, 30, "the transfer under way")
    with silenced(stage.nat.host):
        assert stage.received() < begun + OBJECT_BYTES, "the object had come already"
        time.sleep(gap_s)
    healed = time.monotonic()
    # A call that was under way may end at once; the one after it was made over the path that is back.
    before = {name: stage.calls(name) for name in ALL}
    took: dict[str, float] = {}

    def all_go_on() -> bool:
        went_on = {name for name in ALL if stage.calls(name) >= before[name] + 2}
        for name in went_on | ({"object"} if transfer.returncode is not None else set()):
            took.setdefault(name, round(time.monotonic() - healed, 1))
        return len(took) == len(ALL) + 1

    stage.world.wait_until(all_go_on, AFTER_S, "all programs go on")
    print(f"gap of {gap_s} s: the programs went on after {took} s")
    assert transfer.returncode == 0, transfer.output
    for name in (*ALL, "object"):
        assert stage.record(name)["errors"] == [], name
    assert [program.returncode for program in stage.programs.values()] == [None] * len(ALL)
    assert stage.raylets() == raylets, "a raylet was started again"


def test_all_programs_end_well(stage: Stage) -> None:
    for host in (stage.head, stage.nested):
        host.path(GO_ON).touch()
    for name, program in stage.programs.items():
        assert program.wait(AFTER_S) == 0, (name, program.output)
        assert stage.record(name)["errors"] == [], name
