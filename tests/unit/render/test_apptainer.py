"""The Apptainer definition, as far as it can be tested without Apptainer: its header, its sections, its shell."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

DEFINITION = Path(__file__).resolve().parents[3] / "containers/meshray.def"


def sections() -> dict[str, str]:
    """Return name → text; the header has an empty name."""
    parts = re.split(r"^%(\w+)\n", DEFINITION.read_text(), flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def test_what_it_is_made_from_can_be_chosen() -> None:
    header = dict(line.split(": ", 1) for line in sections()[""].splitlines() if line and not line.startswith("#"))
    assert header == {"Bootstrap": "docker", "From": "{{ BASE }}"}
    assert re.fullmatch(r"\s*BASE=rayproject/ray:[\w.-]+\s*", sections()["arguments"])


def test_its_sections() -> None:
    assert list(sections()) == ["", "arguments", "files", "post", "runscript", "test", "help"]
    assert "--rootless" in sections()["help"]


@pytest.mark.parametrize("name", ["post", "runscript", "test"])
def test_its_shell_is_sound(name: str) -> None:
    done = subprocess.run(["sh", "-n"], input=sections()[name], capture_output=True, text=True, check=False, timeout=20)
    assert done.stderr == ""
    assert done.returncode == 0
