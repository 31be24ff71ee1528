"""`meshray forward`: a port of a node on this machine's loopback."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from meshray.cli.complete import node_names
from meshray.cli.options import json_option
from meshray.cli.page_pass import pass_option, pass_session
from meshray.cli.result import Result
from meshray.cli.tables import Paint, plain
from meshray.errors import MeshrayError, UsageError
from meshray.model.permission_level import Level
from meshray.protocol.answers import ForwardAnswer

if TYPE_CHECKING:
    from meshray.cli.app import App
    from meshray.cli.local_forward import Dial

_PORTS = re.compile(r"([0-9]{1,5})(?::([0-9]{1,5}))?")
_NODE = re.compile(r"[A-Za-z0-9.-]{1,63}")
_HIGHEST_PORT = 65535


@dataclass(frozen=True)
class ForwardResult(Result[ForwardAnswer]):
    """``forward``."""

    def text(self, paint: Paint = plain) -> str:
        """Return both ends."""
        answer = self.answer
        return f"{answer.address} leads to port {answer.node_port} of {answer.node}; Ctrl-C ends it"


@click.command("forward")
@click.argument("ports", metavar="PORT[:LOCAL]")
@click.argument("node", required=False, default="", shell_complete=node_names)
@pass_option(Level.USE, "On a machine outside the mesh")
@json_option
@click.pass_obj
def forward_command(app: App, ports: str, node: str, shown: str | None) -> int:
    """Forward a TCP port of a node to this machine's 127.0.0.1, until Ctrl-C.

    \b
    Examples:
      meshray forward 8265
      meshray forward 8350 gpu-1
      meshray forward 22:2222 gpu-1
      meshray forward 8265 --pass @invitation

    NODE is a name or an overlay address; without it, the node that runs the Ray head. LOCAL is the port here:
    by default the same number, and with 0 any free one.

    On a node the connections go over the overlay directly. Elsewhere they go through the coordinator's port with a
    pass: `meshray web invite NAME --use` on the head prints its URL. The first use exchanges the pass for a session,
    which is kept in a file that only you can read, so later calls work without --pass until the session ends. Other
    users of this machine see its arguments: use @FILE or - there.
    """
    from meshray.cli import output
    from meshray.cli.local_forward import bind, serve

    remote, local = _parse(ports)
    if node and not _NODE.fullmatch(node):
        raise UsageError("node_unknown", f"{node[:63]!r} is not the name of a node", hint="meshray status")
    dial, name = _dialer(app, remote, node, shown)
    with bind(local) as listening:
        here = int(listening.getsockname()[1])

        async def run() -> None:
            # An unreachable port is reported now, and not at the first connection.
            await (await dial()).close()
            output.show(app, ForwardResult(ForwardAnswer(f"127.0.0.1:{here}", "127.0.0.1", here, name, remote)))
            await serve(listening, dial, lambda error: app.warn(error.message))

        asyncio.run(run())
    return 0


def _parse(ports: str) -> tuple[int, int]:
    found = _PORTS.fullmatch(ports)
    remote = int(found[1]) if found else 0
    local = int(found[2] or found[1]) if found else 0
    if not 0 < remote <= _HIGHEST_PORT or local > _HIGHEST_PORT:
        raise UsageError(
            "bad_port", f"{ports[:20]!r} is not PORT or PORT:LOCAL", hint="meshray forward 8350:8080 gpu-1"
        )
    return remote, local


def _dialer(app: App, port: int, node: str, shown: str | None) -> tuple[Dial, str]:
    """Return how to reach the node's port, and the node's name."""
    if shown is None and (app.may_be_enrolled or app.own_home.container.exists()):
        return _over_the_overlay(app, port, node)
    return _through_page(app, port, node, shown)


def _over_the_overlay(app: App, port: int, node: str) -> tuple[Dial, str]:
    from ipaddress import IPv4Address

    from meshray.cli.local_forward import DirectConnection
    from meshray.protocol.control import GetStatus
    from meshray.runtime.selection import runtime_of

    if runtime_of(app.home, app.environ).container() is not None:
        raise MeshrayError(
            "forward_in_container",
            "this machine's node is in a container, whose overlay this machine cannot reach",
            hint="with a pass: on the head: meshray web invite NAME --use; here: meshray forward PORT NODE --pass -",
        )
    status = app.control().request(GetStatus())
    wanted = node.lower()
    found = [entry for entry in status.nodes if (wanted in (entry.name, entry.ip) if node else entry.role == "head")]
    if not found and not node:
        raise MeshrayError("no_ray_head", "this mesh has no Ray head: name a node", hint="meshray status")
    if not found:
        raise UsageError("node_unknown", f"the mesh has no node {node!r}", hint="meshray status")
    entry, sockets = found[0], app.home.overlay_socket
    inside = sockets if sockets.exists() else None

    async def dial() -> DirectConnection:
        return await DirectConnection.open(IPv4Address(entry.ip), port, entry.name, inside)

    return dial, entry.name


def _through_page(app: App, port: int, node: str, shown: str | None) -> tuple[Dial, str]:
    from meshray.client.page_session import WebTunnel
    from meshray.protocol.tunnel import HEAD

    session = pass_session(app, shown, Level.USE, f"meshray forward {port}")

    async def dial() -> WebTunnel:
        return await session.use(lambda page: page.tunnel(node or HEAD, port))

    return dial, node or HEAD
