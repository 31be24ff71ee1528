"""Puts the WireGuard engine into the wheel where it was built (`make engine`), which makes it a wheel of this platform.

Without it the wheel is pure Python, and WireGuard is the kernel's or wireguard-go's.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ENGINE = "meshray/wireguard/engine/meshray-engine"


class EngineHook(BuildHookInterface):  # type: ignore[type-arg]
    """See the module's text."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it builds."""
        if version == "editable" or not os.access(Path(self.root) / ENGINE, os.X_OK):
            return
        build_data["artifacts"].append(f"/{ENGINE}")
        build_data["pure_python"] = False
        # Built without cgo: it needs no C library at all, the oldest tag that pip knows will do.
        build_data["tag"] = f"py3-none-manylinux_2_17_{platform.machine()}"
