"""A node's namespaces, as its agent uses them.

namespace = Namespace.up(home)      # starts the holder, or finds the one that runs
namespace.enter()                   # this process joins its user namespace; `meshray.linux.overlay_netns` knows
...
Namespace.end(home)                 # with all that runs inside
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.linux import overlay_netns
from meshray.linux.process import ManagedProcess
from meshray.runtime.rootless import syscalls

T = TypeVar("T")

#: Time limit for the holder, seconds. Python starts in a tenth of a second, on a busy machine later.
_START_S = 15.0
_POLL_S = 0.02
_STOP_S = 5.0


@dataclass(frozen=True)
class NamespaceRecord:
    """The description of namespaces by their holder.

    Attributes:
        first: pid of the first process inside, as seen from outside.
        internet: the program that connects the inside to the internet; empty: there is none.
        engine_inside: WireGuard's engine is inside as well, and that program forwards the tunnel.
    """

    first: int
    internet: str
    engine_inside: bool = False


def read_record(home: Home) -> NamespaceRecord | None:
    """Return the description of this node's namespaces; None if no holder runs."""
    pid = ManagedProcess(home.pid_file("namespace")).pid
    try:
        value = json.loads((home.run / "namespace.json").read_text())
        found = NamespaceRecord(int(value["first"]), str(value["internet"]), value.get("engine_inside") is True)
        return found if value["holder"] == pid and pid else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Namespace:
    """See `meshray.linux.overlay_netns.OverlayNamespace`."""

    def __init__(self, found: NamespaceRecord) -> None:
        self.record = found
        # Kept open while this process lives: the first process may end, and its pid be reused.
        self._files = {
            name: os.open(f"/proc/{found.first}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in syscalls.FILES
        }
        self._outside = ThreadPoolExecutor(1, "outside")
        self._inside = ThreadPoolExecutor(1, "inside", self._enter_network)
        self._parent = ThreadPoolExecutor(1, "children", self._become_parent)

    @property
    def engine_inside(self) -> bool:
        """See `OverlayNamespace.engine_inside`."""
        return self.record.engine_inside

    @property
    def internet_helper(self) -> str:
        """See `OverlayNamespace.internet_helper`."""
        return self.record.internet

    @classmethod
    def up(cls, home: Home, udp_port: int | None = None) -> Namespace:
        """Adopt the holder that runs, or start one.

        Args:
            udp_port: of an engine inside, 0: any; None: the engine stays outside.

        Raises:
            MeshrayError: ``no_namespace`` with the last line of the holder's log.
        """
        process = ManagedProcess(home.pid_file("namespace"))
        log = home.logs / "namespace.log"
        if process.pid is None:
            arguments = [str(home.run), str(_make_scratch(home)), *([] if udp_port is None else [str(udp_port)])]
            command = [sys.executable, "-I", "-m", "meshray.runtime.rootless.holder", *arguments]
            process.spawn(command, env=dict(os.environ), log=log, cwd=Path("/"))
        deadline = time.monotonic() + _START_S
        while (found := read_record(home)) is None:
            if process.pid is None or time.monotonic() > deadline:
                process.stop_blocking(_STOP_S)
                raise MeshrayError(
                    "no_namespace",
                    f"this node's namespaces could not be created: {_last_line(log)}",
                    hint="meshray doctor",
                )
            time.sleep(_POLL_S)
        try:
            return cls(found)
        except OSError as error:
            raise MeshrayError(
                "no_namespace", f"this node's namespaces cannot be opened: {error.strerror}", hint="meshray down"
            ) from None

    @staticmethod
    def end(home: Home) -> bool:
        """End all processes inside; return whether a holder ran."""
        process = ManagedProcess(home.pid_file("namespace"))
        was_running = process.pid is not None
        process.stop_blocking(_STOP_S)
        return was_running

    def enter(self) -> None:
        """Enter the user namespace, which gives this process the right to the others. It must not have threads yet.

        Raises:
            MeshrayError: ``no_namespace``.
        """
        try:
            syscalls.setns(self._files["user"], syscalls.NEWUSER)
            # A thread starts in the namespaces of its creator: this one must exist before the others.
            self.run_outside(lambda: None)
            overlay_netns.enter(self)
            self.run(lambda: None)
        except (OSError, RuntimeError) as error:
            overlay_netns.enter(None)
            raise MeshrayError(
                "no_namespace", f"this node's namespaces cannot be entered: {error}", hint="meshray down, meshray up"
            ) from None

    def run(self, function: Callable[[], T]) -> T:
        """See `OverlayNamespace.run`."""
        return self._inside.submit(function).result()

    def run_outside(self, function: Callable[[], T]) -> T:
        """See `OverlayNamespace.run_outside`."""
        return self._outside.submit(function).result()

    def run_as_child(self, function: Callable[[], T]) -> T:
        """See `OverlayNamespace.run_as_child`."""
        return self._parent.submit(function).result()

    def path(self, path: str) -> Path:
        """See `OverlayNamespace.path`."""
        return Path(f"/proc/{self.record.first}/root{path}")

    def wrap(self, argv: list[str], sockets: Path | None = None) -> list[str]:
        """See `OverlayNamespace.wrap`."""
        return enter_command(self.record.first, argv, sockets)

    def _enter_network(self) -> None:
        syscalls.setns(self._files["net"], syscalls.NEWNET)

    def _become_parent(self) -> None:
        """Enter what a thread can enter; its child processes enter the rest."""
        self._enter_network()
        syscalls.setns(self._files["pid"], syscalls.NEWPID)
        # Looking at the first process, which has all capabilities inside, takes SYS_PTRACE.
        syscalls.pass_on(syscalls.SYS_ADMIN, syscalls.SYS_CHROOT, syscalls.SYS_PTRACE, syscalls.NET_ADMIN)


def enter_once(home: Home, udp_port: int | None = None) -> None:
    """Enter the namespaces of this node, unless this process has entered them.

    Args:
        udp_port: as `Namespace.up`.

    Raises:
        MeshrayError: ``no_namespace``.
    """
    if overlay_netns.entered() is None:
        Namespace.up(home, udp_port).enter()


def enter_command(first: int, argv: list[str], sockets: Path | None = None) -> list[str]:
    """Return the command that runs another one inside, from anywhere (pure).

    Args:
        sockets: as `meshray.linux.overlay_netns.OverlayNamespace.wrap`.
    """
    module = "meshray.runtime.rootless.enter" if sockets is None else "meshray.runtime.rootless.enter_engine"
    arguments = [str(first), *([] if sockets is None else [str(sockets)])]
    return [sys.executable, "-I", "-m", module, *arguments, "--", *argv]


def scratch_folder(home: Home) -> Path:
    """Return the folder for this node's Ray logs and spilled objects."""
    mark = hashlib.sha256(str(home.state).encode()).hexdigest()[:8]
    return Path(f"/tmp/meshray-{os.geteuid()}-{mark}")  # noqa: S108 - its owner is checked


def remove_scratch(home: Home) -> None:
    """Remove the folder of this node's Ray."""
    folder = scratch_folder(home)
    if _is_ours(folder):
        shutil.rmtree(folder, ignore_errors=True)
        # Other nodes may have mounted on /tmp/ray, and rmdir detaches such mounts in every namespace.
        if not any(folder.parent.glob("meshray-[0-9]*-*")):
            with contextlib.suppress(OSError):  # it is not empty, or belongs to another user
                (folder.parent / "ray").rmdir()


def _make_scratch(home: Home) -> Path:
    folder = scratch_folder(home)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if not _is_ours(folder):
        raise MeshrayError("scratch_taken", f"{folder} belongs to another user", hint=f"ls -ld {folder}")
    return folder


def _is_ours(folder: Path) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").split("\n")
    except OSError:
        return "its log cannot be read"
    return next((line for line in reversed(lines) if line.strip()), "its log is empty")
