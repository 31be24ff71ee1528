"""What a node's container runs as its first process: it brings the node up and down with the container.

    python -m meshray.runtime.container.first              up where it is a node; else waits for `meshray join` in it
    python -m meshray.runtime.container.first join -- …    joins with the token in MESHRAY_TOKEN, or in the file that
                                                           MESHRAY_TOKEN_FILE names, when it is no node yet
    python -m meshray.runtime.container.first init         makes a mesh

SIGTERM (`docker stop`) takes the node down. An agent that dies ends the container, so that the engine's restart
policy applies; one that was told to go down (`meshray down` in the container) does not, nor one whose node was removed
from its mesh: that would be started again for ever. As pid 1 it reaps orphans.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from meshray.home import Home
from meshray.node.state_folder import is_claimed
from meshray.runtime import service
from meshray.runtime.pid1 import shell_code

TOKEN, TOKEN_FILE = "MESHRAY_TOKEN", "MESHRAY_TOKEN_FILE"
#: Far more than a token has, and what a pipe takes at once.
_MOST_TOKEN_CHARACTERS = 4096
_ENDING = (signal.SIGTERM, signal.SIGINT)
_WATCHED = {*_ENDING, signal.SIGCHLD}


def main(words: Sequence[str]) -> int:
    """Returns the container's exit code."""
    token, file = os.environ.pop(TOKEN, "").strip(), os.environ.pop(TOKEN_FILE, "")
    if token:
        _start_over_without(token)
    home = Home.from_environment()
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    command = first_command(words, enrolled=home.enrolment.exists())
    if file and command[:2] == ["join", "-"] and not _give_token_of(file):
        return 2
    return _look_after(home, _spawn(command) if command else None)


def first_command(words: Sequence[str], *, enrolled: bool) -> list[str]:
    """The meshray command with which the container begins; empty: it waits to be told. Pure.

    >>> first_command(["join", "--ephemeral"], enrolled=False)
    ['join', '-', '--trust-user-environment', '--ephemeral']
    """
    if enrolled:
        return ["up"]
    # The container is the boundary: images' environments belong to the user as whom Ray runs there.
    if words[:1] == ["init"]:
        return ["init", "--trust-user-environment", *words[1:]]
    if words[:1] == ["join"]:
        # The token comes on standard input: nobody sees it among a process's arguments or in its environment.
        return ["join", "-", "--trust-user-environment", *words[1:]]
    return list(words)


def _start_over_without(token: str) -> None:
    """Does not return: what a process was given as its environment can be read as long as it runs."""
    _give(token)
    os.execv(sys.executable, [sys.executable, *_this_module(), *sys.argv[1:]])  # noqa: S606 - no shell is wanted


def _give_token_of(file: str) -> bool:
    """Makes the token in the file the standard input of the next command; says why where it cannot be read. With this
    process' own rights: whoever makes the container chooses file and variable, and often another owner."""
    try:
        with Path(file).open(errors="replace") as opened:
            _give(opened.read(_MOST_TOKEN_CHARACTERS))
    except OSError as error:
        sys.stderr.write(f"error: {TOKEN_FILE}: {file!r} cannot be read: {error.strerror}\n")
        return False
    return True


def _give(token: str) -> None:
    reading, writing = os.pipe()
    os.write(writing, token.encode()[:_MOST_TOKEN_CHARACTERS])
    os.close(writing)
    os.dup2(reading, 0)
    os.close(reading)


def _this_module() -> list[str]:
    return ["-I", "-m", "meshray.runtime.container.first"]


def _spawn(command: Sequence[str]) -> int:
    """Starts a meshray command, to which the signals mean what they always mean; its process id."""
    argv = [sys.executable, "-I", "-m", "meshray.cli", *command]
    return os.posix_spawn(sys.executable, argv, os.environ, setsigmask=())


def _look_after(home: Home, beginning: int | None) -> int:
    while True:
        number = signal.sigwait(_WATCHED)
        if number in _ENDING:
            return _take_down(home, beginning)
        for pid, code in _ended():
            if pid == beginning:
                beginning = None
                # Somebody outside may have been faster with the same command: then it is under way.
                if code and not (service.is_running(home) or is_claimed(home) or _is_taken_out(home)):
                    return code
            elif code and pid == _agent(home) and not _is_taken_out(home):
                sys.stderr.write(f"the agent ended with exit code {code}: {service.last_words(home)}\n")
                return 1


def _ended() -> list[tuple[int, int]]:
    """Everybody who has ended, with the exit code, as a shell would name it."""
    found = []
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            found.append((ended[0], shell_code(ended[1])))
    return found


def _agent(home: Home) -> int:
    """Its process id, also when it has just ended; 0 where there was none."""
    try:
        return int(json.loads(home.pid_file("agent").read_text())["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _is_taken_out(home: Home) -> bool:
    """Whether its coordinator removed this node, as its agent has noted."""
    try:
        return json.loads(home.enrolment.read_text())["taken_out"] is True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _take_down(home: Home, beginning: int | None) -> int:
    if beginning is not None:
        # A join that is interrupted takes back what it had begun.
        os.kill(beginning, signal.SIGTERM)
        os.waitpid(beginning, 0)
    if not Path(home.enrolment).exists():
        return 0
    return os.waitstatus_to_exitcode(os.waitpid(_spawn(["down"]), 0)[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
