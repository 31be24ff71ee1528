"""`meshray node add`: run `meshray join` on another machine through ssh.

token (one use) ──► ssh worker, with a forward back to the coordinator ──► sudo meshray join - --via forward

The token is sent on standard input, so no user sees it in a process list.
"""

from __future__ import annotations

import contextlib
import secrets
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from meshray.cli.app import App
from meshray.cli.join_result import JoinResult
from meshray.cli.lock_file import LockFile, create_token
from meshray.errors import MeshrayError, error_from_json
from meshray.protocol.api import CreatedToken
from meshray.protocol.codec import WireError, decode_object

if TYPE_CHECKING:
    from meshray.runtime.ssh import CommandResult, SshTarget

#: The token is used at the start of the join; only Ray may take minutes until it is ALIVE.
_TOKEN_TTL_S = 3600
#: The other side's end of the forward: a port that is rarely in use.
_FORWARD_PORTS = range(20000, 32000)
#: sshd's messages if it forbids forwards, or the port is in use.
_NO_FORWARD = "remote port forwarding failed"
_COMMAND_NOT_FOUND = 127
#: $1 is the program. sudo drops PATH, so it needs the program's absolute path.
_SCRIPT = (
    'p=$(command -v "$1" || command -v "$HOME/.local/bin/$1") || exit 127; shift; '
    'if [ "$(id -u)" = 0 ]; then exec "$p" "$@"; else exec sudo -n -- "$p" "$@"; fi'
)


@dataclass(frozen=True)
class SshLink:
    """How ssh is run.

    Attributes:
        on_line: called with each line of the other machine's standard error.
        options: further options of ssh.
        on_start: called with each process of ssh.
    """

    on_line: Callable[[str], None]
    options: tuple[str, ...] = ()
    on_start: Callable[[subprocess.Popen[str]], None] = lambda process: None


def add_node(
    app: App,
    target: SshTarget,
    program: str,
    options: Sequence[str],
    ray: Sequence[str],
    *,
    lock: LockFile | None = None,
    link: SshLink | None = None,
) -> JoinResult:
    """Run `meshray join` on the machine, and return its answer.

    Args:
        program: the name or path of meshray on the other machine.
        options: the options of `meshray join` there.
        ray: the arguments after ``--`` there.
        lock: signs the token, if the mesh has one.
        link: how ssh is run; None: on its own, with the machine's messages on standard error.

    Raises:
        UnreachableError: ``ssh_failed``, with ssh's own message.
        MeshrayError: the error of `join` there; no_meshray_there, no_sudo_there, push_failed.
    """
    link = link or SshLink(lambda line: app.note(f"{target.host}: {line}"))
    made = create_token(app, {"uses": 1, "ttl_s": _TOKEN_TTL_S, "ephemeral": False}, lock)
    rest = [*options, *(["--", *ray] if ray else [])]
    try:
        answer = read_answer(
            target, program, _join_there(app, target, program, token=made.token, port=made.port, rest=rest, link=link)
        )
        result = JoinResult.read(answer)
        already = result.answer.already is True
        result = replace(result, fresh=not already)
    except BaseException:
        _revoke(app, made)
        raise
    if already:
        _revoke(app, made)
    return result


def _revoke(app: App, made: CreatedToken) -> None:
    with contextlib.suppress(MeshrayError):
        app.api("DELETE", f"/v1/tokens/{app.word(made.id)}")


def _join_there(
    app: App, target: SshTarget, program: str, *, token: str, port: int, rest: Sequence[str], link: SshLink
) -> CommandResult:
    from meshray.linux.user import User
    from meshray.runtime.ssh import SSH_FAILED, run_remote

    def run(ssh_options: Sequence[str], join_options: Sequence[str]) -> CommandResult:
        return run_remote(
            target,
            remote_command(program, ["join", "-", "--json", *join_options, *rest]),
            options=[*link.options, *ssh_options],
            stdin=token + "\n",
            user=User.invoking(app.environ),
            on_line=link.on_line,
            on_start=link.on_start,
            environ=app.environ,
        )

    forward = secrets.choice(_FORWARD_PORTS)
    back = ("-o", "ExitOnForwardFailure=yes", "-R", f"127.0.0.1:{forward}:127.0.0.1:{port}")
    answered = run(back, ["--via", f"127.0.0.1:{forward}"])
    if answered.exit_code == SSH_FAILED and _NO_FORWARD in answered.stderr:
        link.on_line("sshd there forbids forwarding; the node must reach the coordinator directly")
        answered = run((), [])
    return answered


def remote_command(program: str, arguments: Sequence[str]) -> str:
    """Return the command line for the other machine, quoted for any login shell. Pure."""
    return shlex.join(["sh", "-c", _SCRIPT, "sh", program, *arguments])


def read_answer(target: SshTarget, program: str, answered: CommandResult) -> Mapping[str, object]:
    """Return the answer of a meshray command on the other machine, without its envelope.

    Raises:
        UnreachableError: ``ssh_failed``, with ssh's own message.
        MeshrayError: the error of the command there; no_meshray_there, no_sudo_there, push_failed.
    """
    from meshray.runtime.ssh import SSH_FAILED

    answer: Mapping[str, object] = {}
    with contextlib.suppress(WireError):  # A program that is missing, or ends early, prints no answer.
        answer = decode_object(answered.out)
    error = answer.get("error")
    if isinstance(error, dict):
        reported = error_from_json(error, answered.exit_code)
        reported.message = f"on {target.host}: {reported.message}"
        raise reported
    if answered.exit_code == SSH_FAILED:
        raise target.failure(answered.stderr, answered.exit_code)
    if answered.exit_code != 0:
        raise _failure(target, program, answered)
    return {key: value for key, value in answer.items() if key != "schema"}


def _failure(target: SshTarget, program: str, answered: CommandResult) -> MeshrayError:
    if answered.exit_code == _COMMAND_NOT_FOUND:
        return MeshrayError(
            "no_meshray_there",
            f"{target.host} has no program named {program}",
            hint="install meshray there, or give its path: --meshray /path/to/meshray",
        )
    last = (answered.stderr.strip().splitlines() or [f"exit code {answered.exit_code}"])[-1].strip()
    if last.startswith("sudo:"):
        return MeshrayError(
            "no_sudo_there",
            f"on {target.host}: {last}",
            hint=f"log in as root (ssh://root@{target.host}), or allow sudo without a password there",
        )
    return MeshrayError("push_failed", f"on {target.host}: {last}", hint=f"there: meshray logs; {target.command_line}")
