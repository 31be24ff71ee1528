"""What a shell's completion offers besides commands and options."""

from __future__ import annotations

import click

from meshray.cli.app import App
from meshray.cli.tables import children
from meshray.errors import MeshrayError

#: A shell waits for it at each Tab.
_PATIENCE_S = 1.0


def node_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of the mesh's nodes that begin so; none where no agent answers."""
    app = context.find_object(App) or App(())
    try:
        status = app.control().ask("status", timeout_s=_PATIENCE_S)
    except (MeshrayError, OSError):
        return []
    names = (str(node.get("name")) for node in children(status, "nodes"))
    return [name for name in names if name.startswith(incomplete)]
