"""Make NetworkManager and systemd-networkd ignore the overlay's interface.

    keep_unmanaged("meshray0")   # before it is created
    release("meshray0")          # after it was removed

Otherwise both would manage it where a catch-all profile matches, and remove its addresses. The files are under /run,
so a reboot removes them. Where neither runs, nothing is written.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from meshray.linux.trusted_files import find_program

_log = logging.getLogger(__name__)
_COMMAND_S = 10


@dataclass(frozen=True)
class _Manager:
    """One network manager: how to detect it, what to write where, and how to reload it."""

    runs: str
    file: str
    text: str
    reload: tuple[str, ...]


_MANAGERS = (
    # NetworkManager.conf(5), "device section". This is only a default: a user may still override it with nmcli.
    _Manager(
        runs="run/NetworkManager",
        file="run/NetworkManager/conf.d/90-{name}.conf",
        text="# Made by meshray, removed by `meshray down`.\n"
        "[device-{name}]\nmatch-device=interface-name:{name}\nmanaged=0\n",
        reload=("nmcli", "general", "reload", "conf"),
    ),
    # systemd.network(5): the first file that matches wins, in the order of their names.
    _Manager(
        runs="run/systemd/netif/state",
        file="run/systemd/network/00-{name}.network",
        text="# Made by meshray, removed by `meshray down`.\n[Match]\nName={name}\n\n[Link]\nUnmanaged=yes\n",
        reload=("networkctl", "reload"),
    ),
)


def keep_unmanaged(name: str, root: Path = Path("/")) -> None:
    """Write the configuration of each running manager and reload it. A failure is only logged: the
    device works without it, until a catch-all profile matches it."""
    for manager in _MANAGERS:
        file = root / manager.file.format(name=name)
        text = manager.text.format(name=name)
        if not (root / manager.runs).exists() or (file.exists() and file.read_text() == text):
            continue
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            file.chmod(0o644)
        except OSError as error:
            _log.warning("cannot make %s ignore %s: %s", manager.reload[0], name, error)
            continue
        _reload(manager)


def release(name: str, root: Path = Path("/")) -> None:
    """Remove the configuration that `keep_unmanaged` wrote."""
    for manager in _MANAGERS:
        file = root / manager.file.format(name=name)
        if file.exists():
            with contextlib.suppress(FileNotFoundError):
                file.unlink()
            _reload(manager)


def _reload(manager: _Manager) -> None:
    program = find_program(manager.reload[0], os.environ)
    if program is None:
        return
    try:
        subprocess.run(
            [str(program), *manager.reload[1:]],
            check=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_COMMAND_S,
            text=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning("%s failed: %s", " ".join(manager.reload), error)
