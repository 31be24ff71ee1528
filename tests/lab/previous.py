"""An installation of an earlier meshray beside the one under test, for meshes of both versions.

old = install_previous(folder)          # folder/bin/meshray
use(host, old)
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Mapping
from importlib.metadata import distribution
from io import BytesIO
from pathlib import Path

from tests.lab.host import REPOSITORY, Host

#: The last commit before the Structs of `meshray.protocol` described messages and answers.
PREVIOUS = "6d220a4"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENGINE = "meshray/wireguard/engine/meshray-engine"


def install_previous(folder: Path, commit: str = PREVIOUS) -> Path:
    """Install an earlier commit of this repository into a virtual environment of its own.

    The environment has the packages of the one that runs the tests, and the WireGuard engine that was built for this
    machine: both versions drive the same one.

    Args:
        folder: a new folder below this repository, which every host of the lab sees.

    Returns:
        The folder of its programs, for PATH.

    Raises:
        CalledProcessError: the repository's history does not hold the commit.
    """
    archive = subprocess.run(["git", "archive", commit], cwd=REPOSITORY, check=True, capture_output=True, timeout=60)
    source, environment = folder / "source", folder / "environment"
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tree:
        tree.extractall(source, filter="data")
    (source / ENGINE).hardlink_to(REPOSITORY / ENGINE)
    return _make_environment(source, environment)


def install_changed(folder: Path, changes: Mapping[str, str]) -> Path:
    """Install this working tree with changes, as another version of meshray; return the folder of its programs.

    Args:
        folder: as for `install_previous`.
        changes: texts that are appended to files, by their names in the repository. New files are created.
    """
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "meshray-engine")
    for name in ("meshray", "templates"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignored)
    (source / ENGINE).hardlink_to(REPOSITORY / ENGINE)
    for name, text in changes.items():
        with (source / name).open("a") as file:
            file.write(text)
    return _make_environment(source, folder / "environment")


def _make_environment(source: Path, environment: Path) -> Path:
    """Create a virtual environment with the packages of this one and this source; return its folder of programs."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=60)
    names = {"base": str(environment), "platbase": str(environment)}
    packages = Path(sysconfig.get_path("purelib", "venv", names))
    # Plain folders in a .pth file are searched after this environment's own; the finder of an editable installation is
    # not.
    (packages / "previous.pth").write_text(f"{source}\n{sysconfig.get_path('purelib')}\n")
    metadata = packages / "meshray-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(distribution("meshray").read_text("METADATA") or "")
    program = environment / "bin/meshray"
    program.write_text(
        f"#!{environment}/bin/python\nimport sys\nfrom meshray.cli.entry import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    return program.parent


def use(host: Host, programs: Path) -> None:
    """Let every command in this host, from now on, find the programs of this folder first."""
    host.environment["PATH"] = f"{programs}:{Path(sys.prefix) / 'bin'}:{SYSTEM_PATH}"
