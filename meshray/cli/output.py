"""Show results and errors: to users as text, to scripts in the envelope. Commands never print.

>>> text(Stopped("gpu-1", was_running=True))
'gpu-1 is down; it stays enrolled (meshray up starts it again)'
"""

from __future__ import annotations

import shlex
import time
from dataclasses import fields, replace
from functools import singledispatch
from typing import Any, TypeVar, cast

from meshray.cli import diagnosis, envelope, status_table, tables
from meshray.cli.app import App
from meshray.cli.forward_results import Forwarded
from meshray.cli.results import (
    Dashboard,
    DoctorResult,
    EnvResult,
    FileText,
    InitResult,
    JoinResult,
    Left,
    Locked,
    NodeChanged,
    NodeList,
    NodeRemoved,
    PeerAdded,
    PingResult,
    Result,
    SecretsRotated,
    StatusResult,
    Stopped,
    TokenCreated,
    TokenList,
    TokenRevoked,
)
from meshray.cli.web_results import PageAddress, PassList, PassRevoked
from meshray.errors import MeshrayError
from meshray.model.amounts import counted
from meshray.model.path import PathKind
from meshray.model.printable import escaped, escaped_all, escaped_lines

__all__ = ["Result", "show", "show_error", "text"]


def show(app: App, result: Result) -> None:
    """Write the answer to stdout."""
    if app.as_json:
        shown = envelope.dumps(envelope.answer(result.to_json()))
    elif isinstance(result, (DoctorResult, StatusResult)) and app.stdout.isatty() and not app.environ.get("NO_COLOR"):
        shown = _in_colour(harmless(result))
    else:
        shown = text(harmless(result))
    if shown:
        app.stdout.write(shown if shown.endswith("\n") else shown + "\n")
    app.stdout.flush()


def _in_colour(result: DoctorResult | StatusResult) -> str:
    if isinstance(result, StatusResult):
        return status_table.status_text(
            result.status, now=time.time(), wide=result.wide, clock=result.clock, paint=coloured
        )
    return diagnosis.doctor_text(result, coloured)


def show_error(app: App, error: MeshrayError) -> None:
    """Write ``error:`` and ``hint:`` to stderr, and for a script the envelope to stdout."""
    app.stderr.write(f"error: {escaped(_one_line(error.message))}\n")
    if error.hint:
        app.stderr.write(f"hint: {escaped(_one_line(error.hint))}\n")
    app.stderr.flush()
    if app.as_json:
        app.stdout.write(envelope.dumps(envelope.failure(error)) + "\n")
        app.stdout.flush()


R = TypeVar("R", bound=Result)


def harmless(result: R) -> R:
    """Return the result with everything escaped that a terminal would interpret, and each text on one line.

    Reports of other nodes reach a terminal only through this function. A file's text keeps its lines; the output of
    `env` is quoted for the shell and not changed.
    """
    if isinstance(result, EnvResult):
        return result
    kept = {"text": escaped_lines(result.text)} if isinstance(result, (FileText, PeerAdded)) else {}
    values = {field.name: escaped_all(getattr(result, field.name)) for field in fields(cast("Any", result))}
    return cast("R", replace(cast("Any", result), **{**values, **kept}))


def coloured(word: str, colour: str) -> str:
    """Return the word in this colour for a terminal."""
    import click

    return click.style(word, fg=colour)


def _one_line(value: str) -> str:
    return " ".join(value.split())


@singledispatch
def text(result: Result) -> str:
    """Return the result as text for a user."""
    raise TypeError(f"no text is defined for {type(result).__name__}")


@text.register
def _(result: InitResult) -> str:
    if result.already:
        return "\n".join(
            [
                f"mesh {result.mesh} is up already; others reach {result.name} at {', '.join(result.endpoints)}",
                "The command for another machine: sudo meshray token create --line",
                "A node that does not connect on its own:",
                "",
                f"    sudo meshray up --coordinator {result.endpoints[0]}",
            ]
        )
    lines = [f"mesh {result.mesh} is up; this node is {result.name}, {result.ip}"]
    if result.ray_address:
        lines.append(f"Ray        {result.ray_address}   (meshray run -- python job.py)")
        lines.append(f"dashboard  {result.local.get('dashboard', result.dashboard)}")
    if result.hub_only:
        lines += [
            "",
            "On the machine that runs the Ray head:",
            "",
            f"    {result.head_line}",
        ]
    lines += [
        "",
        "On every other machine:",
        "",
        f"    {result.join_line}",
        "",
        f"They must reach UDP and TCP port {result.port} here: {', '.join(result.endpoints)}",
        "(in a cloud: open both in the security group).",
    ]
    if result.open_commands:
        lines.append("This host's own firewall drops them until you run:")
        lines += [f"    {command}" for command in result.open_commands]
    if result.rootless:
        lines += [
            "",
            f"This node runs without root, as {result.rootless}. To make it one with root instead:",
            "",
            "    meshray leave --yes, then the same init with sudo",
        ]
    return "\n".join(lines)


