"""The tests that one process runs under pytest-xdist, and their order: long ones first, heavy ones never side by side.

Tests that share an environment are one scope: usually a module. The fast tiers come first, in their order. All other
scopes follow by their recorded durations, the longest first, so that short ones are left when the first process has
nothing more to do. A third process runs scopes that mostly wait, and ends when none is left. `--record-costs` updates
the record.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath

from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

#: The modules that continue with the one cluster, in this order, in one process: a second cluster would take its time
#: again. The last module ends the cluster.
OF_ONE_CLUSTER = ("test_main_job", "test_guard", "test_doctor_ray", "test_reliability", "test_teardown")
CLUSTER = "cluster"

#: The tiers whose tests share one environment.
OF_ONE_ENVIRONMENT = frozenset({"container", "containerlab", "kube", "vm", "web"})
#: The tiers that finish within minutes, in this order. Mesh tests measure time, so they come before the heavy scopes
#: begin; unit tests do not mind.
FAST = ("mesh", "unit")

#: The scopes that need both cores for minutes: Kubernetes, images and virtual machines, and thirty machines at once.
#: Two of them side by side exceed each other's deadlines.
HEAVY = frozenset(
    {
        "container",
        "containerlab",
        "kube",
        "vm",
        "tests/chaos/test_crowd.py",
        "tests/chaos/test_ray.py",
        "tests/lab/test_many_machines.py",
        "tests/lab/test_torch.py",
    }
)
EMULATED = "vm"
#: The scopes that fail where an answer comes some seconds late, such as the doctor's question for the coordinator's
#: time. They run beside no heavy one.
TIMED = frozenset(
    {
        "tests/lab/test_closing.py",
        "tests/lab/test_doctor_host.py",
        "tests/lab/test_drawn_faults.py",
        "tests/lab/test_honest_numbers.py",
    }
)

#: The scopes that start Ray: about 14 seconds of processor time for a head and 9 for a worker. Three at once exceed
#: Ray's own deadlines on two cores.
WITH_RAY = frozenset(
    {
        CLUSTER,
        "container",
        "containerlab",
        "kube",
        "web",
        "tests/chaos/test_ray.py",
        *(
            f"tests/lab/test_{name}.py"
            for name in (
                *("backup", "dead_nodes", "environments", "external_ray", "first_hour", "gaps"),
                *("guard_attacks", "matching", "narrowing", "other_rays", "path_changes", "places", "ports"),
                *("previous_version", "ray_alone", "rootless", "rootless_stock", "scrapes", "secrets", "slurm"),
                *("ssh", "torch", "upgrades"),
            )
        ),
    }
)
MOST_WITH_RAY = 2

#: The scopes that mostly wait use at most this part of a core. Beside two others, only such a scope is run.
LIGHT_SHARE = 0.45
MOST_NOT_LIGHT = 2

RECORD = Path(__file__).with_name("costs.json")


@dataclass(frozen=True)
class Cost:
    """The cost of a scope: seconds, and core-seconds of all processes that it started."""

    s: float = 0.0
    cpu_s: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Return the cost of both."""
        return Cost(self.s + other.s, self.cpu_s + other.cpu_s)


#: The cost of a scope that is not in the record.
UNKNOWN = Cost(120.0, 60.0)


def scope_of(nodeid: str) -> str:
    """Return the scope of a test: its module, or the environment that several modules share."""
    module = PurePath(nodeid.partition("::")[0])
    # A folder of another tier may have the same name, such as tests/unit/web.
    tier = module.parent.name if module.parts[:-2] == ("tests",) else ""
    if tier in OF_ONE_ENVIRONMENT:
        return tier
    return CLUSTER if tier == "lab" and module.stem in OF_ONE_CLUSTER else str(module)


