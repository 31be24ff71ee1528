"""The alert rules: for nodes, paths and Ray.

An alert's query returns nothing in a healthy mesh. So each rule also names the series that it measures, whose presence
a test can check.

>>> [rule.name for rule in RULES if rule.severity == "critical"]
['RayHeadNodeDown', 'MeshrayNodeDown']
"""

from __future__ import annotations

from dataclasses import dataclass

from meshray.render.templates import render
from meshray.render.yaml_scalars import FILTERS

TEMPLATE = "monitoring/alerts.yml.j2"
#: As in the doctor's `path_loss`.
LOSS = 0.05
#: WireGuard renews a key after 120 s of traffic and rejects it after 180 s.
STALE_HANDSHAKE_S = 300
#: Shares of the object store's capacity; failed tasks per second.
OBJECT_STORE_USE, TASK_FAILURES = 0.9, 0.1
#: The window in which failed tasks are counted, as Prometheus writes it and in seconds.
_WINDOW, _WINDOW_S = "5m", 300

_PAIR = "mesh, node, peer"


@dataclass(frozen=True)
class Rule:
    """One alert rule.

    Attributes:
        name: the alert's name.
        group: the group of rules that Prometheus evaluates together.
        expr: the condition, in PromQL; its series carry the labels that the texts use.
        measures: parts of ``expr`` that return series in a healthy mesh.
        for_: how long the condition must last, as Prometheus writes it.
        severity: ``critical`` or ``warning``.
        summary, description: texts of the notification, with Prometheus' templates.
        command: what to run, and on which node if that matters.
    """

    name: str
    group: str
    expr: str
    measures: tuple[str, ...]
    for_: str
    severity: str
    summary: str
    description: str
    command: str


def _all_down(role: str) -> tuple[str, tuple[str, ...]]:
    """Return the condition that Ray does not run on nodes of this role, and the series that it measures."""
    # The head has three targets of Ray; one that fails alone is not a lost head.
    targets = f'max by (mesh, node) (up{{job="ray", {role}}})'
    listed = f'min by (mesh, node) (meshray_ray_alive{{job="meshray", {role}}})'
    return f"{targets} == 0 or {listed} == 0", (targets, listed)


def _object_store() -> str:
    """Return the used share of each node's object store, which Ray's own metrics report in bytes."""
    used = 'sum by (mesh, node) (ray_resources{job="ray", Name="object_store_memory", State="USED"})'
    return f'{used} / sum by (mesh, node) (ray_resources{{job="ray", Name="object_store_memory"}})'


def _task_failures() -> str:
    """Return the failed tasks per second of each node; 0 for a node whose Ray reports none.

    `rate` ignores the first value of a series, and a new function that fails 1000 times at once has only that one. So
    a series that is younger than the window counts with its whole value, unless the node is as new to Prometheus.
    """
    failed = 'ray_tasks{job="ray", State="FAILED"}'
    first = f'{failed} unless {failed} offset {_WINDOW} and on (mesh, node) up{{job="ray"}} offset {_WINDOW}'
    recent = f"({first}) / {_WINDOW_S} or rate({failed}[{_WINDOW}])"
    return f'(sum by (mesh, node) ({recent}) or 0 * max by (mesh, node) (up{{job="ray"}}))'


_HEAD, _HEAD_MEASURES = _all_down('role="head"')
_WORKER, _WORKER_MEASURES = _all_down('role!="head"')
_STORE = _object_store()
_FAILURES = _task_failures()
_WAS_DIRECT = f'max by ({_PAIR}) (max_over_time(meshray_peer_path_info{{kind="direct"}}[1d]))'
_LOSS = f"max by ({_PAIR}) (avg_over_time(meshray_peer_loss_ratio[{_WINDOW}]))"
_HANDSHAKE = f"max by ({_PAIR}) (meshray_peer_last_handshake_seconds)"
#: A peer whose node does not answer is reported by MeshrayNodeDown.
_PEER_UP = 'label_replace(max by (mesh, node) (up{job="meshray"}) == 1, "peer", "$1", "node", "(.+)")'
_AGENT = 'max by (mesh, node) (up{job="meshray"})'