@text.register
def _(result: JoinResult) -> str:
    node, path, ray, local = result.summary.node, result.summary.path, result.summary.ray, result.summary.local or {}
    verb = "joined" if result.fresh else "is in" if result.summary.already else "is up in"
    line = f"{node.name} ({node.ip}) {verb} mesh {result.summary.mesh}"
    if path.kind not in (PathKind.SELF, PathKind.NONE):
        line += f", path {path.kind} over {path.transport}"
    if ray.alive:
        line += f"; Ray is ALIVE, {counted(ray.nodes, 'node')}"
    line += f"; dashboard at {local['dashboard']}" if "dashboard" in local and ray.alive else ""
    if result.udp_port:
        line += (
            f"\nThe tunnel goes over TCP (wss), which costs throughput: UDP port {result.udp_port} of the head does"
            " not answer.\nOpen it in the head's firewall, and the tunnel changes to UDP on its own."
        )
    if result.fresh and ray.alive:
        line += "\nNext: meshray status shows every node, meshray run -- python job.py uses them"
    return line


@text.register
def _(result: Stopped) -> str:
    if not result.was_running:
        return f"{result.node} was down already"
    return f"{result.node} is down; it stays enrolled (meshray up starts it again)"


@text.register
def _(result: Left) -> str:
    if result.local:
        return f"nothing of {result.node} is kept on this machine; the mesh still has that node (meshray join TOKEN)"
    return f"{result.node} has left the mesh; nothing of it is kept on this machine"


@text.register
def _(result: StatusResult) -> str:
    return status_table.status_text(result.status, now=time.time(), wide=result.wide, clock=result.clock)


@text.register
def _(result: DoctorResult) -> str:
    return diagnosis.doctor_text(result)


@text.register
def _(result: PingResult) -> str:
    times = sorted(rtt for rtt in result.rtts_ms if rtt is not None)
    lost = len(result.rtts_ms) - len(times)
    line = f"{result.node}: {len(times)} of {len(result.rtts_ms)} answered"
    if times:
        median = times[len(times) // 2]
        line += f", round trip {times[0]:.1f} / {median:.1f} / {times[-1]:.1f} ms (least / median / most)"
    elif lost:
        line += "; meshray doctor finds the cause"
    others = [tables.other_path_text(path) for path in result.others]
    return "\n".join([line, f"path: {tables.path_text(result.path)}", *others])


@text.register
def _(result: TokenCreated) -> str:
    # Alone on its line: `meshray token create | ssh gpu-1 sudo meshray join -`
    return result.line or result.token


@text.register
def _(result: TokenList) -> str:
    return tables.tokens_text(result.tokens, result.now or time.time())


@text.register
def _(result: TokenRevoked) -> str:
    return f"token {result.id} is revoked; nodes that joined with it stay"


@text.register
def _(result: PageAddress) -> str:
    # Alone on its line, so that it can be copied or piped; `meshray.cli.page_address.explain` writes to stderr.
    return result.url


@text.register
def _(result: PassList) -> str:
    return tables.passes_text(result.passes, result.now or time.time())


@text.register
def _(result: PassRevoked) -> str:
    return f"the pass {result.id} of {result.name} is revoked; its session has ended"


@text.register
def _(result: Forwarded) -> str:
    return f"{result.host}:{result.port} leads to port {result.node_port} of {result.node}; Ctrl-C ends it"


@text.register
def _(result: NodeList) -> str:
    return status_table.nodes_text(result.nodes, wide=result.wide)


@text.register
def _(result: NodeChanged) -> str:
    if result.done == "drained":
        if result.details.get("ray_node_id") is None:
            return f"{result.node} runs no Ray, and starts none until: meshray node drain {result.node} --undo"
        deadline = tables.duration(float(str(result.details.get("deadline_s"))))
        return f"{result.node} gets no new tasks; those that run have up to {deadline} to end (meshray status)"
    if result.done == "undrained":
        return f"{result.node} takes tasks again as soon as its Ray has started"
    details = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in result.details.items())
    return f"{result.node} is {result.done}" + (f" ({details})" if details else "")


@text.register
def _(result: NodeRemoved) -> str:
    renewed = f"; the other nodes use new secrets (epoch {result.rotation.get('epoch')})"
    return f"{result.node} is removed" + (renewed if result.rotation.get("started") else "")


@text.register
def _(result: SecretsRotated) -> str:
    epoch = result.rotation.get("epoch")
    return f"epoch {epoch} of the mesh's secrets began; Ray's token follows with the next start of the head's Ray"


@text.register
def _(result: PeerAdded) -> str:
    return result.text or f"{result.name} is {result.ip}; its file {result.config} holds its only copy of the key"


@text.register
def _(result: EnvResult) -> str:
    lines = [f"export {name}={_quoted(value)}" for name, value in result.env.items()]
    if result.programs:
        ours = _quoted(result.programs)
        lines.append(f'export PATH={ours}:"$PATH"' if result.leads else f'export PATH="$PATH":{ours}')
    return "\n".join(lines)


@text.register
def _(result: Dashboard) -> str:
    token = [f"token      {result.token}"] if result.token else []
    chosen = tables.chosen_ports(result.ports)
    ports = [f"ports      {chosen}"] if chosen else []
    return "\n".join([f"dashboard  {result.url}", *token, f"elsewhere  {result.ssh}", *ports])


@text.register
def _(result: Locked) -> str:
    count = len(result.requirements)
    what = counted(count, "requirement")
    head = f" with Ray {result.ray} on Python {result.python}" if result.ray else ""
    return f"recorded {what}: `meshray join --env match` installs {'it' if count == 1 else 'them'}{head}"


@text.register
def _(result: FileText) -> str:
    return result.text


def _quoted(value: str) -> str:
    quoted = shlex.quote(value)
    return quoted if quoted.startswith("'") else f"'{quoted}'"
