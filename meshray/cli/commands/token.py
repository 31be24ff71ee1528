"""`meshray token …`: create and revoke the right to join, at the head."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import click

from meshray.cli.app import App
from meshray.cli.complete import node_names
from meshray.cli.join_line import join_line
from meshray.cli.lock_file import create_token, open_lock
from meshray.cli.options import group, json_option, lock_option, parse_duration
from meshray.cli.result import Result
from meshray.cli.tables import Paint, age, columns, plain
from meshray.model.address import NodeName
from meshray.model.node import HEAD, HUB
from meshray.model.token import require_one_node
from meshray.protocol.answers import TokenCreate, TokenEntry, TokenList, TokenRevoke
from meshray.protocol.codec import convert, or_unset


@dataclass(frozen=True)
class TokenResult(Result[TokenCreate]):
    """``token create``."""

    def text(self, paint: Paint = plain) -> str:
        """Return the token alone on its line, for `meshray token create | ssh gpu-1 sudo meshray join -`."""
        return self.answer.line or self.answer.token


@dataclass(frozen=True)
class TokenListResult(Result[TokenList]):
    """``token list``."""

    def text(self, paint: Paint = plain) -> str:
        """Return one line per token."""
        return _tokens_text(self.answer.tokens, time.time())


@dataclass(frozen=True)
class RevokedResult(Result[TokenRevoke]):
    """``token revoke``."""

    def text(self, paint: Paint = plain) -> str:
        """Return that the token is revoked."""
        return f"token {self.answer.id} is revoked; nodes that joined with it stay"


@group("token")
def token_command() -> None:
    """Create, list and revoke the tokens with which nodes join. On the head."""


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
) -> TokenResult:
    """Create a token and print it on a separate line.

    \b
    Examples:
      sudo meshray token create
      sudo meshray token create --line
      sudo meshray token create --uses 0 --ttl 7d --ephemeral > token; chmod 600 token
      sudo meshray token create --hub
      sudo meshray token create --name gpu-1 --replace
    """
    require_one_node(name, uses=uses, replaces=replace)
    roles = sorted(role for role, is_given in ((HUB, hub), (HEAD, head)) if is_given)
    body: dict[str, object] = {"uses": uses, "ttl_s": parse_duration(ttl), "ephemeral": ephemeral, "roles": roles}
    if name is not None:
        body |= {"name": NodeName.parse(name), "replace": replace}
    made = create_token(app, body, open_lock(lock))
    answer = TokenCreate(
        token=made.token,
        id=made.id,
        uses=made.uses,
        expires=made.expires,
        roles=made.roles,
        name=made.name or None,
        replace=made.replace,
        line=or_unset(join_line(app, made.token) if line else ""),
    )
    return TokenResult(answer)


@token_command.command("list")
@json_option
@click.pass_obj
def list_(app: App) -> TokenListResult:
    """List the tokens, never their secrets."""
    return TokenListResult(convert(app.api("GET", "/v1/tokens"), TokenList))


@token_command.command("revoke")
@click.argument("token_id", metavar="ID")
@json_option
@click.pass_obj
def revoke(app: App, token_id: str) -> RevokedResult:
    """Revoke a token at once. Nodes that joined with it stay in the mesh."""
    app.api("DELETE", f"/v1/tokens/{app.word(token_id)}")
    return RevokedResult(TokenRevoke(token_id, revoked=True))


def _tokens_text(tokens: Iterable[TokenEntry], now: float) -> str:
    """Return one line per token; never a secret."""
    rows = [("TOKEN", "USED", "EXPIRES", "EPHEMERAL", "ROLES", "NODE", "STATE")]
    for token in tokens:
        rows.append(
            (
                token.id,
                f"{token.used} of {token.uses or 'any number'}",
                "never" if token.expires is None else age(token.expires - now),
                "yes" if token.ephemeral else "no",
                ", ".join(token.roles) or "-",
                _token_node(token),
                _token_state(token, now),
            )
        )
    return columns(rows)


def _token_node(token: TokenEntry) -> str:
    """Return the name of the node that joins with the token, and whether it replaces one."""
    return f"{token.name} (replaces it)" if token.name and token.replace else token.name or "-"


def _token_state(token: TokenEntry, now: float) -> str:
    if token.revoked:
        return "revoked"
    if token.expires is not None and token.expires <= now:
        return "expired"
    return "used up" if 0 < token.uses <= token.used else "valid"