def rank(nodeid: str) -> tuple[float, str]:
    """Return the sort key of a test: fast tiers first, then scopes by duration, the longest first."""
    parts = PurePath(nodeid.partition("::")[0]).parts
    tier = parts[1] if parts[:1] == ("tests",) and len(parts) > 2 else ""
    if not tier or tier in FAST:
        return (float("-inf") if not tier else -1e9 + FAST.index(tier), "")
    scope = scope_of(nodeid)
    return (-recorded().get(scope, UNKNOWN).s, scope)


def disturb(one: str, other: str) -> bool:
    """Return whether these two scopes must not run side by side."""
    both = {one, other}
    # An emulated processor needs a whole core: Python's imports take a minute on it.
    if EMULATED in both and not both.isdisjoint(WITH_RAY):
        return True
    return not both.isdisjoint(HEAVY) and both <= HEAVY | TIMED


def is_light(scope: str) -> bool:
    """Return whether the scope leaves most of a core to others, as recorded, and has no deadline that others exceed."""
    cost = recorded().get(scope, UNKNOWN)
    return scope not in HEAVY | TIMED | WITH_RAY and cost.cpu_s <= LIGHT_SHARE * cost.s


def fits(scope: str, beside: Collection[Collection[str]]) -> bool:
    """Return whether the scope may run beside these, those of each other process."""
    if disturbed(scope, beside):
        return False
    if not is_light(scope) and not_light(beside) >= MOST_NOT_LIGHT:
        return False
    return scope not in WITH_RAY or sum(1 for of_one in beside if not WITH_RAY.isdisjoint(of_one)) < MOST_WITH_RAY


def disturbed(scope: str, beside: Collection[Collection[str]]) -> bool:
    """Return whether any of these must not run beside the scope."""
    return any(disturb(scope, other) for of_one in beside for other in of_one)


def not_light(beside: Collection[Collection[str]]) -> int:
    """Return the number of processes with a scope that does not mostly wait."""
    return sum(1 for of_one in beside if not all(map(is_light, of_one)))


def record(costs: Mapping[str, Cost]) -> None:
    """Update the record with the costs of these scopes; the fast tiers are not recorded."""
    kept = {scope: cost for scope, cost in costs.items() if not scope.startswith(_FAST_FOLDERS)}
    rounded = {scope: [round(cost.s, 1), round(cost.cpu_s, 1)] for scope, cost in {**recorded(), **kept}.items()}
    lines = (f"  {json.dumps(scope)}: {json.dumps(numbers)}" for scope, numbers in sorted(rounded.items()))
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")


_FAST_FOLDERS = tuple(f"tests/{tier}/" for tier in FAST)


@cache
def recorded() -> dict[str, Cost]:
    """Return the cost of each recorded scope."""
    return {str(scope): Cost(*map(float, numbers)) for scope, numbers in json.loads(RECORD.read_text()).items()}


class ByEnvironment(LoadScopeScheduling):  # type: ignore[misc]
    """Schedule a scope at a time, in the order of the tests, but none beside one that it disturbs."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        beside = [
            [scope for scope, done in work.items() if not all(done.values())]
            for other, work in self.assigned_work.items()
            if other is not node
        ]
        waiting = list(self.workqueue)
        if waiting and not waiting[0].startswith(_FAST_FOLDERS):
            # They run one at a time, so that the last of them must not be left for the end; the emulated machine runs
            # beside the fewest others.
            waiting.sort(key=lambda scope: (scope != EMULATED, scope not in HEAVY))
        scope = next((scope for scope in waiting if fits(scope, beside)), None)
        if scope is None and not_light(beside) >= MOST_NOT_LIGHT:
            # The others remain, and nothing that mostly waits is left for this process.
            node.shutdown()
            return
        # At the end, rather one too many than one that is disturbed.
        scope = scope or next((one for one in waiting if not disturbed(one, beside)), None)
        if scope is not None:
            self.workqueue.move_to_end(scope, last=False)
        super()._assign_work_unit(node)
