"""The builder with a uv that is a script."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from meshray.environment import builder
from meshray.environment.builder import Order, build, is_complete
from meshray.environment.matched import Build, find_uv
from meshray.errors import MeshrayError
from meshray.linux.user import User
from meshray.model.environment import Environment

WANTED = Environment("2.60.0", "3.11.7", "numpy==2.1.0\n")
#: An interpreter that answers the probe of its versions.
PYTHON = '#!/bin/sh\necho \'["%s", "%s", [], []]\'\n'
UV = """#!/bin/sh
echo "$@" >> {log}
case "$*" in
  venv*--python\\ {missing}\\ *) echo "error: No interpreter found for Python {missing}" >&2; exit 2;;
  venv*) for last; do :; done; mkdir -p $last/bin; cp {python} $last/bin/python; cp {python} $last/bin/ray;;
  pip*) {install};;
esac
"""


class FakeUv:
    """A uv that copies a given interpreter into place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.program = folder / "uv"
        self.write()

    def write(self, *, ray: str = "2.60.0", python: str = "3.11.7", missing: str = "none", install: str = ":") -> None:
        (self.folder / "python").write_text(PYTHON % (ray, python))
        (self.folder / "python").chmod(0o755)
        self.program.write_text(
            UV.format(log=self.log, python=self.folder / "python", missing=missing, install=install)
        )
        self.program.chmod(0o755)

    def order(self, environment: Environment = WANTED) -> Order:
        folder = self.folder / "envs" / "key"
        return Order(environment, str(self.program), folder, os.geteuid(), {"PATH": os.environ["PATH"]})

    @property
    def left(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "envs").iterdir())


@pytest.fixture
def uv(tmp_path: Path) -> FakeUv:
    return FakeUv(tmp_path)


def quiet(words: str) -> None:
    """Ignore all progress."""


def test_it_is_built_once(uv: FakeUv) -> None:
    order = uv.order()
    assert build(order, quiet)
    assert not build(order, quiet)
    assert len(uv.log.read_text().splitlines()) == 2
    assert (order.folder / "requirements.txt").read_text() == "numpy==2.1.0\n"
    assert is_complete(order.folder, WANTED)
    assert uv.left == ["key"]


def test_an_incomplete_environment_is_built_again(uv: FakeUv) -> None:
    order = uv.order()
    build(order, quiet)
    (order.folder / "bin/python").unlink()
    assert build(order, quiet)
    assert is_complete(order.folder, WANTED)


def test_leftovers_of_a_killed_build_are_removed(uv: FakeUv) -> None:
    order = uv.order()
    (order.folder.parent / "other.new-17" / "bin").mkdir(parents=True)
    order.folder.mkdir()
    assert not is_complete(order.folder, WANTED)
    assert build(order, quiet)
    assert uv.left == ["key"]


def test_another_patch_level_is_taken_where_the_very_one_is_missing(uv: FakeUv) -> None:
    uv.write(python="3.11.9", missing="3.11.7")
    output: list[str] = []
    assert build(uv.order(), output.append)
    assert output == ["looking for Python 3.11.7", "looking for Python 3.11", "Ray 2.60.0 for Python 3.11"]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"install": "echo 'error: no such package' >&2; exit 1"}, "environment_failed"),
        ({"install": "echo 'No space left on device (os error 28)' >&2; exit 1"}, "environment_no_room"),
        ({"ray": "2.59.0"}, "environment_differs"),
    ],
)
def test_a_failure_leaves_nothing(uv: FakeUv, options: dict[str, str], code: str) -> None:
    uv.write(**options)
    with pytest.raises(MeshrayError) as caught:
        build(uv.order(), quiet)
    assert caught.value.code == code
    assert uv.left == []


def test_no_python_at_all(uv: FakeUv) -> None:
    uv.write(missing="3.11.7")
    with pytest.raises(MeshrayError) as caught:
        build(uv.order(Environment("2.51.0", "3.11.7")), quiet)
    assert (caught.value.code, uv.left) == ("python_not_found", [])


def test_an_order_survives_encoding(uv: FakeUv) -> None:
    order = uv.order()
    assert Order.from_json(json.loads(json.dumps(order.to_json()))) == order


def test_a_head_without_ray_cannot_be_matched() -> None:
    with pytest.raises(MeshrayError) as caught:
        Build(Environment(), User.invoking(), {})
    assert caught.value.code == "head_without_ray"


def test_uv_is_found_on_path_or_missed_by_name(uv: FakeUv, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nobody = User("ada", 61234, 61234, (61234,), tmp_path / "nobody")
    assert find_uv({"PATH": str(uv.folder)}, nobody) == str(uv.program)
    monkeypatch.setattr(sys, "executable", "/nonexistent/bin/python")
    with pytest.raises(MeshrayError) as caught:
        find_uv({"PATH": "/nonexistent"}, nobody)
    assert caught.value.code == "uv_missing"
    assert "-m pip install uv" in caught.value.hint


def test_the_complete_build_runs_through_the_builders_process(uv: FakeUv) -> None:
    environ = {"PATH": f"{uv.folder}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(uv.folder / "cache")}
    first = Build(WANTED, User.invoking(), environ).run(quiet)
    again = Build(WANTED, User.invoking(), environ).run(quiet)
    assert (first.built, again.built, first.folder) == (True, False, again.folder)
    assert is_complete(first.folder, WANTED)


def test_a_cancelled_build_does_not_begin(uv: FakeUv) -> None:
    begun = Build(WANTED, User.invoking(), {"PATH": str(uv.folder)})
    begun.cancel()
    with pytest.raises(MeshrayError) as caught:
        begun.run(quiet)
    assert caught.value.exit_code == 130


def test_a_full_disk_below_python_itself(uv: FakeUv) -> None:
    error = builder._os_error(OSError(28, "No space left on device", "/c"), Path("/c"))
    assert error.code == "environment_no_room"
