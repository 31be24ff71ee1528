"""`meshray secrets …`: the secrets that all nodes of the mesh share. On the head."""

from __future__ import annotations

from collections.abc import Mapping

import click

from meshray.cli.app import App
from meshray.cli.options import group, json_option
from meshray.cli.results import Result, SecretsRotated


@group("secrets")
def secrets_command() -> None:
    """Change the secrets that all nodes share. On the head."""


@secrets_command.command("rotate")
@json_option
@click.pass_obj
def rotate(app: App) -> Result:
    """Change the mesh secret now, and Ray's token with the next start of the head's Ray. No connection ends.

    \b
    Example:
      sudo meshray secrets rotate

    `meshray node rm` does this automatically. Use it after a copy of a node's disk leaked, or after a node that you no
    longer trust left the mesh. A node that is away receives the new secrets when it connects. A device of `meshray peer
    add` keeps the secret with which its file was made.
    """
    return SecretsRotated(rotation_of(app, app.api("POST", "/v1/secrets/rotate")))


def rotation_of(app: App, answer: object) -> Mapping[str, object]:
    """Return the coordinator's result of a rotation; warn the user of nodes and devices that keep an old secret."""
    if not isinstance(answer, dict):
        return {}
    rotation = {key: answer.get(key) for key in ("epoch", "started", "away", "static", "too_old")}
    if old := _names(rotation["too_old"]):
        app.warn(
            f"no secret was changed: the meshray of {old} cannot change its secrets, or has not connected since "
            "the upgrade; upgrade it, then: meshray secrets rotate"
        )
    elif rotation["started"]:
        if away := _names(rotation["away"]):
            app.warn(f"{away} is away and receives the new secrets when it connects")
        if static := _names(rotation["static"]):
            app.warn(f"{static} keeps the secret of its file; to change it: meshray node rm, then meshray peer add")
    return rotation


def _names(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else ""
