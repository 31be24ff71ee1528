"""The name by which this program is called, so that printed commands work when they are pasted.

>>> pasteable("meshray up", environ)                    # it is not on PATH
'/home/ada/ray/bin/meshray up'
>>> on_other_machine(origin, home)                      # one that was set up like this one
'~/ray/bin/meshray'
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from meshray.defaults import PROGRAM_LINK

NAME = "meshray"
#: The folders that sudo searches (secure_path of Debian, Ubuntu and Fedora).
_SUDO_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: A command at the beginning of a hint, after a separator or a backtick; not one for another machine.
_COMMAND = re.compile(rf"(?P<before>^|; |, |: |or |then |`|\()(?P<sudo>sudo )?{NAME}(?= [a-z-])")
_ELSEWHERE = re.compile(r"(?i)\bon (the )?[\w.-]+: ")


def program(argv: Sequence[str] | None = None) -> list[str]:
    """Return the command that starts this program from anywhere: absolute, since sudo drops PATH."""
    name = (sys.argv if argv is None else argv)[0]
    script = Path(name)
    if script.name == "__main__.py" or not script.name:
        return [sys.executable, "-m", "meshray.cli"]
    found = Path(shutil.which(name) or script).absolute()
    return [str(PROGRAM_LINK if _is_same(PROGRAM_LINK, found) else found)]


def pasteable(text: str, environ: Mapping[str, str], argv: Sequence[str] | None = None) -> str:
    """Return a hint whose `meshray` commands use a path if the name alone would not find the program."""
    words = program(argv)
    typed = Path((sys.argv if argv is None else argv)[0])
    is_ours = typed.name == NAME or any(typed.match(f"{NAME}/{name}") for name in ("__main__.py", "cli/__main__.py"))
    if not is_ours or _ELSEWHERE.search(text):
        return text
    full = shlex.join(words)

    def replaced(found: re.Match[str]) -> str:
        path = _SUDO_PATH if found["sudo"] else environ.get("PATH", os.defpath)
        name = NAME if _is_same(Path(shutil.which(NAME, path=path) or "/nonexistent"), Path(words[0])) else full
        return f"{found['before']}{found['sudo'] or ''}{name}"

    return _COMMAND.sub(replaced, text)


def on_other_machine(origin: Path | None, home: Path, argv: Sequence[str] | None = None) -> str:
    """Return the command for use with sudo on a machine that was set up like this one.

    Args:
        origin: the programs folder of the environment from which root's copy was created; None: not a copy.
        home: the user's home, whose folders probably have the same names there.
    """
    words = program(argv)
    path = origin / NAME if origin is not None else Path(words[0])
    if len(words) > 1 or path.name != NAME or str(path.parent) in _SUDO_PATH.split(":"):
        return NAME
    if path.is_relative_to(home) and home != Path("/"):
        return f"~/{shlex.quote(str(path.relative_to(home)))}"
    return shlex.quote(str(path))


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
