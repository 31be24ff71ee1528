"""Files that a user names on a command line of root."""

import os
from pathlib import Path

import pytest

from meshray.cli.user_file import read_as_user
from meshray.linux.user import User


def test_the_home_folder_is_that_of_the_user_behind_sudo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("meshray1_x")
    ada = User("ada", os.geteuid() + 1, os.getegid(), (os.getegid(),), tmp_path)
    monkeypatch.setattr(User, "invoking", lambda environ: ada)
    monkeypatch.setattr("meshray.linux.trusted_files.first_untrusted", lambda path: None)
    monkeypatch.setenv("HOME", "/nonexistent")
    assert read_as_user("~/token", {}, 100) == "meshray1_x"
    with pytest.raises(FileNotFoundError):
        read_as_user("token", {}, 100)
