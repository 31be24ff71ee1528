"""`meshray secrets …`: the secrets that all nodes of the mesh share. On the head."""

from __future__ import annotations

from dataclasses import dataclass

import click

from meshray.cli.app import App
from meshray.cli.options import group, json_option
from meshray.cli.result import Result
from meshray.cli.tables import Paint, plain
from meshray.protocol.api import Rotation
from meshray.protocol.codec import convert
from meshray.protocol.fields import FIRST_EPOCH


@dataclass(frozen=True)
class RotationResult(Result[Rotation]):
    """``secrets rotate``."""

    def text(self, paint: Paint = plain) -> str:
        """Return the epoch that began."""
        epoch = self.answer.epoch
        return f"epoch {epoch} of the mesh's secrets began; Ray's token follows with the next start of the head's Ray"


@group("secrets")
def secrets_command() -> None:
    """Change the secrets that all nodes share. On the head."""


@secrets_command.command("rotate")
@json_option
@click.pass_obj
def rotate(app: App) -> RotationResult:
    """Change the mesh secret now, and Ray's token with the next start of the head's Ray. No connection ends.

    \b
    Example:
      sudo meshray secrets rotate

    `meshray node rm` does this automatically. Use it after a copy of a node's disk leaked, or after a node that you no
    longer trust left the mesh. A node that is away receives the new secrets when it connects. A device of `meshray peer
    add` keeps the secret with which its file was made.
    """
    return RotationResult(rotation_of(app, app.api("POST", "/v1/secrets/rotate")))


def rotation_of(app: App, answer: object) -> Rotation:
    """Return the coordinator's result of a rotation; warn the user of nodes and devices that keep an old secret."""
    # `node rm` at a coordinator of an older meshray changes no secrets.
    rotation = convert(answer, Rotation) if answer is not None else Rotation(FIRST_EPOCH, started=False)
    too_old, away, static = map(", ".join, (rotation.too_old, rotation.away, rotation.static))
    if too_old:
        app.warn(
            f"no secret was changed: the meshray of {too_old} cannot change its secrets, or has not connected since "
            "the upgrade; upgrade it, then: meshray secrets rotate"
        )
    elif rotation.started:
        if away:
            app.warn(f"{away} is away and receives the new secrets when it connects")
        if static:
            app.warn(f"{static} keeps the secret of its file; to change it: meshray node rm, then meshray peer add")
    return rotation
