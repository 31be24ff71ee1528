"""The engine that the engine benchmark builds for comparison: the current wireguard-go, without patches.

Only `make bench` builds it, and only for the section `engine`. requirements/bench/ names the version. If it cannot be
built, the benchmark measures without it and reports the reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable

from tests.go_programs import Module, building, discard_go_caches

_GROUP = "bench"
CURRENT = "current wireguard-go"
_WIREGUARD_GO = Module(
    _GROUP, "wireguard", "golang.zx2c4.com/wireguard", {"wireguard-go": "golang.zx2c4.com/wireguard"}
)
#: Of each engine that `wg` configures, the words before the name of its interface.
COMMANDS = {CURRENT: (_WIREGUARD_GO.place / "wireguard-go", "-f")}


def build_missing(report: Callable[[str], None]) -> dict[str, str]:
    """Build the engines that are not in the cache; return the reason for each that cannot be measured."""
    if COMMANDS[CURRENT][0].exists():
        return {}
    go = os.environ.get("GO") or shutil.which("go")
    if go is None:
        return {CURRENT: "Go is not installed"}
    report(f"{CURRENT}: building {_WIREGUARD_GO.version}")
    try:
        with building(_GROUP, [_WIREGUARD_GO]):
            _WIREGUARD_GO.build(go, "wireguard-go")
            discard_go_caches(_GROUP)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        return {CURRENT: f"its build failed ({type(error).__name__})"}
    return {}


def versions() -> str:
    """Return the versions of the engines that this module builds."""
    return f"{CURRENT} {_WIREGUARD_GO.version.rsplit('-', 1)[-1]}"
