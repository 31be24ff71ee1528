"""hadolint, as PyPI has it, accepts containers/Dockerfile, and each rule that is ignored has a reason beside it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.host import REPOSITORY

DOCKERFILE = REPOSITORY / "containers/Dockerfile"
IGNORED = re.compile(r"^# hadolint ignore=(\S+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def hadolint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hadolint")
    locked = ["--require-hashes", "--requirement", str(REPOSITORY / "requirements/hadolint.txt")]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *locked, "--target", folder], check=True, timeout=300)
    return folder / "bin/hadolint"


def findings(hadolint: Path, text: str) -> list[str]:
    """Return the rules that this Dockerfile breaks."""
    done = subprocess.run(
        [hadolint, "--no-color", "-"], input=text, capture_output=True, text=True, check=False, timeout=60
    )
    assert not done.stderr, done.stderr
    return re.findall(r"^-:\d+ (\S+) ", done.stdout, re.MULTILINE)


def test_hadolint_accepts_the_dockerfile(hadolint: Path) -> None:
    assert findings(hadolint, DOCKERFILE.read_text()) == []


def test_each_ignored_rule_would_be_broken_without_its_line(hadolint: Path) -> None:
    text = DOCKERFILE.read_text()
    ignored = [rule for line in IGNORED.findall(text) for rule in line.split(",")]
    assert sorted(findings(hadolint, IGNORED.sub("", text))) == sorted(ignored) != []


def test_each_ignored_rule_has_its_reason_in_the_line_before() -> None:
    lines = DOCKERFILE.read_text().splitlines()
    before = [lines[number - 1] for number, line in enumerate(lines) if IGNORED.match(line)]
    assert before
    assert all(line.startswith("# ") and not IGNORED.match(line) for line in before)
