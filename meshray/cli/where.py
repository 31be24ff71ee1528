"""Where this node's Ray runs: on a node without root in namespaces that a command must enter first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshray.cli.app import App


def inside_command(app: App, command: Sequence[str]) -> list[str]:
    """The command that runs this one where the node's Ray is; the same one on a node with root."""
    if app.euid == 0 and not (app.home.run / "namespace.json").exists():
        return list(command)
    from meshray.runtime.rootless.namespace import enter_command, held

    found = held(app.home)
    return list(command) if found is None else enter_command(found.first, list(command))
