"""The shell completions besides commands and options."""

from __future__ import annotations

import click

from meshray.cli.app import App
from meshray.errors import MeshrayError

#: The shell waits for it at each Tab.
_PATIENCE_S = 1.0


def node_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of the mesh's nodes that begin with this text; none if no agent answers."""
    from meshray.protocol.control import GetStatus

    app = context.find_object(App) or App(())
    try:
        status = app.control().request(GetStatus(), timeout_s=_PATIENCE_S)
    except (MeshrayError, OSError):
        return []
    return [node.name for node in status.nodes if node.name.startswith(incomplete)]
