"""The token where Ray itself looks for it: written for the user, replaced and removed only if meshray wrote it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from meshray.linux.user import User
from meshray.raynode import user_token


@pytest.fixture
def user(tmp_path: Path) -> User:
    home = tmp_path / "ada"
    home.mkdir()
    return User("ada", os.geteuid(), os.getegid(), (os.getegid(),), home)


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "offered_token"


def there(user: User) -> str:
    path = user.home / ".ray/auth_token"
    return path.read_text() if path.exists() else ""


def test_the_token_is_private_to_the_user_replaced_and_removed(user: User, record: Path) -> None:
    assert user_token.offer("first", user, record) == ""
    assert there(user) == "first"
    assert (user.home / ".ray/auth_token").stat().st_mode & 0o777 == 0o600
    assert "first" not in record.read_text()
    assert user_token.offer("second", user, record) == ""
    assert there(user) == "second"
    user_token.take_back(user, record)
    assert (there(user), record.exists(), (user.home / ".ray").exists()) == ("", False, False)


def test_the_record_may_be_the_first_file_of_its_folder(user: User, tmp_path: Path) -> None:
    record = tmp_path / "state/meshray/offered_token"
    assert user_token.offer("first", user, record) == ""
    user_token.take_back(user, record)
    assert there(user) == ""


def test_another_clusters_token_is_never_replaced_or_removed(user: User, record: Path) -> None:
    (user.home / ".ray").mkdir()
    (user.home / ".ray/auth_token").write_text("of another cluster\n")
    assert "another cluster" in user_token.offer("mine", user, record)
    user_token.take_back(user, record)
    assert there(user) == "of another cluster\n"
    # Also if it replaced the one that was written there.
    (user.home / ".ray/auth_token").unlink()
    assert user_token.offer("mine", user, record) == ""
    (user.home / ".ray/auth_token").write_text("of another cluster")
    assert "another cluster" in user_token.offer("newer", user, record)
    user_token.take_back(user, record)
    assert there(user) == "of another cluster"


def test_a_user_without_a_home_folder_gets_none(user: User, record: Path, tmp_path: Path) -> None:
    nobody = User("nobody", user.uid, user.gid, user.groups, tmp_path / "nonexistent")
    assert "no home folder" in user_token.offer("mine", nobody, record)
    user_token.take_back(nobody, record)
    assert not record.exists()


def test_a_link_of_the_users_is_not_written_through(user: User, record: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    (user.home / ".ray").mkdir()
    (user.home / ".ray/auth_token").symlink_to(target)
    assert user_token.offer("mine", user, record) != ""
    assert target.read_text() == "precious"
