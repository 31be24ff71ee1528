"""Printed commands work when they are pasted."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshray.cli.program_name import on_other_machine, pasteable

HOME = Path("/home/ada")


@pytest.fixture
def typed(tmp_path: Path) -> Path:
    """Return a program in a virtual environment that is not on PATH."""
    path = tmp_path / "ray/bin/meshray"
    path.parent.mkdir(parents=True)
    path.touch(mode=0o755)
    return path


def test_a_hint_names_the_program_by_its_path_where_its_name_would_not_be_found(typed: Path) -> None:
    def said(text: str, path: str = "/nonexistent") -> str:
        return pasteable(text, {"PATH": path}, [str(typed)])

    assert said("meshray up") == f"{typed} up"
    assert said("meshray down, then meshray up") == f"{typed} down, then {typed} up"
    assert said("make room there, or meshray leave") == f"make room there, or {typed} leave"
    assert said("meshray init, or meshray join TOKEN") == f"{typed} init, or {typed} join TOKEN"
    assert said("sudo meshray token create --line") == f"sudo {typed} token create --line"
    assert said("meshray up", str(typed.parent)) == "meshray up"
    # Commands for another machine, and other words, do not change.
    assert said("on gpu-1: meshray up") == "on gpu-1: meshray up"
    assert said("give meshray room") == "give meshray room"
    assert said("install meshray there") == "install meshray there"


@pytest.mark.parametrize(
    ("origin", "argv", "said"),
    [
        ("/home/ada/ray/bin", "/usr/local/bin/meshray", "~/ray/bin/meshray"),
        ("/home/ada/my env/bin", "/usr/local/bin/meshray", "~/'my env/bin/meshray'"),
        ("/opt/ray/bin", "/usr/local/bin/meshray", "/opt/ray/bin/meshray"),
        (None, "/usr/bin/meshray", "meshray"),
        (None, "/opt/ray/bin/meshray", "/opt/ray/bin/meshray"),
        (None, "/x/meshray/__main__.py", "meshray"),
    ],
)
def test_on_another_machine_the_path_is_the_same(origin: str | None, argv: str, said: str) -> None:
    assert on_other_machine(Path(origin) if origin else None, HOME, [argv]) == said
