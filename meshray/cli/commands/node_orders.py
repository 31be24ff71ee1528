"""`meshray node logs|restart|bundle`: orders to a node over its agent's connection, without ssh."""

from __future__ import annotations

import asyncio
import base64
import codecs
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import click

from meshray.cli.app import App
from meshray.cli.complete import node_names
from meshray.cli.options import json_option, parse_duration
from meshray.cli.page_pass import keeps_sessions, pass_option, pass_session
from meshray.cli.result import Result
from meshray.cli.tables import Paint, plain
from meshray.errors import UsageError
from meshray.model.permission_level import Level
from meshray.model.printable import escaped_lines
from meshray.protocol.node_answers import NodeBundle, NodeLogs, NodeRestart
from meshray.protocol.orders import OrderForm

#: The agent sends something at shorter intervals, seconds; connecting to the coordinator may take longer.
_SILENCE_S = 40.0
_PARTS = ("agent", "engine", "coordinator", "ray")
_ALL_LINES = 10_000_000


@dataclass(frozen=True)
class NodeLogsResult(Result[NodeLogs]):
    """``node logs``."""

    keeps_lines: ClassVar[bool] = True

    def text(self, paint: Paint = plain) -> str:
        """Return the lines."""
        return self.answer.text


@dataclass(frozen=True)
class NodeRestartResult(Result[NodeRestart]):
    """``node restart``."""

    def text(self, paint: Paint = plain) -> str:
        """Return what happens."""
        if self.answer.done == "restarted":
            return f"Ray on {self.answer.node} is restarted"
        return f"the agent of {self.answer.node} restarts now; its Ray continues (meshray status)"


@dataclass(frozen=True)
class NodeBundleResult(Result[NodeBundle]):
    """``node bundle``."""

    def text(self, paint: Paint = plain) -> str:
        """Return the file."""
        return f"{self.answer.bundle} has the state of {self.answer.node}; nothing was sent anywhere else"


@click.command("logs")
@click.argument("node", shell_complete=node_names)
@click.argument("part", type=click.Choice(_PARTS), default="agent", metavar=f"[{'|'.join(_PARTS)}]")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(0, _ALL_LINES),
    help="How many lines, from the end; default: 100, or all of --since.",
)
@click.option("-f", "--follow", is_flag=True, help="Keep showing new lines until Ctrl-C.")
@click.option("--since", metavar="TIME", help="Only the lines of this last time, such as 10m or 2h.")
@pass_option(Level.ADMIN, "Without root, or on a machine outside the mesh")
@json_option
@click.pass_obj
def logs_command(
    app: App, *, node: str, part: str, lines: int | None, follow: bool, since: str | None, shown: str | None
) -> NodeLogsResult | int:
    """Show a log of another node, without ssh. On the head, or with a pass.

    \b
    Examples:
      sudo meshray node logs gpu-1
      sudo meshray node logs gpu-1 ray -f
      sudo meshray node logs gpu-1 agent --since 30m
      meshray node logs gpu-1 --pass @invitation

    The lines travel over the connection of the node's agent to the coordinator. A node that joined with --no-remote
    refuses. Every order is in `meshray audit`.

    The orders `logs`, `restart` and `bundle` need root on the head, or a pass: `meshray web invite NAME --admin` on the
    head prints its URL. With a pass they work for every user and on every machine that reaches the coordinator's port.
    The first use exchanges the pass for a session, which is kept in a file that only you can read. On a machine outside
    the mesh, later calls work without --pass until the session ends.
    """
    if follow and app.as_json:
        raise UsageError("follow_json", "--follow never ends, and --json prints one object", hint="leave out one")
    arguments = {
        "part": part,
        "lines": lines if lines is not None else _ALL_LINES if since is not None else 100,
        "since_s": parse_duration(since) if since is not None else None,
        "follow": follow,
    }
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    texts: list[str] = []

    def show(data: bytes) -> None:
        text = decoder.decode(data)
        if app.as_json:
            texts.append(text)
        else:
            # Ray's jobs and other nodes write into logs.
            app.stdout.write(escaped_lines(text))
            app.stdout.flush()

    give(app, node, "logs", arguments, show, shown=shown)
    return NodeLogsResult(NodeLogs(node, part, "".join(texts))) if app.as_json else 0


@click.command("restart")
@click.argument("node", shell_complete=node_names)
@click.option("--ray", is_flag=True, help="Restart Ray instead of the agent; tasks on the node end.")
@pass_option(Level.ADMIN, "Without root, or on a machine outside the mesh")
@json_option
@click.pass_obj
def restart_command(app: App, *, node: str, ray: bool, shown: str | None) -> NodeRestartResult:
    """Restart the agent of another node, or its Ray, without ssh. On the head, or with a pass.

    \b
    Examples:
      sudo meshray node restart gpu-1
      sudo meshray node restart gpu-1 --ray

    The tunnel and Ray continue while the agent restarts. With --ray, the command returns when Ray is ALIVE again.
    """
    give(app, node, "restart", {"ray": ray}, lambda data: None, shown=shown)
    return NodeRestartResult(NodeRestart(node, "restarted" if ray else "restarting"))


@click.command("bundle")
@click.argument("node", shell_complete=node_names)
@click.argument("file", required=False, metavar="[FILE]")
@pass_option(Level.ADMIN, "Without root, or on a machine outside the mesh")
@json_option
@click.pass_obj
def bundle_command(app: App, *, node: str, file: str | None, shown: str | None) -> NodeBundleResult:
    """Fetch the archive of `meshray doctor --bundle` from another node. On the head, or with a pass.

    \b
    Example:
      sudo meshray node bundle gpu-1
      sudo meshray node bundle gpu-1 report.tar.gz

    The default FILE is NODE.tar.gz. The node removes secrets and addresses before it sends the archive.
    """
    from meshray.cli.new_file import new_file

    path, size = Path(file or f"{app.word(node)}.tar.gz"), 0
    with new_file(path, "FILE", app.environ) as archive:

        def write(data: bytes) -> None:
            nonlocal size
            size += len(data)
            archive.write(data)

        give(app, node, "bundle", {}, write, shown=shown)
    return NodeBundleResult(NodeBundle(node, str(path), size))


def give(
    app: App,
    node: str,
    order: str,
    arguments: Mapping[str, object],
    take: Callable[[bytes], None],
    *,
    shown: str | None = None,
) -> None:
    """Give the order and pass on its output. Raises the error with which it ended.

    Args:
        shown: the pass, as the user typed it; None: the authority of this machine's node, or outside the mesh the
            session of a pass that was used before.
    """
    from meshray.protocol.control import GiveOrder, OrderPart

    is_outside = not app.may_be_enrolled and not app.own_home.container.exists()
    if shown is not None or (is_outside and keeps_sessions(app)):
        return _give_with_pass(app, OrderForm(app.word(node), order, dict(arguments)), take, shown)

    def pass_on(part: OrderPart) -> None:
        if part.data:
            take(base64.b64decode(part.data))

    app.control().watch(GiveOrder(app.word(node), order, dict(arguments)), pass_on, timeout_s=_SILENCE_S)


def _give_with_pass(app: App, form: OrderForm, take: Callable[[bytes], None], shown: str | None) -> None:
    from meshray.client.order import give_order_with_pass
    from meshray.client.page_session import PageSession

    session = pass_session(app, shown, Level.ADMIN, f"meshray node {form.order} {form.node}")

    async def give_in(page: PageSession) -> None:
        async with aclosing(give_order_with_pass(page, form)) as output:
            async for data in output:
                if data:
                    take(data)

    asyncio.run(session.use(give_in))
