"""The Debian package contains meshray, its dependencies, the unit, the man pages and the completions, and removes them.

`debootstrap` makes the Debian for the installation; without it that test is skipped with a message.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from meshray import __version__
from meshray.home import Home
from meshray.render import systemd_unit
from tests.lab.host import REPOSITORY
from tests.printed import printed

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
WHEELS = "usr/share/meshray/wheels"
STATE = Path("/var/lib/meshray")
#: What the installed system contains beside Debian's base: what the package needs or recommends, and sudo.
PACKAGES = "python3,python3-venv,iproute2,nftables,iputils-ping,sudo"
#: Runs a piece of shell in a root folder, as on a machine with one network; all processes end with it.
MACHINE = """
set -e
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
mount -t sysfs sysfs "$1/sys"
mount -t tmpfs tmpfs "$1/run"
ip link set lo up
ip link add eth0 type veth peer name eth1
ip address add 192.0.2.1/24 dev eth0
ip link set eth0 up
ip link set eth1 up
exec chroot "$1" sh -ec "$2"
"""
CLEAN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
#: Downloads for five versions of Python.
BUILD_S = 1500


def run(
    argv: Sequence[str | Path], *, cwd: Path | None = None, env: dict[str, str] | None = None, stdin: str = ""
) -> str:
    done = subprocess.run(
        argv, cwd=cwd, input=stdin, capture_output=True, text=True, check=False, timeout=BUILD_S, env=env
    )
    assert done.returncode == 0, f"{argv}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("missing: dpkg-deb")
    folder = tmp_path_factory.mktemp("package")
    run([sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder], cwd=REPOSITORY)
    (built,) = folder.glob("*.whl")
    run([REPOSITORY / "scripts/deb.sh", built, folder])
    (found,) = folder.glob("*.deb")
    return found


@pytest.fixture(scope="module")
def tree(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files of the package."""
    folder = tmp_path_factory.mktemp("tree")
    run(["dpkg-deb", "--extract", package, folder])
    return folder


pytestmark = pytest.mark.timeout(2 * BUILD_S)


def test_the_package_names_its_version_and_what_it_needs(package: Path) -> None:
    fields = run(["dpkg-deb", "--field", package])
    assert f"Version: {__version__}\n" in fields
    assert f"Architecture: {run(['dpkg', '--print-architecture'])}" in fields
    needs = re.search(r"^Depends: (.*)$", fields, re.MULTILINE)
    assert needs and {"python3 (>= 3.10)", "python3-venv"} <= set(needs[1].split(", "))
    assert package.name == f"meshray_{__version__}_{run(['dpkg', '--print-architecture']).strip()}.deb"


def test_every_file_belongs_to_root_and_only_root_can_change_it(package: Path) -> None:
    lines = run(["dpkg-deb", "--contents", package]).splitlines()
    assert len(lines) > 50
    for line in lines:
        mode, owner = line.split()[:2]
        assert owner == "root/root", line
        assert mode.startswith("l") or (mode[5] == mode[8] == "-" and "s" not in mode), line


def test_the_unit_is_the_one_that_meshray_writes(tree: Path) -> None:
    python = Path("/usr/lib/meshray") / __version__ / "bin/python"
    expected = systemd_unit(Home(STATE, Path("/run/meshray")), python)
    assert (tree / "usr/lib/systemd/system/meshray.service").read_text() == expected
    assert (tree / "usr/bin/meshray").readlink() == Path("../lib/meshray", __version__, "bin/meshray")


def test_every_man_page_is_included(tree: Path) -> None:
    expected = {page.name: page.read_bytes() for page in (REPOSITORY / "man").glob("*.1")}
    folder = tree / "usr/share/man/man1"
    assert {page.stem: gzip.decompress(page.read_bytes()) for page in folder.iterdir()} == expected


@pytest.mark.parametrize(
    "shell, path",
    [
        ("bash", "usr/share/bash-completion/completions/meshray"),
        ("zsh", "usr/share/zsh/vendor-completions/_meshray"),
        ("fish", "usr/share/fish/vendor_completions.d/meshray.fish"),
    ],
)
def test_the_shells_find_their_completions(tree: Path, shell: str, path: str) -> None:
    expected = run([sys.executable, "-m", "meshray.cli", "completion", shell])
    assert (tree / path).read_text() == expected


@pytest.mark.parametrize("version", PYTHONS)
def test_the_wheels_are_all_that_a_python_needs(tree: Path, tmp_path: Path, version: str) -> None:
    wanted = tmp_path / "wanted.in"
    wanted.write_text(f"meshray=={__version__}\n")
    run(
        [
            *(REPOSITORY / ".venv/bin/uv", "pip", "compile", "--quiet", "--no-index", "--find-links", tree / WHEELS),
            *("--only-binary", ":all:", "--python-version", version),
            *("--python-platform", f"{os.uname().machine}-manylinux_2_28", "--output-file", tmp_path / "out", wanted),
        ]
    )
    assert f"meshray=={__version__}" in (tmp_path / "out").read_text()


