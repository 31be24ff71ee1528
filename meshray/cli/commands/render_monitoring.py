"""`meshray render prometheus|alerts|grafana`: files for a Prometheus and a Grafana that watch the mesh."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from meshray.cli.file_result import FileResult
from meshray.cli.options import json_option
from meshray.cli.output_file import output_option, written
from meshray.errors import MeshrayError

if TYPE_CHECKING:
    from meshray.cli.app import App
    from meshray.protocol.status import Status
    from meshray.render.monitoring import Monitored


@click.command("prometheus")
@click.option(
    "--token-file",
    default="",
    metavar="FILE",
    help="A file with Ray's token that Prometheus can read. Ray's own discovery then finds Ray's targets; only needed "
    "for a Ray that meshray did not start.",
)
@click.option(
    "--rules",
    default="alerts.yml",
    show_default=True,
    metavar="FILE",
    help="The file of `meshray render alerts`; a relative path starts at the folder of the configuration.",
)
@click.option(
    "--alertmanager",
    multiple=True,
    default=("127.0.0.1:9093",),
    show_default=True,
    metavar="HOST:PORT",
    help="Where Alertmanager listens. May be repeated.",
)
@click.option(
    "--interval",
    default="15s",
    show_default=True,
    metavar="TIME",
    help="The time between two scrapes of a node: 15s, 1m.",
)
@output_option
@json_option
@click.pass_obj
def prometheus_command(
    app: App, *, token_file: str, rules: str, alertmanager: tuple[str, ...], interval: str, output: str | None
) -> FileResult:
    """Print the configuration of a Prometheus on a node of the mesh.

    \b
    Examples:
      meshray render prometheus
      meshray render prometheus --interval 30s -o prometheus.yml
      meshray render prometheus --token-file /etc/prometheus/ray-token -o prometheus.yml

    Prometheus finds all nodes, and new ones, at the head: http://HEAD:20190/sd, an address of the overlay. Its series
    have the labels mesh, node, role and site. Ray's exporters need no token.
    """
    from meshray.protocol.control import GetStatus
    from meshray.render.monitoring import scrape_configuration

    text = scrape_configuration(
        _monitored(app.control().request(GetStatus())),
        rule_file=rules,
        alertmanagers=alertmanager,
        interval=interval,
        token_file=token_file,
    )
    return written(app, "prometheus", text, output, "promtool check config {}")


@click.command("alerts")
@output_option
@json_option
@click.pass_obj
def alerts_command(app: App, output: str | None) -> FileResult:
    """Print alert rules for Prometheus: nodes, paths and Ray.

    \b
    Examples:
      meshray render alerts
      meshray render alerts -o alerts.yml

    The rules need the labels that `meshray render prometheus` configures. Each alert names the nodes, and the command
    to run next.
    """
    from meshray.render.monitoring import alert_rules

    return written(app, "alerts", alert_rules(), output, "promtool check rules {}")


@click.command("grafana")
@output_option
@json_option
@click.pass_obj
def grafana_command(app: App, output: str | None) -> FileResult:
    """Print a dashboard for Grafana: nodes, paths, bandwidth, Ray's resources.

    \b
    Examples:
      meshray render grafana
      meshray render grafana -o meshray.json

    Import it in Grafana (Dashboards, New, Import) or copy it into a provisioned folder. It asks for the Prometheus
    that runs with `meshray render prometheus`.
    """
    from meshray.render.monitoring import dashboard

    return written(app, "grafana", dashboard(), output, "import {} in Grafana")


def _monitored(status: Status) -> Monitored:
    """Return the mesh to watch.

    Raises:
        MeshrayError: ``no_head``, if no node serves the discovery.
    """
    from meshray.model.ray_ports import RayPorts
    from meshray.render.monitoring import Member, Monitored

    head = next((node for node in status.nodes if node.role == "head"), None)
    if head is None:
        raise MeshrayError("no_head", f"the mesh {status.mesh} has no head yet", hint="meshray status")
    return Monitored(
        name=status.mesh,
        head_ip=head.ip,
        dashboard_port=head.ray.ports.get("dashboard", RayPorts().dashboard),
        members=tuple(Member(node.name, node.ip, node.role) for node in status.nodes),
    )
