"""Twenty nodes come, go and are killed; disks, clocks and the coordinator's database fail; see `crowd.py`."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from tests.chaos.crowd import REMOVED_S, STATE, WHOLE_S, Crowd, kill, listen_port, meshray, refused
from tests.chaos.oracles import left_over, on_each, traces, unreachable
from tests.chaos.plan import SUMMARY, Plan, longest_s
from tests.lab.host import CommandError, Host
from tests.lab.trouble import rebind, reboot
from tests.lab.waiting import wait_until
from tests.lab.world import World

pytestmark = pytest.mark.timeout(longest_s(os.environ))

#: Nodes before the first trouble; nodes beyond the maximum leave again. Each is a process with 50 MB.
FIRST, MOST = 6, 9
#: A killed join was anywhere between its first import and its last line.
JOIN_S = (0.2, 3.0)
CLOCK_FILE, SLEEP = "/var/lib/clock", "/var/lib/sleep"
#: The library of the package faketime. It affects Python, but not the engine (Go): for that see tests/vm.
CLOCK = {"FAKETIME_TIMESTAMP_FILE": CLOCK_FILE, "FAKETIME_CACHE_DURATION": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}

#: Under that library time.sleep fails, and with it every `subprocess.run` with a timeout.
SLEEPS = "import select, time\ntime.sleep = lambda seconds: select.select([], [], [], seconds) and None\n"


# ---- kinds of trouble


def newcomers(crowd: Crowd) -> None:
    hosts = crowd.newcomers(crowd.plan.random.randint(2, 4))
    crowd.join(hosts, ephemeral=[host for host in hosts if crowd.plan.random.random() < 0.4])


def departures(crowd: Crowd) -> None:
    crowd.leave(crowd.living()[: crowd.plan.random.randint(1, 3)])


def joins_killed(crowd: Crowd) -> None:
    hosts = crowd.newcomers(2)
    for host in hosts:
        after_s = crowd.plan.random.uniform(*JOIN_S)
        joining = host.popen(["meshray", "join", "--no-ray", crowd.token], name="join to be killed")
        with contextlib.suppress(CommandError):  # It is still at work.
            joining.wait(after_s)
        # All processes that the command has started die with it, as when the machine loses its power.
        host.shell(
            "kill -9 $(ps -e -o pid=,args= | awk '/meshray|wireguard/ && !/awk/ && !/init.py/ {print $1}')", check=False
        )
        joining.wait(10)
        crowd.join([host])


def agents_killed(crowd: Crowd) -> None:
    hosts = [*[host for host in crowd.living() if host not in crowd.ephemeral][:2], crowd.head]
    for host in hosts:
        kill(host, "agent")
    crowd.again(hosts)


def ephemeral_killed(crowd: Crowd) -> None:
    for host in [host for host in crowd.living() if host in crowd.ephemeral][:1]:
        crowd.vanish(host)


def engines_killed(crowd: Crowd) -> None:
    for host in crowd.living()[:2]:
        kill(host, "engine")


def head_engine_killed(crowd: Crowd) -> None:
    kill(crowd.head, "engine")


def coordinator_killed(crowd: Crowd) -> None:
    kill(crowd.head, "coordinator")
    crowd.answering()
    crowd.join(crowd.newcomers(1))


def disk_full(crowd: Crowd) -> None:
    head, (late,) = crowd.head, crowd.newcomers(1)
    head.shell(f"dd if=/dev/zero of={STATE}/filler bs=64k 2>/dev/null; true")
    try:
        assert refused(late, "join", "--no-ray", crowd.token) == "store_failed"
    finally:
        head.shell(f"rm {STATE}/filler")
    crowd.join([late])


def disk_read_only(crowd: Crowd) -> None:
    victim = crowd.living()[0]
    victim.run(["mount", "-o", "remount,ro", STATE])
    try:
        crowd.join(crowd.newcomers(1))
        kill(victim, "engine")
    finally:
        victim.run(["mount", "-o", "remount,rw", STATE])


def clock_jumps(crowd: Crowd) -> None:
    jump = crowd.plan.random.choice(["+1h", "-1h"])
    hosts = [crowd.head, *crowd.living()[:1]]
    for host in hosts:
        kill(host, "agent")
    kill(crowd.head, "coordinator")
    library = crowd.head.shell("ls /usr/lib/*/faketime/libfaketimeMT.so.1").stdout.split()[0]
    for host in hosts:
        host.path(CLOCK_FILE).write_text("+0\n")
        host.path(SLEEP).mkdir(exist_ok=True)
        host.path(f"{SLEEP}/sitecustomize.py").write_text(SLEEPS)
        clock = {**CLOCK, "LD_PRELOAD": library, "PYTHONPATH": SLEEP}
        host.popen(["python", "-m", "meshray.agent"], env=clock, name="agent on a clock")
    # The clock should jump under a running agent, not under one that starts.
    crowd.answering(*hosts)
    for moment in (jump, "+0"):
        chosen = crowd.plan.random.choice([hosts, hosts[:1], hosts[1:]])
        for host in chosen:
            host.path(CLOCK_FILE).write_text(f"{moment}\n")
        # The agent's handshake times are not checked: only here does it have another clock than its engine.
        what = f"data while the clocks of {[host.name for host in chosen]} stand at {moment}"
        wait_until(lambda: not unreachable(crowd.members), WHOLE_S, what, evidence=crowd.world.logs)
    # From here on with the machine's own clock.
    for host in hosts:
        kill(host, "agent")
        host.shell(f"rm -r {CLOCK_FILE} {SLEEP}")
    kill(crowd.head, "coordinator")
    crowd.again(hosts)


def restore(crowd: Crowd) -> None:
    head = crowd.head
    # Like `cp`: the database and its log in their current state.
    head.shell(f"rm -rf /root/copy; mkdir /root/copy; cp {STATE}/coordinator.db* /root/copy/")
    since = crowd.newcomers(2)
    crowd.join(since)
    for part in ("agent", "coordinator"):
        kill(head, part)
    head.shell(f"rm {STATE}/coordinator.db*; cp /root/copy/* {STATE}/")
    crowd.again([head])
    crowd.restored = True
    # At once: the new node must not get another node's address.
    crowd.join(crowd.newcomers(1))
    answer = meshray(head, "node", "list")["restored"]
    assert set(answer["added"]) >= {host.name for host in since}


def router_rebooted(crowd: Crowd) -> None:
    reboot(crowd.nat, crowd.plan.random.uniform(1, 4))


def mapping_moved(crowd: Crowd) -> None:
    for host in [host for host in crowd.living() if str(host.address).startswith("192.168.")][:1]:
        port = host.wait_until(partial(listen_port, host), 30, "a WireGuard that answers")
        rebind(crowd.nat, host, port, crowd.plan.random.randint(40000, 49999))


KINDS: dict[str, Callable[[Crowd], None]] = {
    kind.__name__: kind
    for kind in (
        newcomers, departures, joins_killed, agents_killed, ephemeral_killed, engines_killed, head_engine_killed,
        coordinator_killed, disk_full, disk_read_only, clock_jumps, restore, router_rebooted, mapping_moved,
    )
}  # fmt: skip


@dataclass
class Stage:
    crowd: Crowd
    before: dict[Host, dict[str, Any]]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with World("chaos-crowd") as world:
        crowd = Crowd.build(world, Plan.of(os.environ, "crowd"))
        before = on_each(crowd.nodes, traces)
        crowd.begin()
        yield Stage(crowd, before)


def test_the_mesh_is_whole_after_each_trouble(stage: Stage, record_property: Callable[[str, object], None]) -> None:
    crowd, plan = stage.crowd, stage.crowd.plan
    crowd.join(crowd.newcomers(FIRST), ephemeral=crowd.newcomers(0))
    crowd.whole("the first joins")
    begin = time.monotonic()
    rounds = 0
    for group in plan.rounds(list(KINDS), at_once=3):
        rounds += 1
        begun = time.monotonic()
        for name in group:
            KINDS[name](crowd)
            plan.report(f"  {name} {time.monotonic() - begun:.1f} s")
        crowd.leave(crowd.living()[: max(0, len(crowd.members) - 1 - MOST)])
        took = crowd.whole(" + ".join(group))
        plan.report(f"{' + '.join(group)}: {time.monotonic() - begun:.1f} s, whole after {took:.1f} s")
    record_property(SUMMARY, f"twenty nodes: {rounds} rounds in {time.monotonic() - begin:.0f} s")


def test_leave_leaves_nothing(stage: Stage) -> None:
    crowd = stage.crowd
    crowd.whole("all of it")
    wait_until(crowd.vanished, REMOVED_S, "the ephemeral nodes are gone", evidence=crowd.world.logs)
    crowd.leave(crowd.living())
    meshray(crowd.head, "leave", "--yes")
    left = on_each(crowd.nodes, lambda host: left_over(stage.before[host], traces(host)))
    assert {host.name: lines for host, lines in left.items() if lines} == {}
