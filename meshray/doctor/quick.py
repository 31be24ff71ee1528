"""The doctor's checks that are cheap enough for every start of Ray and for every status.

The same functions decide the warnings before Ray starts, the problems in status, and the doctor's report.

>>> [(check.code, check.status) for check in judge(MachineFacts(with_ray=True, shm_total=64 * 1024**2))]
[('shared_memory', 'fail')]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from meshray.doctor.deadlines import in_thread, in_time
from meshray.doctor.facts import Facts, HostFacts, NodeFacts
from meshray.doctor.machine import probe
from meshray.doctor.machine.checks import QUICK
from meshray.doctor.machine.facts import MachineFacts
from meshray.doctor.report import FAIL, WARN
from meshray.home import Home
from meshray.model.problem import Problem
from meshray.protocol.doctor import Check

#: Resolving the own name takes the longest, see `meshray.doctor.machine.probe`.
_BEFORE_RAY_S = 3.0
#: A folder may be on a file server that is away; status continues without it.
_STATUS_S = 0.2


def judge(facts: MachineFacts, node: str = "") -> list[Check]:
    """Return the failures and warnings of the machine (pure)."""
    found = Facts(nodes={node: NodeFacts(node, HostFacts(machine=facts))})
    return [spec.line(one) for spec in QUICK for one in spec.run(found) if one.status in (FAIL, WARN)]


async def before_ray(home: Home, environ: Mapping[str, str], ray_args: Sequence[str]) -> list[Check]:
    """Return the faults that would slow down or end Ray on this machine."""
    facts = await in_time(probe.measure_before_ray(home, environ, ray_args), _BEFORE_RAY_S)
    return judge(facts) if facts is not None else []


async def of_machine(
    complaints: Sequence[Problem],
    node: str,
    home: Home,
    environ: Mapping[str, str],
    ray_args: Sequence[str] | None,
    *,
    trusted: bool = False,
) -> tuple[tuple[Problem, ...], tuple[str, ...]]:
    """Return the faults of this machine for its node's status: failures as problems, warnings as notices.

    Args:
        complaints: the failures of the node's parts, which know more than an examination of the folder.
        ray_args: the arguments of `ray start`; None: no Ray should run here.
        trusted: `--trust-user-environment` was given.
    """
    facts = await in_time(in_thread(partial(probe.of_agent, home, environ, ray_args, trusted=trusted)), _STATUS_S)
    known = {problem.code for problem in complaints if problem.node == node}
    checks = [check for check in judge(facts, node) if check.code not in known] if facts is not None else []
    failed = (Problem(check.code, check.evidence, node, check.fix) for check in checks if check.status == FAIL)
    return tuple(failed), tuple(check.evidence for check in checks if check.status == WARN)
