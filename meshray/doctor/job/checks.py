"""Checks of the results of ``doctor --deep``: tasks on every node and data between every ordered pair (pure).

They run after the other checks and do not repeat faults that those found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from meshray.doctor.facts import Facts
from meshray.doctor.job.facts import SIZE, SOAK_S, DeepFacts, Step
from meshray.doctor.report import FAIL, OK, SKIP, Finding, Spec


def _ray_deep(facts: Facts) -> Iterable[Finding]:
    deep = facts.deep
    if deep is not None:
        yield from _round(deep, again=False)


def _ray_soak(facts: Facts) -> Iterable[Finding]:
    deep = facts.deep
    if deep is None:
        return
    if not any(step.again for step in deep.steps) and any(step.error for step in deep.steps):
        yield Finding(SKIP, "it does not work in the first place")
    else:
        yield from _round(deep, again=True)


def _round(deep: DeepFacts, *, again: bool) -> Iterator[Finding]:
    if deep.skipped:
        yield Finding(SKIP, deep.skipped)
        return
    steps = [step for step in deep.steps if step.again is again]
    for step in steps:
        yield _moved(step, again) if step.source else _ran(step, again)
    if deep.error and (again or not any(step.again for step in deep.steps)):
        after = f" after {len(steps)} steps" if steps else ""
        yield Finding(FAIL, f"the job did not finish{after}: {deep.error}", "meshray logs ray")


def _ran(step: Step, again: bool) -> Finding:
    if step.error:
        fix = f"on {step.target}: meshray logs ray"
        return Finding(FAIL, f"a task pinned on {step.target} failed{_later(again)}: {step.error}", fix, step.target)
    return Finding(OK, f"a task pinned on it ran{_later(again)} ({step.seconds:.1f} s)", node=step.target)


def _moved(step: Step, again: bool) -> Finding:
    pair = f"{SIZE // 2**20} MiB from {step.source} to {step.target}"
    if step.error:
        fix = f"on {step.source}: meshray ping {step.target}; on {step.target}: meshray logs ray"
        evidence = f"{pair} failed{_later(again)}: {step.error}"
        return Finding(FAIL, evidence, fix, step.source, step.target)
    speed = f", {SIZE / 1e6 / step.seconds:.1f} MB/s" if step.seconds else ""
    evidence = f"{pair}{_later(again)} in {step.seconds:.2f} s{speed}"
    return Finding(OK, evidence, node=step.source, peer=step.target)


def _later(again: bool) -> str:
    return f", {SOAK_S} s later," if again else ""


_RAY = (
    *("agent_running", "node_answers", "handshake_fresh", "peer_answers", "own_address", "ray_installed"),
    *("ray_versions", "ray_running", "ray_ports", "ray_token", "ray_advertised", "ray_head_answers", "ray_alive"),
)

SPECS: tuple[Spec, ...] = (
    Spec("ray_deep", "tasks on every node, data between them", _RAY, _ray_deep),
    Spec("ray_soak", f"all of that still works after {SOAK_S} s", (*_RAY, "ray_deep"), _ray_soak),
)
