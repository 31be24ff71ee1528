"""The context of every command: its invocation, the location of the state, and output to the user.

@click.pass_obj
def status(app: App) -> StatusResult:
    return StatusResult(app.control().request(GetStatus()))
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from meshray.cli.program_name import program
from meshray.errors import MeshrayError, UsageError
from meshray.home import Home
from meshray.model.printable import escaped

if TYPE_CHECKING:
    from meshray.client.agent import ControlClient
    from meshray.runtime.base import Progress

#: The state of root's mesh. Users other than root use it if they have no mesh of their own.
SYSTEM_HOME = Home(Path("/var/lib/meshray"), Path("/run/meshray"))
_WORD = re.compile(r"[A-Za-z0-9._-]{1,63}")
#: The timeout covers several addresses of the coordinator.
_API_TIMEOUT_S = 30.0
#: Variables that sudo drops although a meshray command may need them.
_VARIABLES_FOR_SUDO = (
    "MESHRAY_HOME",
    "MESHRAY_RUN",
    "MESHRAY_RAY",
    "MESHRAY_WIREGUARD",
    "MESHRAY_ENGINE",
    "MESHRAY_LOG",
    "MESHRAY_LOG_FORMAT",
    "HTTPS_PROXY",
    "https_proxy",
)


@dataclass(frozen=True)
class App:
    """One invocation of this program.

    Attributes:
        arguments: the arguments after the program's name.
        as_json: the answer is for a script.
        euid: the effective user id; 0 is root.
    """

    arguments: tuple[str, ...]
    as_json: bool = False
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    stdin: TextIO = field(default_factory=lambda: sys.stdin, repr=False)
    stdout: TextIO = field(default_factory=lambda: sys.stdout, repr=False)
    stderr: TextIO = field(default_factory=lambda: sys.stderr, repr=False)
    euid: int = field(default_factory=os.geteuid)

    @property
    def own_home(self) -> Home:
        """The location of this user's (or root's) own state, which may not exist."""
        return Home.from_environment(self.environ)

    @property
    def home(self) -> Home:
        """The state of the mesh that this command concerns: the user's own, else root's."""
        own = self.own_home
        chosen = self.environ.get("MESHRAY_HOME") or self.environ.get("MESHRAY_RUN") or _exists(own.enrolment)
        chosen = chosen or _exists(own.container)
        return SYSTEM_HOME if not chosen and _exists(SYSTEM_HOME.control_socket) else own

    @property
    def may_be_enrolled(self) -> bool:
        """Whether this machine may be in a mesh: the user cannot always read root's state."""
        return _exists(self.home.enrolment) or (self.euid != 0 and _exists(SYSTEM_HOME.state))

    def control(self) -> ControlClient:
        """Return a client of that mesh's agent."""
        from meshray.client.agent import ControlClient

        return ControlClient(self.home.control_socket)

    def api(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Mapping[str, object]:
        """Return the coordinator's answer to this node, through the agent, which knows its endpoint."""
        from meshray.protocol.control import CallCoordinator

        request = CallCoordinator(method, path, dict(body) if body is not None else None)
        return self.control().request(request, timeout_s=_API_TIMEOUT_S)

    @staticmethod
    def word(text: str) -> str:
        """Return a name or id for use in an API path. Raises UsageError for anything else."""
        if not _WORD.fullmatch(text):
            raise UsageError(
                "bad_name", f"{text[:80]!r} is not a name or id", hint="meshray node list; meshray token list"
            )
        return text

    def run_from_copy(self) -> None:
        """As root, continue in a protected copy if other users can change this one (`meshray.cli.privileged`)."""
        if self.euid == 0:
            from meshray.cli.privileged import run_from_copy

            run_from_copy(self.arguments, self.progress, (self.stdout, self.stderr))

    def progress(self) -> Progress:
        """Return a display of stages on stderr, live if that is a terminal."""
        from meshray.cli.progress import open_progress

        return open_progress(self.stderr, self.environ)

    def warn(self, text: str) -> None:
        """Print a warning on one line."""
        print(f"warning: {escaped(text)}", file=self.stderr)

    def note(self, text: str) -> None:
        """Print one line of progress."""
        print(escaped(text), file=self.stderr, flush=True)

    def require_root(self, reason: str = "a WireGuard interface, routes and firewall rules need it") -> None:
        """Raise MeshrayError with the exact sudo line if the user is not root and this node is not theirs."""
        if self.euid != 0 and not self._has_own_node:
            raise MeshrayError("not_root", f"not root: {reason}", hint=self.sudo_line())

    def require_root_of_node(self) -> None:
        """Raise as `require_root` does, but MeshrayError ``not_enrolled`` if root has no node either."""
        if self.euid != 0 and not self.may_be_enrolled and not self._has_own_node:
            raise MeshrayError(
                "not_enrolled", "this machine is not in a mesh", hint="meshray init, or meshray join TOKEN"
            )
        self.require_root()

    @property
    def _has_own_node(self) -> bool:
        """Whether this user has a node without root, or files of one."""
        try:
            return self.own_home.state.stat().st_uid == self.euid
        except OSError:
            return False

    def sudo_line(self) -> str:
        """Return this command with sudo, ready to paste. Possible secrets are passed by name and never shown."""
        from meshray.cli.variables import names_for

        named = names_for(self.arguments[0], self.environ) if self.arguments else []
        kept = [f"{name}={self.environ[name]}" for name in _VARIABLES_FOR_SUDO if self.environ.get(name)]
        sudo = ["sudo", *([f"--preserve-env={','.join(named)}"] if named else []), *(["env", *kept] if kept else [])]
        return shlex.join([*sudo, *self._words()])

    def line_with_another_home(self) -> str:
        """Return this command, ready to paste, with a free state folder instead of one with other users' files."""
        from meshray.node.state_folder import free_folder

        unset = {name: value for name, value in self.environ.items() if name != "MESHRAY_HOME"}
        default = Home.from_environment(unset).state
        found = free_folder(self.own_home, default)
        if self.environ.get("SUDO_UID"):
            chosen = unset if found == default else {**unset, "MESHRAY_HOME": str(found)}
            return replace(self, environ=chosen).sudo_line()
        change = ["-u", "MESHRAY_HOME"] if found == default else [f"MESHRAY_HOME={found}"]
        return shlex.join(["env", *change, *self._words()])

    def _words(self) -> list[str]:
        from meshray.model.token import PREFIX

        return [*program(), *("TOKEN" if PREFIX in argument else argument for argument in self.arguments)]

    def confirm(self, question: str, yes: bool) -> None:
        """Ask before an action that cannot be undone.

        Raises:
            UsageError: there is no terminal, and ``--yes`` was not given.
            MeshrayError: the user declined.
        """
        if yes:
            return
        if self.as_json or not self.stdin.isatty() or not self.stderr.isatty():
            raise UsageError(
                "needs_yes",
                f"{question} Not done: there is no terminal on which to confirm",
                hint=shlex.join(["meshray", *self.arguments, "--yes"]),
            )
        import click

        if not click.confirm(escaped(question) + " Continue?", default=False, err=True):
            raise MeshrayError("not_confirmed", "nothing was changed")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # This user may not enter a folder of the path.
        return False