def test_the_engine_is_included_and_meshray_starts(tree: Path, tmp_path: Path) -> None:
    run([sys.executable, "-m", "venv", tmp_path / "venv"])
    python = tmp_path / "venv/bin/python"
    run([python, "-m", "pip", "install", "--quiet", "--no-index", "--find-links", tree / WHEELS, "meshray"])
    assert __version__ in run([tmp_path / "venv/bin/meshray", "--version"])
    (engine,) = (tmp_path / "venv").rglob("meshray-engine")
    assert run([engine, "-version"]).strip() == __version__


def test_the_maintainer_scripts_are_sound(package: Path, tmp_path: Path) -> None:
    run(["dpkg-deb", "--control", package, tmp_path])
    for name in ("postinst", "prerm", "postrm"):
        text = (tmp_path / name).read_text()
        assert os.access(tmp_path / name, os.X_OK)
        assert "@" not in text.replace('"$@"', ""), "a word that scripts/deb.sh has to replace"
        run(["sh", "-n", tmp_path / name])
        if shutil.which("shellcheck"):
            run(["shellcheck", tmp_path / name])


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the root folder of a small Debian, of the same release and from the same mirror as this machine."""
    if os.geteuid() != 0:
        pytest.skip("missing: root")
    if shutil.which("debootstrap") is None:
        pytest.skip("missing: debootstrap")
    release = re.search(r"^VERSION_CODENAME=(\w+)$", Path("/etc/os-release").read_text(), re.MULTILINE)
    policy = run(["apt-cache", "policy"])
    mirrors = re.findall(r"(https?://\S+) \w+/main", policy)
    if release is None or not mirrors:
        pytest.skip("missing: a mirror of Debian or Ubuntu")
    folder = tmp_path_factory.mktemp("debian")
    try:
        run(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", release[1], folder, mirrors[0]])
        yield folder
    finally:
        shutil.rmtree(folder)


def test_it_is_installed_removed_and_purged(debian: Path, package: Path) -> None:
    def inside(*words: str) -> str:
        # Without a network: all that the installation needs is in the package.
        return run(["unshare", "--net", "chroot", str(debian), *words], env=CLEAN)

    shutil.copy(package, debian / "tmp/meshray.deb")
    before = set(inside("find", "/usr", "/etc", "-newer", "/tmp/meshray.deb").split())
    inside("dpkg", "--install", "/tmp/meshray.deb")
    assert __version__ in inside("/usr/bin/meshray", "--version")
    assert inside("dpkg", "--verify", "meshray") == "", "the installation changed files of the package"
    # A node's state outlasts the removal, so that the machine can be its node again.
    state = debian / "var/lib/meshray"
    state.mkdir(mode=0o700)
    (state / "private.key").write_text("secret\n")
    inside("dpkg", "--remove", "meshray")
    assert not (debian / "usr/lib/meshray").exists()
    assert not (debian / "usr/bin/meshray").is_symlink()
    assert not (debian / "usr/lib/systemd/system/meshray.service").exists()
    assert (state / "private.key").exists()
    inside("dpkg", "--install", "/tmp/meshray.deb")
    assert __version__ in inside("/usr/bin/meshray", "--version")
    inside("dpkg", "--purge", "meshray")
    assert not state.exists()
    after = set(inside("find", "/usr", "/etc", "-newer", "/tmp/meshray.deb").split())
    assert [path for path in after - before if "meshray" in path] == []


def test_a_node_of_the_package_as_printed(debian: Path, package: Path) -> None:
    """No systemd runs there, so the agent is a background process."""
    (debian / "root/dist").mkdir()
    shutil.copy(package, debian / "root/dist")
    install = printed("debian.md", "sudo apt-get install", ("meshray_0.1.0_amd64.deb", package.name))
    restart = printed("debian.md", "sudo meshray down")
    remove = printed("debian.md", "sudo meshray leave", ("leave", "leave --yes"))
    seen = "meshray status --json >> /root/status"
    words = f"""
cd /root
{install}
meshray init --no-ray --name box
{seen}
{restart}
{seen}
{remove}
"""
    isolated = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
    run([*isolated, "sh", "-c", MACHINE, "sh", debian, words], env=CLEAN, stdin="y\n")
    answers = [json.loads(line) for line in (debian / "root/status").read_text().splitlines()]
    assert [(answer["self"], answer["coordinator"]["reachable"]) for answer in answers] == [("box", True)] * 2
    folders = ("usr/bin", "usr/lib", "usr/share", "var/lib", "etc/systemd/system", "usr/share/man/man1")
    assert [path for folder in folders for path in (debian / folder).glob("*meshray*")] == []