RULES = (
    Rule(
        name="RayHeadNodeDown",
        group="ray",
        expr=_HEAD,
        measures=_HEAD_MEASURES,
        for_="5m",
        severity="critical",
        summary="The Ray head {{ $labels.node }} is down",
        description="Ray has not run on {{ $labels.node }}, the head of mesh {{ $labels.mesh }}, for 5 minutes: no "
        "job can start, and running jobs fail.",
        command="meshray doctor {{ $labels.node }}",
    ),
    Rule(
        name="RayWorkerDown",
        group="ray",
        expr=_WORKER,
        measures=_WORKER_MEASURES,
        for_="2m",
        severity="warning",
        summary="Ray is down on {{ $labels.node }}",
        description="Ray does not run on {{ $labels.node }} of mesh {{ $labels.mesh }}: the cluster lacks its CPUs and "
        "GPUs.",
        command="meshray doctor {{ $labels.node }}",
    ),
    Rule(
        name="RayHighMemoryUsage",
        group="ray",
        expr=f"{_STORE} > {OBJECT_STORE_USE}",
        measures=(_STORE,),
        for_="5m",
        severity="warning",
        summary="The object store of {{ $labels.node }} is {{ $value | humanizePercentage }} full",
        description="Ray's object store on {{ $labels.node }} of mesh {{ $labels.mesh }} is "
        "{{ $value | humanizePercentage }} full. Objects that do not fit are written to disk, or tasks wait.",
        command="meshray run -- ray memory --stats-only",
    ),
    Rule(
        name="RayTaskFailures",
        group="ray",
        expr=f"{_FAILURES} > {TASK_FAILURES}",
        measures=(_FAILURES,),
        for_="1m",
        severity="warning",
        summary="Tasks fail on {{ $labels.node }}",
        description='{{ $value | printf "%.1f" }} tasks per second, submitted by programs on '
        "{{ $labels.node }} of mesh {{ $labels.mesh }}, have failed in the last 5 minutes.",
        command="meshray run -- ray summary tasks",
    ),
    Rule(
        name="MeshrayNodeDown",
        group="meshray",
        expr=f"{_AGENT} == 0",
        measures=(_AGENT,),
        for_="2m",
        severity="critical",
        summary="{{ $labels.node }} is down",
        description="The agent of {{ $labels.node }} in mesh {{ $labels.mesh }} does not answer over the overlay: the "
        "machine is off, its network is interrupted, or meshray does not run there.",
        command="meshray doctor {{ $labels.node }}",
    ),
    Rule(
        name="MeshrayPathRelayed",
        group="meshray",
        expr=f'{_WAS_DIRECT} and on ({_PAIR}) meshray_peer_path_info{{kind="hub"}} == 1',
        measures=(_WAS_DIRECT,),
        for_="1m",
        severity="warning",
        summary="The path from {{ $labels.node }} to {{ $labels.peer }} fell back to a hub",
        description="Packets from {{ $labels.node }} to {{ $labels.peer }} in mesh {{ $labels.mesh }} go through a "
        "hub. Their path was direct within the last day; transfers between them are slower now.",
        command="on {{ $labels.node }}: meshray ping {{ $labels.peer }}",
    ),
    Rule(
        name="MeshrayPathLossy",
        group="meshray",
        expr=f"{_LOSS} > {LOSS}",
        measures=(_LOSS,),
        for_="2m",
        severity="warning",
        summary="The path from {{ $labels.node }} to {{ $labels.peer }} loses {{ $value | humanizePercentage }}",
        description="{{ $value | humanizePercentage }} of the probes from {{ $labels.node }} to {{ $labels.peer }} in "
        "mesh {{ $labels.mesh }} were lost in the last 5 minutes: Ray's transfers between them are slow.",
        command="on {{ $labels.node }}: meshray doctor {{ $labels.peer }}",
    ),
    Rule(
        name="MeshrayHandshakeStale",
        group="meshray",
        expr=f"time() - {_HANDSHAKE} > {STALE_HANDSHAKE_S} and on (mesh, peer) {_PEER_UP}",
        measures=(_HANDSHAKE, _PEER_UP),
        for_="1m",
        severity="warning",
        summary="{{ $labels.node }} has no WireGuard handshake with {{ $labels.peer }}",
        description="The last WireGuard handshake of {{ $labels.node }} with {{ $labels.peer }} in mesh "
        "{{ $labels.mesh }} was {{ $value | humanizeDuration }} ago, although {{ $labels.peer }} is up: a firewall or "
        "the clock of one of the two prevents a new one.",
        command="on {{ $labels.node }}: meshray doctor {{ $labels.peer }}",
    ),
)


def alert_rules() -> str:
    """Return Prometheus' rule file.

    Raises:
        MeshrayError: templates_missing.
    """
    groups = {rule.group: [other for other in RULES if other.group == rule.group] for rule in RULES}
    return render(TEMPLATE, {"groups": groups}, FILTERS)
