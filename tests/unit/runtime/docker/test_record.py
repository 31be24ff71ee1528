from __future__ import annotations

from pathlib import Path

import pytest

from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.runtime.docker.record import Record, load, save


def test_remembered_entries_are_found_again(tmp_path: Path) -> None:
    home = Home(tmp_path, tmp_path / "run")
    assert load(home) is None
    record = Record("unix:///run/docker.sock", "5d41", "meshray-a", "meshray-a-state", "/usr/bin/python3", True)
    save(home, record)
    assert load(home) == record
    assert home.container.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"engine": 1}', '{"engine": "x", "container": null}', "\0"])
def test_a_damaged_record_is_reported_and_kept(tmp_path: Path, text: str) -> None:
    home = Home(tmp_path, tmp_path / "run")
    home.container.write_text(text)
    with pytest.raises(MeshrayError) as caught:
        load(home)
    assert caught.value.code == "state_damaged"
    assert home.container.read_text() == text
