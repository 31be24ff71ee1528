"""Prepares a release in this clone: version, changelog, generated pages, one commit, one annotated tag.

    make release VERSION=0.2.0      runs this, then builds dist/

Nothing is changed unless all conditions are met, and nothing is pushed. docs/releasing.md describes what comes after.
"""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from pathlib import Path

#: The assignment of the version.
_VERSION_FILE = Path("meshray/__init__.py")
_VERSION_LINE = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)
_CHANGELOG = Path("CHANGELOG.md")
_UNRELEASED = "## Unreleased"
_BRANCH = "main"


class RefusedError(Exception):
    """The release is not possible; the message says why and what to do."""


def git(*arguments: str) -> str:
    """Return the output of a git command."""
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, for comparisons."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


def with_section(changelog: str, version: str, day: str) -> str:
    """Return the changelog with its unreleased section turned into that of the version.

    Args:
        day: the day of the release, YYYY-MM-DD.

    Raises:
        RefusedError: the section is missing or empty, or the version has one already.
    """
    if re.search(rf"^## {re.escape(version)}\b", changelog, re.MULTILINE):
        raise RefusedError(f"{_CHANGELOG} already has a section for {version}")
    before, heading, after = changelog.partition(f"{_UNRELEASED}\n")
    if not heading:
        raise RefusedError(f'{_CHANGELOG} has no section "{_UNRELEASED}"')
    if not re.search(r"^- ", after.partition("\n## ")[0], re.MULTILINE):
        raise RefusedError(f'the section "{_UNRELEASED}" of {_CHANGELOG} is empty: add what users notice')
    return f"{before}{heading}\n## {version} - {day}\n{after}"


def require_clean_branch(tag: str) -> None:
    """Check that the work tree is a clean checkout of the main branch, and that the tag is free.

    Raises:
        RefusedError: it is not; the text names the difference.
    """
    branch = git("branch", "--show-current")
    if branch != _BRANCH:
        raise RefusedError(
            f"releases are made on {_BRANCH}, not on {branch or 'a detached HEAD'}: git switch {_BRANCH}"
        )
    if changes := git("status", "--porcelain"):
        raise RefusedError(f"the work tree has changes; commit or remove them first:\n{changes}")
    if git("tag", "--list", tag):
        raise RefusedError(f"the tag {tag} already exists")


def release(version: str) -> None:
    """Commit and tag the version.

    Raises:
        RefusedError: a condition is not met; nothing was changed.
    """
    if not re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}", version):
        raise RefusedError(f"invalid version {version!r}: make release VERSION=1.2.3")
    tag = f"v{version}"
    require_clean_branch(tag)
    source = _VERSION_FILE.read_text()
    current = _VERSION_LINE.search(source)
    if current is None:
        raise RefusedError(f"{_VERSION_FILE} sets no __version__")
    if numbers(version) < numbers(current[1]):
        raise RefusedError(f"{version} is older than the current version {current[1]}")
    day = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    changelog = with_section(_CHANGELOG.read_text(), version, day)

    _CHANGELOG.write_text(changelog)
    _VERSION_FILE.write_text(_VERSION_LINE.sub(f'__version__ = "{version}"', source))
    # The man pages contain the version.
    subprocess.run(["make", "--no-print-directory", "docs"], check=True)
    git("commit", "--all", "--message", f"release: {version}")
    git("tag", "--annotate", "--message", f"meshray {version}", tag)
    sys.stderr.write(f"release: committed and tagged {tag}; nothing was pushed\n")


def main() -> None:
    """Make the release named on the command line."""
    try:
        release(sys.argv[1] if len(sys.argv) == 2 else "")
    except RefusedError as refused:
        sys.exit(f"release: {refused}")
    except subprocess.CalledProcessError as failed:
        sys.exit(f"release: {' '.join(failed.cmd)} failed; undo with git reset --hard\n{failed.stderr or ''}".rstrip())


if __name__ == "__main__":
    main()
