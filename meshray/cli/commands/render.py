"""`meshray render …`: configuration files for other programs, printed."""

from __future__ import annotations

import click

from meshray.cli.app import App
from meshray.cli.options import group, json_option
from meshray.cli.results import FileText, Result


@group("render")
def render_command() -> None:
    """Print a configuration file."""


@render_command.command("wireguard")
@click.argument("node")
@click.option("--secrets", is_flag=True, help="With the private key; only for this very node, as root.")
@json_option
@click.pass_obj
def wireguard(app: App, node: str, secrets: bool) -> Result:
    """Print a node's tunnel as a wg-quick file.

    \b
    Example:
      meshray render wireguard gpu-2
    """
    answer = app.control().ask("wireguard_secrets" if secrets else "wireguard", node=node)
    return FileText("wireguard", str(answer.get("text", "")))


@render_command.command("systemd")
@json_option
@click.pass_obj
def systemd(app: App) -> Result:
    """Print the unit under which systemd runs this node's agent.

    \b
    Example:
      meshray render systemd > /etc/systemd/system/meshray.service
    """
    from meshray.runtime.service import unit_text

    return FileText("systemd", unit_text(app.own_home, app.environ))
