"""Every query of the alert rules and of the dashboard, as Prometheus accepts them.

>>> next(query.origin for query in queries())
'alert RayHeadNodeDown'
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from meshray.render.monitoring.grafana_dashboard import dashboard
from meshray.render.monitoring.prometheus_rules import RULES

#: The values of the dashboard's variables if every value is chosen in Grafana.
_CHOICES = {"$__rate_interval": "1m", "$__range": "1h", "$mesh": ".*", "$node": ".*"}
#: Series that Ray reports only for nodes with a readable GPU.
_GPU = re.compile(r"\bray_node_(gpus|gram)_")


class Query(NamedTuple):
    """One query.

    Attributes:
        origin: the alert, or the dashboard's panel and the query in it.
        expr: PromQL that returns series on a healthy mesh with Ray.
        needs_gpu: it returns series only if a node has a GPU that Ray can read.
    """

    origin: str
    expr: str
    needs_gpu: bool


def queries() -> tuple[Query, ...]:
    """Return the measured series of every rule, and the query of every panel, with its variables replaced.

    Raises:
        MeshrayError: templates_missing.
    """
    measured = [(f"alert {rule.name}", expr) for rule in RULES for expr in rule.measures]
    shown = [
        (f"panel {panel['title']} {target['refId']}", _chosen(target["expr"]))
        for panel in _panels(json.loads(dashboard()))
        for target in panel.get("targets", ())
    ]
    return tuple(Query(origin, expr, bool(_GPU.search(expr))) for origin, expr in (*measured, *shown))


def _panels(holder: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for panel in holder.get("panels", ()):
        yield panel
        yield from _panels(panel)


def _chosen(expr: str) -> str:
    for variable, value in _CHOICES.items():
        expr = expr.replace(variable, value)
    return expr
