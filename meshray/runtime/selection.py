"""The choice of a runtime, from the state on disk or from the options of `init` and `join`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from meshray.home import Home

if TYPE_CHECKING:
    from meshray.runtime.base import AgentRuntime, Runtime


def runtime_of(home: Home, environ: Mapping[str, str]) -> Runtime:
    """Return where this machine's node lives, or would live if there were one."""
    if _exists(home.container):
        from meshray.runtime.docker.runtime import Docker

        return Docker(home, environ)
    return agent_runtime(home, environ)


def agent_runtime(home: Home, environ: Mapping[str, str], rootless: bool | None = None) -> AgentRuntime:
    """Return where this very meshray runs the agent.

    Args:
        rootless: as the node was enrolled, or is going to be; None: as it runs now, which any user may read.
    """
    if _exists(home.run / "namespace.json") if rootless is None else rootless:
        from meshray.runtime.rootless.runtime import Rootless

        return Rootless(home, environ)
    from meshray.runtime.host import Host

    return Host(home, environ)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder on the way is closed to this user
        return False
