"""`meshray dashboard`: the address of Ray's dashboard, its token, and how to open it from another machine."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meshray.cli.browser import has_browser
from meshray.cli.options import json_option
from meshray.cli.result import Result
from meshray.cli.tables import Paint, chosen_ports, plain
from meshray.errors import MeshrayError
from meshray.model.ray_ports import PURPOSES
from meshray.protocol.answers import Dashboard

if TYPE_CHECKING:
    from meshray.cli.app import App


@dataclass(frozen=True)
class DashboardResult(Result[Dashboard]):
    """``dashboard``."""

    def text(self, paint: Paint = plain) -> str:
        """Return the dashboard, its token, and the ports that differ from the defaults."""
        token = [f"token      {self.answer.token}"] if self.answer.token else []
        chosen = chosen_ports(self.answer.ports)
        ports = [f"ports      {chosen}"] if chosen else []
        return "\n".join([f"dashboard  {self.answer.url}", *token, f"elsewhere  {self.answer.ssh}", *ports])


@click.command("dashboard")
@click.option("--no-open", is_flag=True, help="Do not open a browser.")
@json_option
@click.pass_obj
def dashboard_command(app: App, no_open: bool) -> DashboardResult:
    """Show the address of Ray's dashboard and its token, and open it if there is a browser.

    \b
    Examples:
      meshray dashboard
      meshray dashboard --json

    Anyone who has the token can run programs in the cluster. From a machine outside the mesh, use the ssh line, then
    http://127.0.0.1:PORT with the dashboard's port, 8265 by default. Ports of the head's Ray are shown if they are not
    the default.
    """
    from meshray.linux.user import User
    from meshray.protocol.control import GetEnvironment

    found = app.control().request(GetEnvironment())
    url = found.dashboard_here or found.env.get("RAY_API_SERVER_ADDRESS", "")
    host, _, port = url.rpartition("/")[2].partition(":")
    user = User.by_uid(found.user_uid or 0).name
    answer = Dashboard(
        url=url,
        token=_token(found.env.get("RAY_AUTH_TOKEN_PATH", ""), app),
        ssh=f"ssh -N -L {port}:{host}:{port} {user}@{socket.gethostname()}",
        # An older agent does not report these ports, and a newer one may report more.
        ports={name: port for name, port in found.ray_ports.items() if name in PURPOSES},
    )
    if not (no_open or app.as_json) and has_browser(app):
        import webbrowser

        webbrowser.open(url)
    return DashboardResult(answer)


def _token(path: str, app: App) -> str:
    if not path:
        return ""
    try:
        return Path(path).read_text().strip()
    except FileNotFoundError:
        raise MeshrayError(
            "no_ray_token", "Ray has not started here yet: there is no token", hint="meshray status"
        ) from None
    except PermissionError:
        raise MeshrayError(
            "not_root", f"{path} can be read only by the user who runs Ray", hint=app.sudo_line()
        ) from None
