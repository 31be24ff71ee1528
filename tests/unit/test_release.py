"""`make release`: its changes in a clone, and the conditions under which it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "release.py"
CHANGELOG = "# Changelog\n\n## Unreleased\n\n### Added\n\n- A.\n\n## 0.1.0 - 2026-01-01\n\n- B.\n"
#: No configuration of the user, and no hooks or keys.
GIT = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"]


@dataclass(frozen=True)
class Clone:
    """A repository in which the script runs like in `make release`."""

    folder: Path

    def git(self, *arguments: str) -> str:
        done = subprocess.run([*GIT, *arguments], cwd=self.folder, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def commit(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            (self.folder / name).parent.mkdir(exist_ok=True)
            (self.folder / name).write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "a change")

    def release(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, SCRIPT, *arguments], cwd=self.folder, check=False, capture_output=True, text=True
        )

    def state(self) -> tuple[str, ...]:
        return self.git("rev-parse", "HEAD"), self.git("tag"), self.git("status", "--porcelain")


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "A")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "a@example.org")
    clone = Clone(tmp_path)
    clone.git("init", "--quiet")
    clone.commit(
        {
            "meshray/__init__.py": '"""A package."""\n\n__version__ = "0.1.0"\n',
            "CHANGELOG.md": CHANGELOG,
            "Makefile": "docs:\n\t@sed -n 's/^__version__/page/p' meshray/__init__.py > page\n",
            "page": "",
        }
    )
    return clone


def test_a_release_is_one_commit_with_an_annotated_tag(clone: Clone) -> None:
    before = clone.git("rev-parse", "HEAD")
    done = clone.release("0.2.0")
    assert done.returncode == 0, done.stderr
    assert "committed and tagged v0.2.0" in done.stderr
    assert clone.git("rev-parse", "HEAD^") == before
    assert clone.git("log", "-1", "--format=%s") == "release: 0.2.0"
    assert clone.git("cat-file", "-t", "v0.2.0") == "tag"
    assert clone.git("rev-parse", "v0.2.0^{commit}") == clone.git("rev-parse", "HEAD")
    assert clone.git("status", "--porcelain") == ""
    assert '__version__ = "0.2.0"' in clone.git("show", "HEAD:meshray/__init__.py")
    # Pages that contain the version are generated again.
    assert clone.git("show", "HEAD:page") == 'page = "0.2.0"'
    changelog = clone.git("show", "HEAD:CHANGELOG.md")
    assert re.search(r"## Unreleased\n\n## 0\.2\.0 - \d{4}-\d\d-\d\d\n\n### Added\n\n- A\.\n\n## 0\.1\.0 - ", changelog)


def test_the_first_release_may_have_the_version_that_is_set(clone: Clone) -> None:
    clone.commit({"CHANGELOG.md": "# Changelog\n\n## Unreleased\n\n- A.\n"})
    assert clone.release("0.1.0").returncode == 0
    assert clone.git("tag") == "v0.1.0"


@pytest.mark.parametrize(
    ("arguments", "files", "reason"),
    [
        ([], {}, "VERSION=1.2.3"),
        (["0.2"], {}, "invalid version '0.2'"),
        (["v0.2.0"], {}, "invalid version 'v0.2.0'"),
        (["0.0.9"], {}, "0.0.9 is older than the current version 0.1.0"),
        (["0.1.0"], {}, "already has a section for 0.1.0"),
        (["0.2.0"], {"CHANGELOG.md": "# Changelog\n\n## 0.1.0\n\n- B.\n"}, 'has no section "## Unreleased"'),
        (["0.2.0"], {"CHANGELOG.md": CHANGELOG.replace("- A.", "")}, "is empty: add what users notice"),
        (["0.2.0"], {"meshray/__init__.py": ""}, "sets no __version__"),
    ],
)
def test_an_invalid_release_is_refused_and_changes_nothing(
    clone: Clone, arguments: list[str], files: dict[str, str], reason: str
) -> None:
    if files:
        clone.commit(files)
    before = clone.state()
    done = clone.release(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("release: ")
    assert reason in done.stderr
    assert clone.state() == before


def test_another_branch_a_changed_tree_and_a_taken_tag_are_refused(clone: Clone) -> None:
    clone.git("switch", "--quiet", "--create", "topic")
    assert "releases are made on main, not on topic" in clone.release("0.2.0").stderr
    clone.git("switch", "--quiet", "main")
    clone.git("tag", "v0.2.0")
    assert "the tag v0.2.0 already exists" in clone.release("0.2.0").stderr
    (clone.folder / "new").write_text("")
    refused = clone.release("0.3.0")
    assert "the work tree has changes" in refused.stderr
    assert "?? new" in refused.stderr
    assert clone.git("tag") == "v0.2.0"


def test_a_failed_step_names_the_command_that_undoes_it(clone: Clone) -> None:
    clone.commit({"Makefile": "docs:\n\t@exit 3\n"})
    before = clone.state()
    failed = clone.release("0.2.0")
    assert failed.returncode == 1
    assert "make --no-print-directory docs failed; undo with git reset --hard" in failed.stderr
    clone.git("reset", "--quiet", "--hard")
    assert clone.state() == before
