"""The first process of a node's container: it brings the node up and down with the container.

    python -m meshray.runtime.container.first              brings an enrolled node up; else waits for `meshray join`
    python -m meshray.runtime.container.first join -- …    joins with the token in MESHRAY_TOKEN, or in the file that
                                                           MESHRAY_TOKEN_FILE names, unless the node is enrolled
    python -m meshray.runtime.container.first init         makes a mesh

SIGTERM (`docker stop`) takes the node down. If the agent dies, the container ends, so that the engine's restart policy
applies. The container goes on after `meshray down` in it, and after the node was removed from its mesh, because the
engine would restart it for ever. An ephemeral node is removed when it was away too long: its container ends, and joins
with its token when it starts again. This process reaps orphans, also where it is not pid 1.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from meshray.errors import RefusedError
from meshray.home import Home
from meshray.node.state_folder import is_claimed
from meshray.runtime import agent_service
from meshray.runtime.pid1 import shell_code
from meshray.runtime.rootless.syscalls import adopt_orphans

TOKEN, TOKEN_FILE = "MESHRAY_TOKEN", "MESHRAY_TOKEN_FILE"
#: Set in every container of a pod.
IN_KUBERNETES = "KUBERNETES_SERVICE_HOST"
#: Far more than a token has, and less than a pipe's buffer.
_MAX_TOKEN_CHARACTERS = 4096
_ENDING = (signal.SIGTERM, signal.SIGINT)
_WATCHED = {*_ENDING, signal.SIGCHLD}


def main(words: Sequence[str]) -> int:
    """Run the node; return the container's exit code."""
    token, file = os.environ.pop(TOKEN, "").strip(), os.environ.pop(TOKEN_FILE, "")
    if token:
        _start_over_without(token)
    home = Home.from_environment()
    # Pid 1 adopts orphans anyway; in a pod whose containers share processes, another process is pid 1.
    adopt_orphans()
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    if words[:1] == ["join"] and _is_dropped(home):
        os.waitpid(_spawn(["leave", "--local", "--yes"]), 0)
    command = first_command(words, enrolled=home.enrolment.exists())
    if file and command[:2] == ["join", "-"] and not _give_token_of(file, command):
        return 2
    code = _supervise(home, _spawn(command) if command else None)
    if code == RefusedError.exit_code and file:
        sys.stderr.write(new_token_hint(file, command, os.environ))
    return code


def first_command(words: Sequence[str], *, enrolled: bool) -> list[str]:
    """Return the first meshray command of the container; empty: it waits for one from outside (pure).

    >>> first_command(["join", "--ephemeral"], enrolled=False)
    ['join', '-', '--trust-user-environment', '--ephemeral']
    """
    if enrolled:
        return ["up"]
    # The container is the boundary: images' environments belong to the user as whom Ray runs there.
    if words[:1] == ["init"]:
        return ["init", "--trust-user-environment", *words[1:]]
    if words[:1] == ["join"]:
        # The token comes on standard input: other users could see it in arguments or environment.
        return ["join", "-", "--trust-user-environment", *words[1:]]
    return list(words)


def _start_over_without(token: str) -> None:
    """Replace this process: its initial environment can be read as long as it runs. Does not return."""
    _give(token)
    os.execv(sys.executable, [sys.executable, *_this_module(), *sys.argv[1:]])  # noqa: S606 - no shell is wanted


def _give_token_of(file: str, command: Sequence[str]) -> bool:
    """Make the token in the file the standard input of the next command; report an error if it cannot be read.

    The file is read with this process's own rights: the user who creates the container chooses file and variable, and
    the file often has another owner.
    """
    try:
        with Path(file).open(errors="replace") as opened:
            _give(opened.read(_MAX_TOKEN_CHARACTERS))
    except OSError as error:
        sys.stderr.write(f"error: {TOKEN_FILE}: {file!r} cannot be read: {error.strerror}\n")
        sys.stderr.write(new_token_hint(file, command, os.environ))
        return False
    return True


def new_token_hint(file: str, command: Sequence[str], environ: Mapping[str, str]) -> str:
    """Return how a new token comes into this file, with a line break; empty outside of Kubernetes (pure).

    The folder and the file are named after the Secret and its key, as `meshray render kubernetes` mounts them.

    Args:
        command: the join for which the token is.

    >>> new_token_hint("/run/secrets/meshray-token/token", ["join", "-"], {})
    ''
    """
    if IN_KUBERNETES not in environ:
        return ""
    secret, key = Path(file).parent.name, Path(file).name
    role = " --head" if "--head" in command else ""
    return (
        f"hint: the Secret {secret} needs a token of the mesh under the key {key}. On the machine of the coordinator: "
        f"umask 077; sudo meshray token create --uses 0 --ephemeral{role} > {key}; then, in the namespace of the pod: "
        f"kubectl create secret generic {secret} --from-file={key} --dry-run=client --output=yaml | "
        "kubectl apply --filename=-\n"
    )


def _give(token: str) -> None:
    reading, writing = os.pipe()
    os.write(writing, token.encode()[:_MAX_TOKEN_CHARACTERS])
    os.close(writing)
    os.dup2(reading, 0)
    os.close(reading)


def _this_module() -> list[str]:
    return ["-I", "-m", "meshray.runtime.container.first"]


def _spawn(command: Sequence[str]) -> int:
    """Start a meshray command with the default signal mask; return its process id."""
    argv = [sys.executable, "-I", "-m", "meshray.cli", *command]
    return os.posix_spawn(sys.executable, argv, os.environ, setsigmask=())


def _supervise(home: Home, beginning: int | None) -> int:
    while True:
        number = signal.sigwait(_WATCHED)
        if number in _ENDING:
            return _take_down(home, beginning)
        for pid, code in _ended():
            if pid == beginning:
                beginning = None
                # A user outside may have started the same command first: then it is running.
                if code and not (agent_service.is_running(home) or is_claimed(home) or _is_taken_out(home)):
                    return code
            elif code and pid == _agent(home):
                if _is_dropped(home):
                    sys.stderr.write("this node was away, and the mesh removed it; it joins again after a restart\n")
                    return 1
                if not _is_taken_out(home):
                    error = agent_service.last_logged_error(home)
                    sys.stderr.write(f"the agent ended with exit code {code}: {error}\n")
                    return 1


def _ended() -> list[tuple[int, int]]:
    """Return (pid, shell's exit code) of each process that has ended."""
    found = []
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            found.append((ended[0], shell_code(ended[1])))
    return found


def _agent(home: Home) -> int:
    """Return the agent's process id, even if it has just ended; 0 if there was none."""
    try:
        return int(json.loads(home.pid_file("agent").read_text())["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _is_taken_out(home: Home) -> bool:
    """Return whether the coordinator removed this node, as the agent has recorded."""
    return _recorded(home, "taken_out")


def _is_dropped(home: Home) -> bool:
    """Return whether the coordinator removed this node, and may have done so because an ephemeral node was away."""
    return _is_taken_out(home) and _recorded(home, "ephemeral")


def _recorded(home: Home, name: str) -> bool:
    try:
        return json.loads(home.enrolment.read_text())[name] is True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _take_down(home: Home, beginning: int | None) -> int:
    if beginning is not None:
        # A join that is interrupted undoes what it has begun.
        os.kill(beginning, signal.SIGTERM)
        os.waitpid(beginning, 0)
    if not Path(home.enrolment).exists():
        return 0
    return os.waitstatus_to_exitcode(os.waitpid(_spawn(["down"]), 0)[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
