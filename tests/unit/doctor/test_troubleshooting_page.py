"""Every check of the doctor has a row in docs/troubleshooting.md."""

from __future__ import annotations

import re
from pathlib import Path

from meshray.doctor.check_order import SPECS
from meshray.doctor.job import checks as deep

PAGE = Path(__file__).resolve().parents[3] / "docs" / "troubleshooting.md"


def rows() -> set[str]:
    """Return the texts in backticks in the first cells of the page's tables."""
    cells = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("|")]
    return {word for cell in cells for word in re.findall(r"`([a-z0-9_]+)`", cell)}


def checks() -> set[str]:
    """Return the codes of what a table calls a check."""
    tables = re.findall(r"^\| check \|.*\n\| ---.*\n((?:\|.*\n)+)", PAGE.read_text(), re.MULTILINE)
    cells = [line.split("|")[1] for table in tables for line in table.splitlines()]
    return {word for cell in cells for word in re.findall(r"`([a-z0-9_]+)`", cell)}


CODES = {spec.code for spec in (*SPECS, *deep.SPECS)}


def test_every_code_of_the_doctor_has_a_row() -> None:
    assert CODES - rows() == set()


def test_every_check_on_the_page_exists() -> None:
    assert checks() - CODES == set()
