"""As root, `init`, `join` and `up` run from a copy of meshray that only root can change."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

from meshray.linux.trusted_files import is_root
from meshray.runtime.base import Progress

#: Variables that could make another user's code part of root's processes.
_DANGEROUS, _DANGEROUS_NAMES = ("LD_", "PYTHON"), frozenset({"BASH_ENV", "ENV", "IFS", "CDPATH", "PERL5LIB"})


def run_from_copy(arguments: Sequence[str], progress: Callable[[], Progress], streams: Sequence[TextIO]) -> None:
    """Run this command from a copy that only root can change, and do not return, if others can change this one.

    The copy is created if it does not exist yet.

    Args:
        arguments: the command line without the program.
        progress: opens the progress display.
        streams: flushed before the copy replaces this process.

    Raises:
        MeshrayError: as `meshray.runtime.privileged.install.install_copy` does.
    """
    from meshray.runtime.privileged import install

    if not is_root() or install.this_copy() is not None or install.first_untrusted_part() is None:
        return
    copy = install.installed_copy()
    if copy is None:
        with progress() as shown:
            shown.stage("install", "run", f"root's own copy of meshray in {install.ROOT}")
            copy = install.install_copy()
            shown.stage("install", "ok", str(copy.folder))
    for stream in streams:
        stream.flush()
    lines = [str(copy.python), "-I", str(copy.program), *arguments]
    os.execve(lines[0], lines, clean(os.environ))  # noqa: S606 - it replaces this process


def clean(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without variables that could load another user's code (pure)."""
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(_DANGEROUS) and name not in _DANGEROUS_NAMES
    }
