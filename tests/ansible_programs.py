"""Ansible and ansible-lint in a virtual environment of their own, outside of this repository.

    python -m tests.ansible_programs    installs them; `scripts/setup.sh test` runs this

requirements/ansible.txt names the versions and checksums. The environment is in $XDG_CACHE_HOME/meshray-tests, by
default ~/.cache/meshray-tests. An environment that is complete is not installed again.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "meshray-tests"
_REQUIREMENTS = REPOSITORY / "requirements/ansible.txt"
_INSTALL_S = 300


def place() -> Path:
    """Return the folder of the environment, which may not exist yet; another one for other versions."""
    content = f"{sys.executable}\n{_REQUIREMENTS.read_text()}"
    return CACHE / f"ansible-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def program(name: str) -> Path:
    """Return the path of a program, which may not be installed."""
    return place() / "bin" / name


def make() -> None:
    """Install them if they are missing.

    Raises:
        subprocess.CalledProcessError: the environment cannot be made; nothing remains of it.
    """
    done = place() / "complete"
    if done.exists():
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as waiting:  # A second run at the same time finds it complete.
        shutil.rmtree(place(), ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(place())], check=True, timeout=_INSTALL_S, cwd=waiting)
        pip = [str(program("python")), "-m", "pip", "install", "--quiet", "--require-hashes"]
        subprocess.run([*pip, "--requirement", str(_REQUIREMENTS)], check=True, timeout=_INSTALL_S, cwd=waiting)
    done.touch()


def counts_of(output: str) -> dict[str, dict[str, int]]:
    """Return the counts of each machine from the end of a playbook's output."""
    _, _, recap = output.partition("PLAY RECAP")
    found = {
        host.strip(): {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", counts)}
        for host, _, counts in (line.partition(" : ") for line in recap.splitlines())
        if counts
    }
    assert found, output
    return found


if __name__ == "__main__":
    make()
