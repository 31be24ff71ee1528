from __future__ import annotations

import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from meshray import __version__
from meshray.installation.wheels import collect


def test_this_installation_can_be_installed_elsewhere_without_a_network(tmp_path: Path) -> None:
    wheels = {wheel.name: wheel.content for wheel in collect()}
    own = f"meshray-{__version__}-py3-none-any.whl"
    assert {"click", "pyroute2", "wgconfig", "cryptography"} <= {name.partition("-")[0] for name in wheels}
    names = zipfile.ZipFile(io.BytesIO(wheels[own])).namelist()
    assert "meshray/cli/entry.py" in names
    assert "meshray/templates/meshray.service.j2" in names
    (tmp_path / own).write_bytes(wheels[own])
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*pip, f"--target={tmp_path}/site", str(tmp_path / own)], check=True, timeout=60)
    code = "import meshray, meshray.render.templates as t; print(meshray.__file__, t.folder())"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{tmp_path}/site"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.split() == [f"{tmp_path}/site/meshray/__init__.py", f"{tmp_path}/site/meshray/templates"]


def test_one_package_is_one_wheel_whose_name_pip_can_read() -> None:
    names = [wheel.name for wheel in collect()]
    assert all(re.fullmatch(r"[a-z0-9_]+-[^-]+-[^-]+-[^-]+-[^-]+\.whl", name) for name in names), names
    packages = [name.partition("-")[0] for name in names]
    assert len(packages) == len(set(packages))
