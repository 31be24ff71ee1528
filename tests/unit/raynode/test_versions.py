from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from meshray.errors import MeshrayError, UsageError
from meshray.linux.user import User
from meshray.model.node import Versions
from meshray.model.release import release
from meshray.raynode.versions import check_options, compare, find_ray

ME = User("me", os.geteuid(), os.getegid(), (os.getegid(),), Path("/nonexistent"))


def versions(ray: str, python: str) -> Versions:
    return Versions("0.1.0", ray, python)


@pytest.mark.parametrize(
    ("mine", "head"),
    [
        (versions("2.60.0", "3.11.7"), versions("2.60.0", "3.11.7")),
        (versions("2.60.0", "3.11.2"), versions("2.60.0", "3.11.7")),
        (versions("2.44.0", "3.11.7"), versions("2.44.0", "3.11.7")),
        (versions("2.60.0", "3.11.7"), versions("", "")),
    ],
)
def test_nodes_that_ray_accepts_are_accepted(mine: Versions, head: Versions) -> None:
    compare(mine, head)


@pytest.mark.parametrize(
    ("mine", "head", "told"),
    [
        (versions("2.59.1", "3.11.7"), versions("2.60.0", "3.11.7"), ("2.59.1", "2.60.0", "join --env match")),
        (versions("", "3.11.7"), versions("2.60.0", "3.11.7"), ("no Ray", "2.60.0", "join --env match")),
        (versions("2.60.0", "3.12.1"), versions("2.60.0", "3.11.7"), ("3.12.1", "3.11 on every", "join --env match")),
        (versions("2.51.0", "3.11.2"), versions("2.51.0", "3.11.7"), ("3.11.2", "3.11.7 on every", "join --env match")),
    ],
)
def test_a_mismatch_names_both_versions_and_the_fix(mine: Versions, head: Versions, told: tuple[str, ...]) -> None:
    with pytest.raises(MeshrayError) as caught:
        compare(mine, head)
    assert caught.value.code == "version_mismatch"
    assert all(part in f"{caught.value.message} {caught.value.hint}" for part in told)


@pytest.mark.parametrize(
    ("text", "numbers"), [("2.60.0", (2, 60, 0)), ("3.0.0.dev0", (3, 0, 0)), ("2.60.0rc1", (2, 60, 0)), ("", ())]
)
def test_releases_are_compared_by_their_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert release(text) == numbers


def fake_ray(folder: Path, shebang: str, name: str = "ray") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    program.write_text(f"{shebang}\nimport ray\n")
    program.chmod(0o755)
    return program


def fake_python(path: Path, answer: str, status: int = 0) -> Path:
    """Return an interpreter that gives the probe the test's answer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{answer}'\necho 'library not readable' >&2\nexit {status}\n")
    path.chmod(0o755)
    return path


def test_the_named_ray_wins_and_a_folder_will_do(tmp_path: Path) -> None:
    python = fake_python(tmp_path / "bin/python3", '["2.52.1", "3.10.4", [], []]')
    program = fake_ray(tmp_path / "bin", f"#!{python}")
    for named in (program, tmp_path):
        found = find_ray(str(named), {}, ME)
        assert (found.ray, found.python) == (program, python)
        assert (found.versions.ray, found.versions.python) == ("2.52.1", "3.10.4")
    assert find_ray(None, {"MESHRAY_RAY": str(program)}, ME).ray == program


@pytest.mark.parametrize(
    ("text", "is_entry_point"),
    [
        ("#!{python}\nimport sys\nfrom ray.scripts.scripts import main\n", True),
        ("#!/bin/sh\n'''exec' {python} \"$0\" \"$@\"\n' '''\nfrom ray.scripts.scripts import main\n", True),
        ("#!{python} -I\nfrom ray.scripts.scripts import main\n", False),
        ("#!{python}\nimport os\nos.execvp('srun', ['srun', 'ray'])\n", False),
        ("#!/usr/bin/env python3\nfrom ray.scripts.scripts import main\n", False),
        ('#!/bin/sh\nexec srun ray "$@"\n', False),
    ],
)
def test_only_an_installers_program_may_be_replaced_by_its_entry_point(
    tmp_path: Path, text: str, *, is_entry_point: bool
) -> None:
    python = fake_python(tmp_path / "bin/python3", '["2.60.0", "3.11.7", [], []]')
    program = tmp_path / "bin/ray"
    program.write_text(text.format(python=python))
    assert find_ray(str(program), {}, ME).is_entry_point is is_entry_point


@pytest.mark.parametrize(
    "shebang", ["#!/usr/bin/env python3", "#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''", "#!/bin/bash"]
)
def test_the_interpreter_is_found_whatever_the_first_line(tmp_path: Path, shebang: str) -> None:
    python = fake_python(tmp_path / "a folder/bin/python3", '["2.60.0", "3.11.7", ["aiohttp_cors"], []]')
    program = fake_ray(tmp_path / "a folder/bin", shebang.format(python=python))
    found = find_ray(str(program), {}, ME)
    assert found.python == python
    assert found.missing == ("aiohttp_cors",)


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        ('["", "3.11.7", [], []]', 0, "ray_missing"),
        ('["2.9.3", "3.11.7", [], []]', 0, "ray_too_old"),
        ("hello", 0, "ray_unusable"),
        ("", 1, "ray_not_executable"),
    ],
)
def test_an_unusable_ray_is_reported_with_the_reason(tmp_path: Path, answer: str, status: int, code: str) -> None:
    python = fake_python(tmp_path / "python3", answer, status)
    with pytest.raises(MeshrayError) as caught:
        find_ray(str(fake_ray(tmp_path, f"#!{python}")), {}, ME)
    assert caught.value.code == code
    assert str(tmp_path) in caught.value.message


def test_a_missing_explicit_ray_is_not_replaced_by_another(tmp_path: Path) -> None:
    with pytest.raises(MeshrayError) as caught:
        find_ray(str(tmp_path / "ray"), {"PATH": os.defpath}, ME)
    assert caught.value.code == "ray_missing"


def test_a_missing_ray_is_reported_with_the_searched_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin/python"))
    with pytest.raises(MeshrayError, match=r"neither beside meshray .* nor on PATH") as caught:
        find_ray(None, {"PATH": str(tmp_path)}, ME)
    assert "--no-ray" in caught.value.hint


def test_the_users_own_folder_of_programs_is_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "pipx/bin/python"))
    python = fake_python(tmp_path / ".local/bin/python3", '["2.60.0", "3.11.7", [], []]')
    program = fake_ray(tmp_path / ".local/bin", f"#!{python}")
    user = User("ada", os.geteuid(), os.getegid(), (), tmp_path)
    assert find_ray(None, {"PATH": str(tmp_path / "empty")}, user).ray == program


def test_a_mistyped_option_of_ray_start_gets_the_intended_one_suggested() -> None:
    found = find_ray(str(Path(sys.executable).with_name("ray")), {}, ME)
    assert {"--num-cpus", "--temp-dir", "--object-store-memory"} <= set(found.options)
    with pytest.raises(UsageError) as caught:
        check_options(found, ["--num-gpus=1", "--num-cpu=2"])
    assert (caught.value.code, caught.value.hint) == ("unknown_ray_option", "it has --num-cpus")
    # Not given by its source, and as Ray reads it, and if the source could not be read.
    check_options(found, ["--log-color=false", "--num_cpus=2", '--resources={"--num-cpu": 1}', "-v"])
    check_options(replace(found, options=()), ["--num-cpu=2"])
