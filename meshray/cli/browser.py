"""A browser on this screen, for commands that show an address."""

from __future__ import annotations

import os
import tempfile
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshray.cli.app import App

_PAGE = """<!doctype html>
<meta charset="utf-8">
<meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0; url={url}">
<title>meshray</title>
<a href="{url}">meshray</a>
"""


def has_browser(app: App) -> bool:
    """Return whether the user has a browser on a screen; root never does."""
    shown = app.environ.get("DISPLAY") or app.environ.get("WAYLAND_DISPLAY")
    return bool(shown) and app.euid != 0 and app.stdout.isatty()


def open_with_secret(app: App, url: str) -> Path:
    """Open an address that contains a secret, through a file that contains the address; return the file.

    All users see the arguments of a browser. So the browser gets the name of a file that only this user can read.
    """
    import webbrowser

    number, name = tempfile.mkstemp(".html", "meshray-", app.environ.get("XDG_RUNTIME_DIR") or None)
    with os.fdopen(number, "w") as file:
        file.write(_PAGE.format(url=escape(url)))
    webbrowser.open(Path(name).as_uri())
    return Path(name)
