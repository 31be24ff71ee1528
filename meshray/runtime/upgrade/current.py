"""Which version of meshray this process runs.

>>> current_build()
'3f5a0c9e12ab'
"""

from __future__ import annotations

import json
import os
import sys
from functools import lru_cache
from pathlib import Path

from meshray.defaults import INSTALL_FOLDER
from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.installation.programs import ORIGIN
from meshray.linux import procfs
from meshray.linux.trusted_files import is_root
from meshray.runtime.privileged.boundary import is_container


@lru_cache(1)
def current_build() -> str:
    """Return the build of this installation: a version beside the installed one has a file with it."""
    try:
        return str(json.loads((Path(sys.prefix) / ORIGIN).read_text())["build"])
    except (OSError, ValueError, KeyError, TypeError):
        from meshray.installation.build import own_build

        return own_build()


def versions_folder(home: Home) -> Path:
    """Return the folder of the versions of this node, to which only its user can write."""
    return INSTALL_FOLDER if is_root() else home.versions


def require_upgradable(*, ephemeral: bool) -> None:
    """Raise MeshrayError if something else than this machine's disk decides which meshray this node runs.

    Args:
        ephemeral: the node is ephemeral.
    """
    # With `--block` as the command of a container, meshray is its first process.
    first = [Path(os.fsdecode(word)).name for word in procfs.read(1, "cmdline").split(b"\0")]
    if is_container() or not {"meshray", "meshray.agent"}.isdisjoint(first):
        raise MeshrayError(
            "upgrade_image",
            "this node runs in a container, and the image contains meshray",
            hint="build the image with the new meshray, then create the container again",
        )
    if ephemeral:
        raise MeshrayError(
            "upgrade_ephemeral",
            "this node is ephemeral: its next job or process brings the meshray of its environment",
            hint="upgrade meshray in the environment from which it joins",
        )
