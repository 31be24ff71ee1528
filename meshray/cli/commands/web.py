"""`meshray web …`: the coordinator's page in a browser, for this user and for others."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from meshray.cli.options import group, json_option, parse_duration
from meshray.cli.page_address import InviteResult, OpenResult
from meshray.cli.result import Result
from meshray.cli.tables import Paint, age, columns, plain
from meshray.defaults import DEFAULT_PORT
from meshray.errors import UsageError
from meshray.protocol.codec import convert
from meshray.protocol.web_answers import PassEntry, WebInvite, WebList, WebRevoke

if TYPE_CHECKING:
    from meshray.cli.app import App

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_LONGEST_S = 366 * 86400
_ttl_option = click.option(
    "--ttl",
    default="8h",
    show_default=True,
    metavar="TIME",
    help="How long the pass and its session last: 30m, 8h, 7d.",
)
_use_option = click.option(
    "--use",
    is_flag=True,
    help="Also allow all methods and WebSockets of Ray's dashboard and Serve, and `meshray forward`.",
)
_admin_option = click.option(
    "--admin", is_flag=True, help="Also allow tokens, the removal of nodes, and orders to nodes."
)


@dataclass(frozen=True)
class PassListResult(Result[WebList]):
    """``web list``."""

    def text(self, paint: Paint = plain) -> str:
        """Return one line per pass."""
        return _passes_text(self.answer.passes, time.time())


@dataclass(frozen=True)
class PassRevokedResult(Result[WebRevoke]):
    """``web revoke``."""

    def text(self, paint: Paint = plain) -> str:
        """Return that the pass is revoked."""
        return f"the pass {self.answer.id} of {self.answer.name} is revoked; its session has ended"


@group("web")
def web_command() -> None:
    """Open the page of the mesh in a browser, and invite others to it."""


@web_command.command("invite")
@click.argument("name")
@_ttl_option
@_use_option
@_admin_option
@click.option("--host", metavar="HOST[:PORT]", help="The coordinator's address in the URL; default: its first one.")
@json_option
@click.pass_obj
def invite(app: App, *, name: str, ttl: str, use: bool, admin: bool, host: str | None) -> InviteResult:
    """Create a pass for the page and print its URL on a separate line. On the head.

    \b
    Examples:
      sudo meshray web invite ana
      sudo meshray web invite ana --ttl 7d --use
      sudo meshray web invite ops --admin --host head.example.org

    The first browser that opens the URL gets the session; afterwards the URL is worthless. Send it only to the user
    whom you invite. Without --use and --admin the session only reads.
    """
    from meshray.cli.page_address import as_browsers_show, explain, url_of
    from meshray.model.address import Endpoint
    from meshray.protocol.passes import CreatedPass

    if not _NAME.fullmatch(name):
        raise UsageError(
            "bad_pass_name",
            f"{name[:80]!r} is not a name of 1 to 64 letters, digits and . _ @ + -",
            hint="meshray web invite ana",
        )
    if host:
        # A mistake in it must not leave a pass behind; its default port is in the answer.
        Endpoint.parse(host, DEFAULT_PORT)
    body = {"name": name, "ttl_s": _seconds(ttl), "level": _level(use, admin)}
    made = convert(app.api("POST", "/v1/web/passes", body), CreatedPass)
    endpoint = Endpoint.parse(host, made.port) if host else Endpoint.parse(made.endpoints[0])
    answer = WebInvite(
        id=made.id,
        name=made.name,
        url=url_of(made, endpoint),
        level=made.level,
        expires=made.expires,
        fingerprint=as_browsers_show(made.fingerprint),
        port=made.port,
    )
    explain(app, answer.fingerprint)
    return InviteResult(answer)


@web_command.command("list")
@json_option
@click.pass_obj
def list_(app: App) -> PassListResult:
    """List the passes that work and those that ended in the last week, never their secrets. On the head."""
    return PassListResult(convert(app.api("GET", "/v1/web/passes"), WebList))


@web_command.command("revoke")
@click.argument("name", metavar="NAME|ID")
@json_option
@click.pass_obj
def revoke(app: App, name: str) -> PassRevokedResult:
    """Revoke a pass; its session, streams and connections end at once. On the head."""
    from meshray.protocol.passes import PassForm

    if not _NAME.fullmatch(name):
        raise UsageError("bad_pass_name", f"{name[:80]!r} is not the name or id of a pass", hint="meshray web list")
    revoked = convert(app.api("DELETE", f"/v1/web/passes/{name}"), PassForm)
    return PassRevokedResult(WebRevoke(revoked.id, revoked.name, revoked=True))


@web_command.command("open")
@click.option(
    "--via", metavar="ssh://[USER@]HOST[:PORT]", help="From a machine outside the mesh: forward the page through ssh."
)
@click.option("--no-open", is_flag=True, help="Do not open a browser.")
@_ttl_option
@_use_option
@_admin_option
@click.option(
    "--meshray", "program", default="meshray", metavar="PATH", help="With --via: the path of meshray on that machine."
)
@json_option
@click.pass_obj
@click.pass_context
def open_(
    context: click.Context,
    app: App,
    *,
    via: str | None,
    no_open: bool,
    ttl: str,
    use: bool,
    admin: bool,
    program: str,
) -> OpenResult | int:
    """Open the page: on a node with a link for this browser, elsewhere through ssh to the head.

    \b
    Examples:
      sudo meshray web open
      meshray web open --via ssh://ana@head --use

    With --via it makes a pass there, forwards the page to this machine's loopback until Ctrl-C, and then revokes the
    pass. --ttl, --use and --admin are for --via; the link of a node allows what its user may do anyway.
    """
    from meshray.cli import page_address

    if via is not None:
        from meshray.runtime.ssh import SshTarget

        request = page_address.RemotePageRequest(SshTarget.parse(via), program, _level(use, admin), _seconds(ttl))
        return page_address.open_via(app, request, no_open=no_open)
    given = [name for name in ("ttl", "use", "admin", "program") if _is_given(context, name)]
    if given:
        raise UsageError(
            "option_needs_via",
            "--ttl, --use, --admin and --meshray are for --via: a node's link has the level of the node",
            hint="meshray web open --via ssh://ana@head --use",
        )
    return page_address.open_here(app, no_open=no_open)


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _level(use: bool, admin: bool) -> str:
    return "admin" if admin else "use" if use else "read"


def _seconds(ttl: str) -> int:
    seconds = parse_duration(ttl)
    if not 60 <= seconds <= _LONGEST_S:
        raise UsageError("bad_duration", f"{ttl[:40]!r} is not between one minute and a year", hint="--ttl 8h")
    return seconds


def _passes_text(passes: Iterable[PassEntry], now: float) -> str:
    """Return one line per pass; never a secret."""
    rows = [("PASS", "NAME", "LEVEL", "USED", "EXPIRES", "STATE")]
    for entry in passes:
        used = "no" if entry.used is None else age(entry.used - now)
        state = "revoked" if entry.revoked else "expired" if entry.expires <= now else "valid"
        rows.append((entry.id, entry.name, entry.level, used, age(entry.expires - now), state))
    return columns(rows)
