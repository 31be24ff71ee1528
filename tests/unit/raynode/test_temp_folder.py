"""Ray works in its usual folder, or in one of its user if that belongs to another user."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from meshray.errors import MeshrayError
from meshray.linux.user import User
from meshray.raynode import temp_folder
from meshray.raynode.temp_folder import find_temp_folder, used_folder

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes files of other users (root)")
ADA, BOB = (User(name, uid, uid, (uid,), Path("/")) for name, uid in (("ada", 61234), ("bob", 61235)))


@pytest.fixture
def tmp(tmp_path: Path) -> Path:
    """Return a folder like /tmp."""
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o011)
    tmp_path.chmod(0o1777)
    return tmp_path


def made_by(user: User, folder: Path, mode: int = 0o755) -> Path:
    folder.mkdir()
    folder.chmod(mode)
    os.chown(folder, user.uid, user.gid)
    return folder


def environ(tmp: Path) -> Mapping[str, str]:
    return {"RAY_TMPDIR": str(tmp)}


@needs_root
def test_the_default_folder_is_used_if_it_is_free_owned_or_shared(tmp: Path) -> None:
    assert find_temp_folder(environ(tmp), ADA) is None
    folder = made_by(ADA, tmp / "ray")
    assert find_temp_folder(environ(tmp), ADA) is None
    folder.chmod(0o777)
    assert find_temp_folder(environ(tmp), BOB) is None
    assert [path.name for path in tmp.iterdir()] == ["ray"]


@needs_root
def test_another_users_folder_is_not_touched_and_an_own_one_is_created_once(tmp: Path) -> None:
    made_by(BOB, tmp / "ray")
    own = tmp / "ray-61234"
    assert find_temp_folder(environ(tmp), ADA) == own
    assert (own.stat().st_uid, own.stat().st_mode & 0o777) == (ADA.uid, 0o755)
    own.chmod(0o777)  # As Ray does.
    assert find_temp_folder(environ(tmp), ADA) == own


@needs_root
def test_another_users_cluster_in_an_open_folder_is_not_written_over(tmp: Path) -> None:
    folder = made_by(BOB, tmp / "ray", 0o777)
    (folder / "ray_current_cluster").write_text("10.0.0.1:6379")
    assert find_temp_folder(environ(tmp), ADA) == tmp / "ray-61234"


@needs_root
def test_a_folder_prepared_by_another_user_is_skipped(tmp: Path) -> None:
    made_by(BOB, tmp / "ray")
    made_by(BOB, tmp / "ray-61234", 0o777)
    (tmp / "ray-61234-2").symlink_to(tmp / "ray")
    assert find_temp_folder(environ(tmp), ADA) == tmp / "ray-61234-3"


@needs_root
def test_roots_ray_works_in_no_folder_of_anothers(tmp: Path) -> None:
    made_by(BOB, tmp / "ray", 0o777)
    root = User.by_uid(0)
    assert find_temp_folder(environ(tmp), root) == tmp / "ray-0"


@needs_root
def test_no_place_at_all_is_named(tmp: Path) -> None:
    made_by(BOB, tmp / "ray")
    tmp.chmod(0o755)
    with pytest.raises(MeshrayError, match="ada cannot create a folder") as raised:
        find_temp_folder(environ(tmp), ADA)
    assert raised.value.code == "temp_dir_taken"


@needs_root
def test_the_folder_of_the_last_session_is_found_again(tmp: Path) -> None:
    assert used_folder(environ(tmp), ADA) == tmp / "ray"
    usual, own = made_by(ADA, tmp / "ray"), made_by(ADA, tmp / "ray-61234")
    for number, folder in enumerate((own, usual)):
        (folder / "session_latest").symlink_to("session")
        os.utime(folder / "session_latest", (number, number), follow_symlinks=False)
    assert used_folder(environ(tmp), ADA) == usual
    os.utime(own / "session_latest", (9, 9), follow_symlinks=False)
    assert used_folder(environ(tmp), ADA) == own


def test_the_default_follows_rays_own_variables() -> None:
    assert temp_folder.default_folder({}) == Path("/tmp/ray")
    assert temp_folder.default_folder({"TMPDIR": "/scratch"}) == Path("/scratch/ray")
    assert temp_folder.default_folder({"TMPDIR": "/scratch", "RAY_TMPDIR": "/fast"}) == Path("/fast/ray")
