"""An engine that the benchmark cannot build is named with the reason, and the others are measured."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.other_engines import BORINGTUN, CURRENT, TAILSCALE

REPOSITORY = Path(__file__).resolve().parents[2]
_BUILD = """
import json
from tests.bench.other_engines import build_missing
print(json.dumps(build_missing(lambda line: None)))
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Return a folder for the only programs that a build finds; `nice` is there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    nice = shutil.which("nice")
    assert nice
    (folder / "nice").symlink_to(nice)
    return folder


def build(programs: Path, **more: str) -> dict[str, str]:
    """Build with an empty cache, and return the reasons."""
    env = {key: value for key, value in os.environ.items() if key != "GO"}
    env |= {"PATH": str(programs), "XDG_CACHE_HOME": str(programs.parent / "cache"), **more}
    words = [sys.executable, "-c", _BUILD]
    done = subprocess.run(words, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    reasons: dict[str, str] = json.loads(done.stdout)
    return reasons


def test_missing_compilers_are_named(programs: Path) -> None:
    assert build(programs) == {
        CURRENT: "Go is not installed",
        TAILSCALE: "Go is not installed",
        BORINGTUN: "cargo is not installed",
    }


def test_builds_that_fail_are_named(programs: Path) -> None:
    for name in ("go", "cargo"):
        (programs / name).write_text("#!/bin/sh\nexit 1\n")
        (programs / name).chmod(0o755)
    failed = "its build failed (CalledProcessError)"
    assert build(programs) == {CURRENT: failed, TAILSCALE: failed, BORINGTUN: failed}


def test_a_compiler_that_is_named_but_missing_is_a_reason(programs: Path) -> None:
    assert build(programs, GO="/missing/go")[TAILSCALE] == "its build failed (CalledProcessError)"
