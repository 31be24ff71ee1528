"""The scrape configuration of Prometheus for one mesh.

    head:20190/sd ──► targets of all nodes, with mesh, node, role, site
                        ├─ job meshray   port 20190 of each node: paths, Ray, the agent; on the head the coordinator
                        └─ job ray       the exporters of Ray on each node

The targets' labels come from the head's discovery, so a node cannot report under another node's name. With a file for
Ray's token, Ray's own discovery finds Ray's targets instead, for a Ray that meshray did not start; the names of the
nodes are then those of the time of rendering.

    >>> mesh = Monitored("lab", "10.99.0.1", 8265, (Member("gpu-1", "10.99.0.2", "worker"),))
    >>> [line.strip() for line in scrape_configuration(mesh).splitlines() if "url:" in line]
    ['- url: "http://10.99.0.1:20190/sd"', '- url: "http://10.99.0.1:20190/sd"']
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from meshray.defaults import METRICS_PORT
from meshray.errors import UsageError
from meshray.render.templates import render
from meshray.render.yaml_scalars import FILTERS

TEMPLATE = "monitoring/prometheus.yml.j2"
RULE_FILE = "alerts.yml"
ALERTMANAGER = "127.0.0.1:9093"
_INTERVAL = re.compile(r"[1-9]\d{0,3}[sm]")
_TARGET = re.compile(r"[A-Za-z0-9.-]+:\d{1,5}|\[[0-9A-Fa-f:.]+\]:\d{1,5}")


@dataclass(frozen=True)
class Member:
    """A node, whose name labels Ray's series if Ray's own discovery finds the targets."""

    name: str
    ip: str
    role: str


@dataclass(frozen=True)
class Monitored:
    """The mesh to watch.

    Attributes:
        name: the mesh's name.
        head_ip: the overlay address of the head, whose agent serves the discovery.
        dashboard_port: the port of Ray's dashboard there.
        members: all nodes.
    """

    name: str
    head_ip: str
    dashboard_port: int
    members: tuple[Member, ...]


def scrape_configuration(
    mesh: Monitored,
    *,
    rule_file: str = RULE_FILE,
    alertmanagers: tuple[str, ...] = (ALERTMANAGER,),
    interval: str = "15s",
    token_file: str = "",
) -> str:
    """Return the text of prometheus.yml.

    Args:
        rule_file: the file of `meshray render alerts`; relative to the folder of prometheus.yml.
        alertmanagers: HOST:PORT of each Alertmanager.
        interval: the time between two scrapes of a target, and between two evaluations of the rules.
        token_file: the file with Ray's token; empty: the head's agent lists Ray's targets.

    Raises:
        UsageError: ``prometheus_value``, if Prometheus would reject or misread a value.
        MeshrayError: templates_missing.
    """
    _require(_INTERVAL, interval, "--interval", "--interval 15s, or 1m")
    for target in alertmanagers:
        _require(_TARGET, target, "--alertmanager", f"--alertmanager {ALERTMANAGER}")
    for option, path in (("--rules", rule_file), ("--token-file", token_file)):
        if not path.isprintable():
            raise UsageError("prometheus_value", f"{option} {path[:80]!r} is not valid", hint=f"another {option}")
    values = {
        "mesh": mesh,
        "metrics_port": METRICS_PORT,
        "rule_file": rule_file,
        "alertmanagers": alertmanagers,
        "interval": interval,
        "token_file": token_file,
    }
    return render(TEMPLATE, values, {**FILTERS, "replacement": _replacement, "pattern": re.escape})


def _replacement(text: str) -> str:
    """Return text for the replacement of a relabelling rule, in which $1 would be a group."""
    return text.replace("$", "$$")


def _require(form: re.Pattern[str], text: str, option: str, example: str) -> None:
    if not form.fullmatch(text):
        raise UsageError("prometheus_value", f"{option} {text[:80]!r} is not valid for Prometheus", hint=example)
