"""The committed reference is what the commands say today."""

from pathlib import Path

from meshray.cli.reference import reference

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference.md"


def test_the_reference_is_current() -> None:
    assert PAGE.read_text() == reference(), "run: python -m meshray.cli.reference > docs/reference.md"
