"""The command with which another machine joins."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshray.cli.app import App


def join_line(app: App, token: str, *options: str) -> str:
    """Return the command for a machine on which meshray was installed as on this one."""
    import sys
    from pathlib import Path

    from meshray.cli.program_name import on_other_machine
    from meshray.installation.programs import origin_of
    from meshray.linux.user import User

    program = on_other_machine(origin_of(Path(sys.prefix)), User.invoking(app.environ).home)
    return " ".join(["sudo", program, "join", *options, token])
