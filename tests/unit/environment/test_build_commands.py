from __future__ import annotations

from pathlib import Path

import pytest

from meshray.environment import build_commands
from meshray.errors import MeshrayError
from meshray.model.environment import Environment
from meshray.model.node import Versions

WANTED = Environment("2.60.0", "3.11.7", "numpy==2.1.0\n")


def test_different_environments_have_different_folders() -> None:
    others = [
        build_commands.key(Environment("2.60.1", "3.11.7", "numpy==2.1.0\n"), "linux"),
        build_commands.key(Environment("2.60.0", "3.11.8", "numpy==2.1.0\n"), "linux"),
        build_commands.key(Environment("2.60.0", "3.11.7", "numpy==2.1.1\n"), "linux"),
        build_commands.key(WANTED, "linux-aarch64"),
        build_commands.key(WANTED, "linux"),
    ]
    assert len(set(others)) == len(others)
    assert build_commands.key(WANTED, "linux") == build_commands.key(Environment.from_json(WANTED.to_json()), "linux")


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({}, "/home/ada/.cache/meshray/envs"),
        ({"XDG_CACHE_HOME": "/var/cache/ada"}, "/var/cache/ada/meshray/envs"),
        ({"XDG_CACHE_HOME": "cache"}, "/home/ada/.cache/meshray/envs"),
    ],
)
def test_locations_of_environments(environ: dict[str, str], folder: str) -> None:
    assert str(build_commands.cache_folder(environ, Path("/home/ada"))) == folder


def test_another_patch_level_is_requested_only_if_ray_accepts_it() -> None:
    assert build_commands.pythons(WANTED) == ("3.11.7", "3.11")
    assert build_commands.pythons(Environment("2.51.0", "3.11.7")) == ("3.11.7",)


def test_the_commands_of_uv() -> None:
    folder = Path("/c/key.new-1")
    assert build_commands.create_command("uv", folder, "3.11.7")[-3:] == ["--python", "3.11.7", "/c/key.new-1"]
    fill = build_commands.fill_command("uv", folder, WANTED, folder / "requirements.txt")
    assert fill[3:] == [
        *("--python", "/c/key.new-1/bin/python", "ray[default,serve]==2.60.0"),
        *("--requirements", "/c/key.new-1/requirements.txt"),
    ]
    assert "--requirements" not in build_commands.fill_command("uv", folder, Environment("2.60.0", "3.11.7"), folder)


def test_the_users_settings_of_uv_count_and_nothing_diverts_it() -> None:
    environ = {
        "UV_DEFAULT_INDEX": "https://index",
        "UV_SYSTEM_PYTHON": "1",
        "VIRTUAL_ENV": "/venv",
        "PYTHONPATH": "/lib",
        "MESHRAY_TOKEN": "secret",
        "EDITOR": "ed",
        "https_proxy": "http://proxy",
        "HOME": "/root",
    }
    own = {"HOME": "/home/ada"}
    through_sudo = build_commands.uv_environment(environ, own, is_other=True)
    assert {name for name in through_sudo if not name.startswith(("UV_NO", "NO_"))} == {
        *("UV_DEFAULT_INDEX", "https_proxy", "HOME")
    }
    assert through_sudo["HOME"] == "/home/ada"
    alone = build_commands.uv_environment(environ, own, is_other=False)
    assert "EDITOR" in alone
    assert not {"MESHRAY_TOKEN", "UV_SYSTEM_PYTHON", "VIRTUAL_ENV", "PYTHONPATH"} & set(alone)


def test_an_environment_that_is_not_what_was_wanted_is_refused() -> None:
    build_commands.require_match(Versions(ray="2.60.0", python="3.11.9"), WANTED)
    for other in (Versions(ray="2.59.0", python="3.11.7"), Versions(ray="2.60.0", python="3.12.7")):
        with pytest.raises(MeshrayError, match="instead of"):
            build_commands.require_match(other, WANTED)


def test_uvs_output_is_shown_without_passwords() -> None:
    words = "Using CPython\nerror: Failed to fetch\n  cause: https://ada:hunter2@index.example/simple/ray/: 401.\n"
    assert build_commands.main_lines(words) == "error: Failed to fetch; cause: https://index.example/simple/ray/: 401"
    assert build_commands.main_lines("odd\nwords") == "odd; words"
    assert build_commands.is_disk_full("error: failed to write: No space left on device (os error 28)")


def test_a_missing_python_names_it_and_the_command() -> None:
    error = build_commands.python_not_found(WANTED, "error: No interpreter found for Python 3.11.7")
    assert "3.11.7" in error.message
    assert error.hint.startswith("uv python install 3.11.7")
