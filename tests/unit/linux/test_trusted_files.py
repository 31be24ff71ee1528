"""Nothing that root executes, imports or opens by path is writable by another user."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray.errors import MeshrayError
from meshray.linux import trusted_files
from meshray.linux.trusted_files import find_program, first_untrusted, require_trusted

ME = os.getuid()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a trusted folder, wherever the tests' own folder is: the folders above it do not count."""
    top = tmp_path / "top"
    top.mkdir(mode=0o755)
    above = frozenset(top.parents)
    looked_at = trusted_files._untrusted
    monkeypatch.setattr(
        trusted_files, "_untrusted", lambda path, owners: None if path in above else looked_at(path, owners)
    )
    return top


def program(path: Path, mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return path


def test_a_file_that_only_its_owner_can_change_is_trusted(folder: Path) -> None:
    assert first_untrusted(program(folder / "bin/tool"), ME) is None


@pytest.mark.parametrize("mode", [0o757, 0o666, 0o722])
def test_a_file_that_everybody_can_change(folder: Path, mode: int) -> None:
    tool = program(folder / "bin/tool", mode)
    assert first_untrusted(tool, ME) == tool


def test_a_world_writable_parent_folder_is_the_weak_link(folder: Path) -> None:
    tool = program(folder / "a/b/tool")
    (folder / "a").chmod(0o777)
    assert first_untrusted(tool, ME) == folder / "a"
    # With the sticky bit no user can remove another's files.
    (folder / "a").chmod(0o1777)
    assert first_untrusted(tool, ME) is None


def test_a_link_is_followed_through_every_folder(folder: Path) -> None:
    tool = program(folder / "open/tool")
    (folder / "open").chmod(0o777)
    link = folder / "link"
    link.symlink_to("open/tool")
    assert first_untrusted(link, ME) == folder / "open"
    absolute = folder / "absolute"
    absolute.symlink_to(tool)
    assert first_untrusted(absolute, ME) == folder / "open"
    up = folder / "up"
    (folder / "shut").mkdir()
    up.symlink_to("shut/../open/tool")
    assert first_untrusted(up, ME) == folder / "open"


def test_links_in_a_circle_end(folder: Path) -> None:
    (folder / "one").symlink_to("two")
    (folder / "two").symlink_to("one")
    assert first_untrusted(folder / "one", ME) is not None


def test_files_of_another_user(folder: Path) -> None:
    tool = program(folder / "bin/tool")
    if ME == 0:
        os.chown(tool, 4711, 4711)
        assert first_untrusted(tool) == tool
    else:
        assert first_untrusted(tool) is not None, "this user is another one than root"


def test_a_group_with_members_counts_and_one_without_does_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = program(folder / "bin/tool", 0o775)
    monkeypatch.setattr(trusted_files, "_members", lambda gid: frozenset({ME, 4711}))
    monkeypatch.setattr(trusted_files, "_ROOT", -1)
    assert first_untrusted(tool, ME) == tool
    monkeypatch.setattr(trusted_files, "_members", lambda gid: frozenset({ME}))
    assert first_untrusted(tool, ME) is None


modes = st.integers(0, 0o7777)


@given(modes, modes)
def test_every_mode_that_others_can_write_is_rejected(folder_mode: int, file_mode: int) -> None:
    """Against the rule as one would say it, for the file itself."""

    class About:
        def __init__(self, mode: int) -> None:
            self.st_mode, self.st_uid, self.st_gid = mode, 0, 4711

    class Known:
        def __init__(self, mode: int) -> None:
            self.mode = mode

        def lstat(self) -> About:
            return About(0o100000 | self.mode)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trusted_files, "_is_empty", lambda gid, path, owners: False)
        found = trusted_files._untrusted(Known(file_mode), frozenset({0}))  # type: ignore[arg-type]
    assert (found is not None) == bool(file_mode & 0o022)


def test_root_skips_programs_that_others_can_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = program(folder / "bad/nft"), program(folder / "good/nft")
    environ = {"PATH": f"{folder}/bad:relative:{folder}/good"}
    assert find_program("nft", environ, on_path_only=True) == bad
    monkeypatch.setattr(trusted_files, "is_root", lambda: True)
    monkeypatch.setattr(trusted_files, "first_untrusted", lambda path: None if path == good else path)
    assert find_program("nft", environ, on_path_only=True) == good
    with pytest.raises(MeshrayError, match="would run as root") as raised:
        require_trusted(bad, "the program")
    assert raised.value.code == "untrusted"
