"""`meshray token …`: create and revoke the right to join, at the head."""

from __future__ import annotations

import time

import click

from meshray.cli.app import App
from meshray.cli.complete import node_names
from meshray.cli.join_line import join_line
from meshray.cli.lock_file import create_token, open_lock
from meshray.cli.options import group, json_option, lock_option, parse_duration
from meshray.cli.results import Result, TokenCreated, TokenList, TokenRevoked
from meshray.model.address import NodeName
from meshray.model.node import HEAD, HUB
from meshray.model.token import require_one_node
from meshray.protocol.codec import convert


@group("token")
def token_command() -> None:
    """Make, list and revoke the tokens with which nodes join. On the head."""


@token_command.command("create")
@click.option(
    "--uses",
    type=click.IntRange(0, 10**6),
    default=1,
    show_default=True,
    help="How many nodes may join with it; 0 is any number.",
)
@click.option(
    "--ttl", default="24h", show_default=True, metavar="TIME", help="How long it is valid: 30m, 24h, 7d, or never."
)
@click.option("--ephemeral", is_flag=True, help="Nodes that join with it are removed when they go away.")
@click.option("--hub", is_flag=True, help="Nodes may join with it as hubs, which read what they forward.")
@click.option("--head", is_flag=True, help="A node may join with it as the Ray head of a mesh that has none.")
@click.option(
    "--name",
    metavar="NODE",
    shell_complete=node_names,
    help="The name of the node that joins with it. The name is reserved until then.",
)
@click.option(
    "--replace",
    is_flag=True,
    help="With --name: the machine that joins replaces the node of that name. It takes over the name and "
    "address; the old node is removed at that moment.",
)
@click.option("--line", is_flag=True, help="Print the whole command for the other machine.")
@lock_option("The lock file of `init --lock`, which signs the token. It stays on this machine.")
@json_option
@click.pass_obj
def create(
    app: App,
    *,
    uses: int,
    ttl: str,
    ephemeral: bool,
    hub: bool,
    head: bool,
    name: str | None,
    replace: bool,
    line: bool,
    lock: str | None,
) -> Result:
    """Make a token and print it on a line of its own.

    \b
    Examples:
      sudo meshray token create
      sudo meshray token create --line
      sudo meshray token create --uses 0 --ttl 7d --ephemeral > token; chmod 600 token
      sudo meshray token create --hub
      sudo meshray token create --name gpu-1 --replace
    """
    require_one_node(name, uses=uses, replaces=replace)
    roles = sorted(role for role, is_said in ((HUB, hub), (HEAD, head)) if is_said)
    body: dict[str, object] = {"uses": uses, "ttl_s": parse_duration(ttl), "ephemeral": ephemeral, "roles": roles}
    if name is not None:
        body |= {"name": NodeName.parse(name), "replace": replace}
    made = create_token(app, body, open_lock(lock))
    return TokenCreated(
        token=made.token,
        id=made.id,
        uses=made.uses,
        expires=made.expires,
        roles=made.roles,
        name=made.name or "",
        replace=made.replace,
        line=join_line(app, made.token) if line else "",
    )


@token_command.command("list")
@json_option
@click.pass_obj
def list_(app: App) -> Result:
    """List the tokens, never their secrets."""
    from meshray.protocol import answers

    return TokenList(convert(app.api("GET", "/v1/tokens"), answers.TokenList).tokens, now=time.time())


@token_command.command("revoke")
@click.argument("token_id", metavar="ID")
@json_option
@click.pass_obj
def revoke(app: App, token_id: str) -> Result:
    """Revoke a token at once. Nodes that joined with it stay in the mesh."""
    app.api("DELETE", f"/v1/tokens/{app.word(token_id)}")
    return TokenRevoked(token_id)
