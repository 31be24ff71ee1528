"""Generate the command reference from the commands.

$ python -m meshray.cli.reference > docs/reference.md
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from meshray.cli import envelope
from meshray.cli.command_registry import SECTIONS
from meshray.cli.main import cli
from meshray.errors import MeshrayError
from meshray.protocol.answers import EXAMPLES
from meshray.protocol.codec import to_json
from meshray.protocol.describe import described
from meshray.raynode.environment_file import start_line

_WIDTH = 100
EXIT_CODES = (
    (0, "fine"),
    (1, "failed"),
    (2, "usage: the input is wrong, nothing was changed"),
    (3, "works, but unhealthy (`status`, `doctor`, `ready`, `ping`)"),
    (4, "token or identity refused"),
    (5, "agent or coordinator unreachable"),
    (130, "interrupted (Ctrl-C, SIGTERM); all changes were rolled back"),
)
VARIABLES = (
    ("MESHRAY_HOME", "state: keys, enrolment, cached map, the coordinator's store, logs; default `/var/lib/meshray`"),
    (
        "MESHRAY_RUN",
        "sockets and pid files; default `/run/meshray`. With `--ray external` also the file `env`, see below",
    ),
    (
        "MESHRAY_TOKEN, MESHRAY_TOKEN_FILE",
        "the token of `join`, or the file that holds it; `join TOKEN` wins over both",
    ),
    (
        "MESHRAY_INIT_…, MESHRAY_JOIN_…",
        "each option of `init` and `join` but `--json`, as `MESHRAY_JOIN_NAME`; the command line wins. A flag takes 1 "
        "or 0; an option that may be repeated takes words quoted as in a shell: "
        "`MESHRAY_JOIN_LABEL='zone=lab disk=ssd'`. With sudo: `sudo --preserve-env=NAME,…`",
    ),
    ("MESHRAY_PASSPHRASE", "the passphrase of `backup` and `restore`, which otherwise ask for it on a terminal"),
    ("MESHRAY_RAY", "the Ray to run, as `--ray`"),
    ("MESHRAY_WIREGUARD", "`kernel` or `userspace`: forces that implementation"),
    ("MESHRAY_ENGINE", "the engine if WireGuard runs in user space: `wireguard-go`, or the path of an engine"),
    ("MESHRAY_SERVICE", "`systemd` or `background`: forces how the agent is started"),
    (
        "MESHRAY_LOG",
        "`debug`, `info`, `warning` or `error`: the lowest level that agent and coordinator log. Besides their files, "
        "which `meshray logs` shows, they log to standard error if that is the journal, a pipe or a container's "
        "stream, so `kubectl logs` and `docker logs` show it",
    ),
    (
        "MESHRAY_LOG_FORMAT",
        "`json`: one object a line, with `time` (UTC), `level`, `logger`, `message` and `exception`",
    ),
    ("MESHRAY_DEBUG", "`1` shows a traceback with an error"),
    ("HTTPS_PROXY, NO_PROXY", "used for connections to the coordinator"),
    ("NO_COLOR", "no colours on a terminal"),
)

#: The variables of MESHRAY_RUN/env, see `meshray.raynode.environment_file`.
FILE_VARIABLES = (
    ("MESHRAY_RAY_START", "the options of `ray start` for this node, which a shell splits at blanks"),
    ("MESHRAY_RAY_ADDRESS", "the address of the head's GCS, as `10.99.0.1:6379`"),
    ("MESHRAY_RAY_DASHBOARD", "the URL of the head's dashboard"),
    ("MESHRAY_HEAD_IP", "the head's overlay address"),
    ("MESHRAY_IP", "this node's overlay address"),
    ("MESHRAY_NODE", "this node's name"),
    ("MESHRAY_INTERFACE", "the overlay's interface"),
    (
        "MESHRAY_RAY_…_PORT",
        "each port of Ray, as `MESHRAY_RAY_NODE_MANAGER_PORT`; the head's are the same on every node",
    ),
    ("RAY_AUTH_MODE", "`token`: Ray's processes accept only each other"),
    ("RAY_AUTH_TOKEN_PATH", "the file with Ray's token, which only the user of `--ray-user` may read"),
    ("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "`minor`: the patch level of Python may differ"),
    (
        "others, unless they are set",
        "Ray's timeouts, the interface for NCCL and Gloo, `no_proxy`, as `meshray` sets them",
    ),
)


def reference() -> str:
    """Return the whole page."""
    return "\n".join(_page()).rstrip() + "\n"


def _page() -> Iterator[str]:
    yield "# Command reference"
    yield ""
    yield "Generated from the commands by `python -m meshray.cli.reference`; do not edit by hand."
    yield ""
    yield "Answers go to stdout, progress and warnings to stderr: live on a terminal, one line per stage elsewhere."
    yield ""
    yield from _table("Exit codes", ("code", "meaning"), [(str(code), text) for code, text in EXIT_CODES])
    yield from _table("Environment", ("variable", "meaning"), [(f"`{name}`", text) for name, text in VARIABLES])
    yield from _file_section()
    yield from _json_section()
    # The width is fixed: the page must not depend on the terminal in which it is generated.
    context = click.Context(cli, info_name="meshray", **{**cli.context_settings, "terminal_width": _WIDTH})
    for title, section in SECTIONS.items():
        yield f"## {title}"
        yield ""
        for name in section:
            command = cli.get_command(context, name)
            if command is not None:
                yield from _command(command, name, context)


def _table(title: str, head: tuple[str, str], rows: list[tuple[str, str]]) -> Iterator[str]:
    yield f"## {title}"
    yield ""
    yield f"| {head[0]} | {head[1]} |"
    yield "| --- | --- |"
    yield from (f"| {left} | {right} |" for left, right in rows)
    yield ""


def _file_section() -> Iterator[str]:
    rows = [(f"`{name}`" if " " not in name else name, text) for name, text in FILE_VARIABLES]
    yield from _table("The file of --ray external", ("variable", "meaning"), rows)
    yield "MESHRAY_RUN/env exists while another program may start Ray on this node. A shell reads it:"
    yield ""
    yield f"    {start_line(Path('/run/meshray/env'))}"
    yield ""


def _json_section() -> Iterator[str]:
    error = MeshrayError("agent_down", "no agent runs on this machine", hint="meshray up")
    yield "## JSON"
    yield ""
    yield "With `--json` a command answers one object on one line. `schema` increases when a field changes its meaning"
    yield "or is removed; more fields may be added at any time. An error has the same envelope, and its exit code:"
    yield ""
    yield from _json_block(envelope.failure(error))


def _command(command: click.Command, name: str, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent)
    if isinstance(command, click.Group):
        yield f"### {context.command_path}"
        yield ""
        yield inspect.cleandoc(command.help or "")
        yield ""
        if command.params:
            yield from _usage(command, context)
        for verb in command.list_commands(context):
            found = command.get_command(context, verb)
            if found is not None:
                yield from _command(found, verb, context)
        return
    yield f"### {context.command_path}"
    yield ""
    yield from _usage(command, context)


def _usage(command: click.Command, context: click.Context) -> Iterator[str]:
    """Yield a command's usage, and its answer to a script."""
    yield "```"
    yield context.get_help()
    yield "```"
    yield ""
    name = context.command_path.removeprefix("meshray ")
    for called, example in EXAMPLES.items():
        # An option may have a separate answer.
        if called == name or called.startswith(f"{name} --"):
            yield f"`meshray {called} --json` answers:"
            yield ""
            yield from _json_block(envelope.answer(to_json(example)))
            yield from _fields(type(example))


def _fields(form: type[msgspec.Struct]) -> Iterator[str]:
    """Yield the meaning of each field of an answer."""
    found = list(described(form))
    sometimes = [f"- `{field.path}`: {field.meaning}" for field in found if field.is_optional]
    if sometimes:
        yield "Only some answers have:"
        yield ""
        yield from sometimes
        yield ""
    yield "| field | type | meaning |"
    yield "| --- | --- | --- |"
    yield from (f"| `{field.path}` | {field.kind} | {field.meaning} |" for field in found if not field.is_optional)
    yield ""


def _json_block(value: dict[str, object]) -> Iterator[str]:
    yield "```json"
    yield json.dumps(value, indent=2, ensure_ascii=False)
    yield "```"
    yield ""


if __name__ == "__main__":
    sys.stdout.write(reference())
