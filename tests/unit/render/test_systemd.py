"""The systemd unit: its required content, unusual paths, and systemd's own verification."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.render import systemd_unit
from meshray.render.systemd import quoted
from meshray.render.templates import folder

REPOSITORY = Path(__file__).resolve().parents[3]
HOME = Home(Path("/var/lib/meshray"), Path("/run/meshray"))
PYTHON = Path("/opt/meshray/.venv/bin/python")


def settings(text: str) -> dict[str, list[str]]:
    """Return name → values of a unit file, without comments."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "=" in line and not line.startswith("#"):
            name, value = line.split("=", 1)
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_runs_the_agent_of_this_environment() -> None:
    found = settings(systemd_unit(HOME, PYTHON))
    assert found["ExecStart"] == ['":/opt/meshray/.venv/bin/python" -I -m meshray.agent']
    assert found["Environment"] == ['"MESHRAY_HOME=/var/lib/meshray"', '"MESHRAY_RUN=/run/meshray"']


def test_leftovers_of_a_crashed_agent() -> None:
    found = settings(systemd_unit(HOME, PYTHON))
    assert found["KillMode"] == ["process"]
    assert found["OOMPolicy"] == ["continue"]
    assert found["RuntimeDirectory"] == ["meshray"]
    assert found["RuntimeDirectoryPreserve"] == ["yes"]


def test_a_clean_end_and_a_refusal_are_final_a_crash_is_not() -> None:
    found = settings(systemd_unit(HOME, PYTHON))
    assert found["Restart"] == ["on-failure"]
    assert found["RestartPreventExitStatus"] == ["2 4"]
    assert found["StartLimitIntervalSec"] == ["0"]


def test_more_settings_do_not_replace_the_homes() -> None:
    unit = systemd_unit(HOME, PYTHON, {"MESHRAY_HOME": "/elsewhere", "MESHRAY_WIREGUARD": "userspace"})
    assert set(settings(unit)["Environment"]) == {
        '"MESHRAY_HOME=/var/lib/meshray"',
        '"MESHRAY_RUN=/run/meshray"',
        '"MESHRAY_WIREGUARD=userspace"',
    }


def test_a_run_folder_elsewhere_is_left_to_the_agent() -> None:
    found = settings(systemd_unit(Home(Path("/srv/m"), Path("/srv/m/run")), PYTHON))
    assert "RuntimeDirectory" not in found


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("plain", '"plain"'),
        ("with space", '"with space"'),
        ("100%", '"100%%"'),
        ('a"b', r'"a\"b"'),
        (r"a\b", r'"a\\b"'),
        ("${HOME}", '"${HOME}"'),  # The ':' before the program disables expansion.
        ("Grüße", '"Grüße"'),
    ],
)
def test_quoting(text: str, word: str) -> None:
    assert quoted(text) == word


@pytest.mark.parametrize(
    "python", ["bin/python", "/opt/new\nline/python", '/opt/quo"te/python', "/opt/back\\slash/python"]
)
def test_a_path_that_a_unit_cannot_hold_is_named(python: str) -> None:
    with pytest.raises(MeshrayError) as caught:
        systemd_unit(HOME, Path(python))
    assert caught.value.code == "unit_value"


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="missing: systemd-analyze (apt-get install systemd)"
)
@pytest.mark.parametrize("name", ["plain", "with space", "100%n", "${HOME}", "Grüße"])
def test_systemd_accepts_it(tmp_path: Path, name: str) -> None:
    python = tmp_path / name / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    unit = tmp_path / "meshray.service"
    unit.write_text(systemd_unit(Home(tmp_path / f'{name} "home\\', Path("/run/meshray")), python))
    # Its requirements on the boot (network-online.target and so on) may be missing on a test machine.
    verify = ["systemd-analyze", "verify", "--recursive-errors=no", "--man=no", str(unit)]
    done = subprocess.run(verify, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_templates_of_a_checkout_and_of_an_installation(tmp_path: Path) -> None:
    assert folder() == REPOSITORY / "templates"
    installed = tmp_path / "meshray" / "templates"
    installed.mkdir(parents=True)
    (installed / "meshray.service.j2").touch()
    assert folder(tmp_path / "meshray") == installed


def test_missing_templates_are_a_broken_installation(tmp_path: Path) -> None:
    with pytest.raises(MeshrayError) as caught:
        folder(tmp_path / "meshray")
    assert caught.value.code == "templates_missing"


def test_an_unpacked_wheel_renders_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = pytest.importorskip("hatchling.builders.wheel", reason="missing: hatchling")
    monkeypatch.setenv("MESHRAY_BUILD_ENGINE", "0")
    wheel = next(builder.WheelBuilder(str(REPOSITORY)).build(directory=str(tmp_path / "dist"), versions=["standard"]))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    script = (
        f"import meshray; assert meshray.__file__.startswith({str(tmp_path)!r}); "
        "from pathlib import Path; from meshray.render import systemd_unit; from meshray.home import Home; "
        f"print(systemd_unit(Home(Path({str(HOME.state)!r}), Path({str(HOME.run)!r})), Path({str(PYTHON)!r})), end='')"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    argv = [sys.executable, "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60, cwd=tmp_path, env=environment)
    assert done.stdout == systemd_unit(HOME, PYTHON)
