"""The committed man pages match the commands, and formatters report no fault."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from meshray.cli.command_registry import SECTIONS
from meshray.cli.manual import main, pages, undated

FOLDER = Path(__file__).resolve().parents[3] / "man"
PAGES = sorted(FOLDER.glob("*.1"))


def test_the_pages_are_current() -> None:
    found = {page.name: undated(page.read_text()) for page in PAGES}
    assert found == pages(), "run: python -m meshray.cli.manual man"


def test_each_command_has_one_and_the_first_page_names_it() -> None:
    names = {name for section in SECTIONS.values() for name in section}
    assert {page.stem.removeprefix("meshray-") for page in PAGES} == {"meshray", *names}
    first = (FOLDER / "meshray.1").read_text()
    assert all(f"\\fBmeshray\\-{name}\\fR(1)" in first for name in names)
    assert "MESHRAY_LOG_FORMAT" in first
    assert "meshray token create" in (FOLDER / "meshray-token.1").read_text()


def test_a_page_keeps_its_date_until_its_text_changes(tmp_path: Path) -> None:
    main(str(tmp_path))
    file, old = tmp_path / "meshray-up.1", tmp_path / "meshray-gone.1"
    old.touch()
    file.write_text(re.sub(r'"\d{4}-\d\d-\d\d"', '"2020-02-02"', file.read_text()))
    main(str(tmp_path))
    assert '"2020-02-02"' in file.read_text()
    file.write_text(file.read_text() + "other\n")
    main(str(tmp_path))
    assert '"2020-02-02"' not in file.read_text()
    assert not old.exists()


@pytest.mark.parametrize(
    "command", [["groff", "-man", "-Tutf8", "-ww", "-z"], ["mandoc", "-Tlint", "-Wwarning"]], ids=lambda words: words[0]
)
def test_a_formatter_reports_nothing(command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([*command, *map(str, PAGES)], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
