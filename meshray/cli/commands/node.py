"""`meshray node …`: what the head may do with other nodes."""

from __future__ import annotations

import click

from meshray.cli.app import App
from meshray.cli.options import group, json_option, parse_duration, yes_option
from meshray.cli.results import NodeChanged, NodeList, Result
from meshray.cli.tables import children
from meshray.errors import UsageError
from meshray.model.address import NodeName


@group("node")
def node_command() -> None:
    """List, remove, drain and rename nodes. On the head."""


@node_command.command("list")
@json_option
@click.pass_obj
def list_(app: App) -> Result:
    """List every enrolled node with its versions and labels."""
    return NodeList(tuple(children(app.api("GET", "/v1/nodes"), "nodes")))


@node_command.command("rm")
@click.argument("node")
@yes_option
@json_option
@click.pass_obj
def remove(app: App, node: str, yes: bool) -> Result:
    """Remove a node from the mesh: its key and credential are worth nothing from then on.

    \b
    Example:
      sudo meshray node rm gpu-2
    """
    path = f"/v1/nodes/{app.word(node)}"
    app.confirm(f"{node} loses its place in the mesh, and Ray's tasks on it end.", yes)
    app.api("DELETE", path)
    return NodeChanged(node, "removed", {})


@node_command.command("rename")
@click.argument("node")
@click.argument("new_name", metavar="NEW")
@json_option
@click.pass_obj
def rename(app: App, node: str, new_name: str) -> Result:
    """Give a node another name; its address stays. Ray shows the new name after the node's next start."""
    name = NodeName.parse(new_name)
    app.api("PATCH", f"/v1/nodes/{app.word(node)}", {"name": str(name)})
    return NodeChanged(node, "renamed", {"name": str(name)})


@node_command.command("drain")
@click.argument("node")
@click.option("--deadline", default="10m", show_default=True, metavar="TIME", help="What Ray is told to expect.")
@json_option
@click.pass_obj
def drain(app: App, node: str, deadline: str) -> Result:
    """Let Ray give a node no more work, so that it can go down soon.

    \b
    Example:
      sudo meshray node drain gpu-2 --deadline 5m

    Running tasks go on; Ray moves no new ones to it. Afterwards: `meshray down` on that node.
    """
    from meshray.cli.ray_program import drain_node

    seconds = parse_duration(deadline)
    if seconds == 0:
        raise UsageError("bad_duration", "a drain needs a deadline", hint="--deadline 10m")
    ray_node = drain_node(app, node, seconds)
    return NodeChanged(node, "draining", {"ray_node_id": ray_node, "deadline_s": seconds})
