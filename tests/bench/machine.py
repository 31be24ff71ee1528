"""The machine of the measurements.

>>> describe()["cores"]
'2'
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from meshray import __version__
from meshray.errors import MeshrayError
from meshray.wireguard.engines import find_engine


def describe() -> Mapping[str, str]:
    """Return the machine and the versions of the measured programs, for users."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "meshray": " ".join([__version__, _revision()]).strip(),
        "Python": platform.python_version(),
        "Ray": _package("ray"),
        "aiohttp": _package("aiohttp"),
        "WireGuard engine": _engine(),
        "iperf3": _first_words(["iperf3", "--version"], 2),
    }


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.machine()


def _revision() -> str:
    """Return the commit, with a + if files differ from it; empty outside of a checkout."""
    commit = _output(["git", "rev-parse", "--short", "HEAD"]).strip()
    return f"({commit}{'+' if _output(['git', 'status', '--porcelain', '--', 'meshray']) else ''})" if commit else ""


def _package(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def _engine() -> str:
    if Path("/sys/module/wireguard").exists():
        return "kernel"
    try:
        engine = find_engine(os.environ)
    except MeshrayError:
        return "none"
    return f"{engine.name} {_output([str(engine.program), '--version']).split('v')[-1].split()[0]}"


def _first_words(command: list[str], count: int) -> str:
    return " ".join(_output(command).split()[:count]) or "none"


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False, timeout=10
        )
    except OSError:
        return ""
    return done.stdout
