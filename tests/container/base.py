"""An image for tests without a registry: this machine's own Python, Ray and a few programs, as a tar.

It contains the parts of rayproject/ray that concern a node: Python with pip, Ray, sh, nft; and none of meshray's other
dependencies. /wheelhouse contains the wheels for a build without a network.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from meshray.installation.wheels import collect
from tests.lab.host import REPOSITORY

#: Programs of the machine that are in every usual image.
PROGRAMS = (
    *("bash", "cat", "chmod", "cp", "env", "grep", "id", "ip", "ls", "mkdir", "mv", "nft", "ping", "rm", "sh"),
    *("sleep", "tail", "timeout", "uname", "wget"),
)
#: The parts of Ray that a node needs.
EXTRAS = ("default",)
#: The packages that build a wheel, and pip itself, on which other packages do not depend.
BUILDERS = ("pip", "hatchling")
#: Arguments of a build that finds all packages in the base.
OFFLINE = ("PIP_NO_INDEX=1", "PIP_FIND_LINKS=/wheelhouse", "PIP_NO_BUILD_ISOLATION=0")
#: Parts of the standard library and of Ray: large, and no node needs them.
LEFT_OUT = re.compile(
    r"/(test|tests|idlelib|tkinter|turtledemo|site-packages|dist-packages|config-[^/]*)/|/ray/(jars|rllib|cpp)/"
)
ACCOUNTS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nray:x:1000:1000::/home/ray:/bin/sh\n",
    "etc/group": "root:x:0:\nray:x:1000:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}
#: Every user may enter /root, because this machine's Python may be below it.
FOLDERS = {"tmp": 0o1777, "root": 0o755, "run": 0o755, "var/lib": 0o755, "home/ray": 0o755, "etc": 0o755}
MERGED = ("bin", "sbin", "lib", "lib64")


class _Archive(tarfile.TarFile):
    """Docker accepts no file twice, and two packages may contain the same one (opencensus)."""

    def addfile(self, tarinfo: tarfile.TarInfo, fileobj: Any = None) -> None:
        names: set[str] = self.__dict__.setdefault("names_so_far", set())
        if tarinfo.name not in names:
            names.add(tarinfo.name)
            super().addfile(tarinfo, fileobj)


def write_base(target: Path, extras: Sequence[str] = EXTRAS) -> str:
    """Write the tar; return the search path of programs for its image.

    Args:
        extras: the parts of Ray.
    """
    python = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    with _Archive.open(target, "w") as tar:
        _furnish(tar)
        binaries = {python, *(Path(found).resolve() for name in PROGRAMS if (found := shutil.which(name)))}
        for name in PROGRAMS:
            tar.add(Path(shutil.which(name) or name).resolve(), f"usr/bin/{name}")
        tar.add(python, str(python).lstrip("/"))
        for name in ("python", "python3"):
            _link(tar, f"usr/local/bin/{name}", str(python))
        _text(
            tar,
            "usr/local/bin/ray",
            f"#!{python}\nimport sys\nfrom ray.scripts.scripts import main\nsys.exit(main())\n",
        )
        for path in _below(Path(sysconfig.get_path("stdlib"))):
            binaries |= _add(tar, path, path)
        site = _site_packages(python)
        for package in _wanted(extras):
            for file in package.files or ():
                path = Path(str(file.locate()))
                if ".." not in file.parts and path.is_file() and not LEFT_OUT.search(f"/{file}"):
                    binaries |= _add(tar, path, site / str(file))
                    _add_compiled(tar, path, site / str(file))
        for wheel in collect():
            if not wheel.name.startswith("meshray-"):
                _bytes(tar, f"wheelhouse/{wheel.name}", wheel.content)
        for place, library in sorted(libraries(binaries).items()):
            tar.add(library, str(place).lstrip("/"))
    return f"{python.parent}:/usr/local/bin:/usr/bin"


def build_node(
    docker: Callable[..., object],
    tar: Path,
    shown: str | Path,
    tag: str,
    *arguments: str,
    extras: Sequence[str] = EXTRAS,
) -> None:
    """Build containers/Dockerfile on the base, as it is built without registries; the clone must have the engine.

    Args:
        docker: runs the docker program with these words.
        tar: where the base is written, and removed after its import.
        shown: the same file as the docker program sees it.
        arguments: further arguments of the build, NAME=VALUE.
        extras: the parts of Ray in the base.
    """
    path = write_base(tar, extras)
    try:
        docker("import", f"--change=ENV PATH={path}", shown, "base")
    finally:
        tar.unlink()
    given = [word for one in ("BASE=base", "GO=base", *OFFLINE, *arguments) for word in ("--build-arg", one)]
    file = REPOSITORY / "containers/Dockerfile"
    docker("build", "--quiet", "--network=none", *given, "--file", file, "--tag", tag, REPOSITORY)


def _furnish(tar: tarfile.TarFile) -> None:
    for name, mode in FOLDERS.items():
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode = tarfile.DIRTYPE, mode
        if name == "home/ray":
            entry.uid = entry.gid = 1000
        tar.addfile(entry)
    for name in MERGED:
        _link(tar, name, f"usr/{name}")
    for name, text in ACCOUNTS.items():
        _bytes(tar, name, text.encode())


def _add(tar: tarfile.TarFile, path: Path, place: Path) -> set[Path]:
    tar.add(path, str(place).lstrip("/"), recursive=False)
    return {path} if path.suffix == ".so" or ".so." in path.name or os.access(path, os.X_OK) else set()


def _add_compiled(tar: tarfile.TarFile, path: Path, place: Path) -> None:
    """Add the files that Python compiled here: otherwise each container would compile the whole of Ray at its start."""
    if path.suffix == ".py":
        compiled, target = (Path(importlib.util.cache_from_source(str(one))) for one in (path, place))
        if compiled.is_file():
            _add(tar, compiled, target)


def _below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if not LEFT_OUT.search(f"{path}/"):
            yield path


def _wanted(extras: Sequence[str]) -> list[Distribution]:
    """Return these parts of Ray and the builders, as far as they are installed here."""
    found: dict[tuple[str, str], Distribution] = {}
    requests = [*(("ray", extra) for extra in extras), *((name, "") for name in BUILDERS)]
    while requests:
        name, extra = requests.pop()
        if (name, extra) in found:
            continue
        found[name, extra] = distribution(name)
        for line in found[name, extra].requires or ():
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                requests.append((re.sub(r"[-_.]+", "-", need.name).lower(), next(iter(need.extras), "")))
    return list({name: package for (name, _), package in found.items()}.values())


def _site_packages(python: Path) -> Path:
    ask = [str(python), "-I", "-c", "import site; print(site.getsitepackages()[0])"]
    return Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())


def libraries(binaries: set[Path]) -> dict[Path, Path]:
    """Return what the loader would load for these, the loader included, by its place in the image."""
    done = subprocess.run(["ldd", *sorted(binaries)], capture_output=True, text=True, check=False)
    paths = re.findall(r"(?:=> |^\s+)(/\S+) \(0x", done.stdout, re.MULTILINE)
    return {_merged(Path(path)): Path(path).resolve() for path in paths if not Path(path).is_relative_to(sys.prefix)}


def _merged(path: Path) -> Path:
    """Return the path in the image, where /lib and /usr/lib are the same folder."""
    return Path("/usr") / path.relative_to("/") if path.parts[1] in MERGED else path


def _link(tar: tarfile.TarFile, name: str, target: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    tar.addfile(entry)


def _text(tar: tarfile.TarFile, name: str, text: str) -> None:
    _bytes(tar, name, text.encode(), 0o755)


def _bytes(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))
