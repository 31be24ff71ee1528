"""Grafana's dashboard: scripts/grafana_dashboard.py builds it with Grafana's SDK, and users get the built file."""

from __future__ import annotations

from meshray.errors import MeshrayError
from meshray.render.templates import folder

FILE = "monitoring/dashboard.json"


def dashboard() -> str:
    """Return the dashboard as JSON, as Grafana imports it.

    Raises:
        MeshrayError: templates_missing.
    """
    try:
        return (folder() / FILE).read_text()
    except FileNotFoundError:
        raise MeshrayError(
            "templates_missing",
            f"{folder() / FILE} is missing",
            hint="install meshray again: pip install --force-reinstall meshray",
        ) from None
