"""The pass of a user outside the mesh: `--pass`, and the sessions that were opened with passes before.

>>> session = pass_session(app, shown, Level.USE, "meshray forward 8265")
>>> tunnel = await session.use(lambda page: page.tunnel("gpu-1", 8350))
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from meshray.errors import RefusedError, UsageError
from meshray.model.permission_level import Level

if TYPE_CHECKING:
    from meshray.cli.app import App
    from meshray.client.page_session import PageSession, PageUrl

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
_MAX_PASS_BYTES = 4096


def pass_option(level: Level, where: str) -> Callable[[F], F]:
    """Return the decorator that adds ``--pass``; its value is passed on as ``shown``."""
    return click.option(
        "--pass",
        "shown",
        metavar="URL|@FILE|-",
        help=f"{where}: the URL of `meshray web invite NAME --{level.word}`, a file with it, or - for standard input.",
    )


class PassSession:
    """The session of a pass, which is exchanged for it on the first use."""

    def __init__(self, folder: Path, url: PageUrl | None, kept: PageSession | None) -> None:
        self._folder = folder
        self._url = url
        self._opened = kept

    async def use(self, action: Callable[[PageSession], Awaitable[T]]) -> T:
        """Return what the action returns; forget the session if the coordinator says that it has ended."""
        from meshray.client.page_session import delete_session, open_session

        if self._opened is None and self._url is not None:
            self._opened = await open_session(self._url, self._folder)
        if self._opened is None:
            raise RuntimeError("there is neither a URL nor a session")
        try:
            return await action(self._opened)
        except RefusedError as error:
            if error.code == "session_ended":
                delete_session(self._folder, self._opened)
            raise


def pass_session(app: App, shown: str | None, level: Level, command: str) -> PassSession:
    """Return the session of the shown pass, or the only one that is kept here.

    Args:
        command: as which the user types it again with a pass, for the hint.

    Raises:
        UsageError: ``needs_pass``, ``bad_pass``.
    """
    from meshray.client.page_session import PageUrl, invite_command, kept_sessions

    folder = _folder(app)
    if shown is not None:
        return PassSession(folder, PageUrl.parse(_read(app, shown, level), level), None)
    known = kept_sessions(folder, level)
    if len(known) != 1:
        raise UsageError(
            "needs_pass",
            "this machine is not in a mesh" if not known else "there are sessions of several passes here",
            hint=f"{command} --pass -, with the URL of {invite_command(level)} from the head",
        )
    return PassSession(folder, None, known[0])


def keeps_sessions(app: App) -> bool:
    """Return whether this user has sessions of passes."""
    return any(_folder(app).glob("*.json"))


def _read(app: App, shown: str, level: Level) -> str:
    """Return the URL. Raises UsageError."""
    from meshray.client.page_session import invite_command

    if shown == "-":
        return app.stdin.readline(_MAX_PASS_BYTES)
    if not shown.startswith("@"):
        app.warn("other users of this machine can see the pass among the arguments of this command: use @FILE or -")
        return shown
    try:
        with Path(shown[1:]).open() as file:
            return file.readline(_MAX_PASS_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            "bad_pass",
            f"{shown[1:]} cannot be read: {getattr(error, 'strerror', 'it is not text')}",
            hint=f"--pass @FILE, with the URL of {invite_command(level)} in the file",
        ) from None


def _folder(app: App) -> Path:
    base = app.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(base) / "meshray" / "sessions"
