"""A real torch for tests, without the CUDA libraries that its wheel would bring along.

On x86_64 the package index has torch for CUDA only: half a gigabyte, and two gigabytes of libraries from NVIDIA that a
machine without a GPU never calls, although torch does not load without them. Here empty functions of the same names
replace them. The rest is the wheel as published: torch on the CPU, and gloo.

    PYTHONPATH=$(folder()) python -c 'import torch.distributed'

It is kept in $XDG_CACHE_HOME/meshray-tests, by default in ~/.cache/meshray-tests: 1.2 GB.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.tiers import index_misses

RELEASE = "torch==2.15.0"
_TOOLS = {"cc": "gcc", "readelf": "binutils"}
#: Libraries and functions of CUDA, by the beginning of their names.
_LIBRARY = re.compile(r"lib(?:cu|nv|nccl)")
_FUNCTION = re.compile(r"cu|nv|nccl|__cu|__nv")
#: These answer "no device"; all others report success.
_DEVICES, _NO_DEVICE = re.compile(r"cuInit|cuda\w*GetDevice"), 100


def folder() -> Path:
    """Return a folder with torch for PYTHONPATH, filled from the package index the first time.

    Skips the test where the index cannot be reached.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "meshray-tests"
    made = cache / f"{RELEASE.replace('==', '-')}-{sys.implementation.cache_tag}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            _make(made)
    return made


def _make(made: Path) -> None:
    packages = [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]
    assert not packages, f"torch needs programs here (apt-get install {' '.join(packages)})"
    with tempfile.TemporaryDirectory(dir=made.parent) as unfinished:
        target = Path(unfinished) / "target"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--no-deps"]
        done = subprocess.run([*pip, "--target", target, RELEASE], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            missing = index_misses()
            if missing:
                pytest.skip(f"{RELEASE} is to come from {missing}")
            pytest.fail(f"{RELEASE} cannot be installed: {done.stderr[-2000:]}")
        add_substitutes(target / "torch" / "lib")
        target.rename(made)


def add_substitutes(libraries: Path) -> None:
    """Put an empty library into this folder for each of CUDA's that those in it need."""
    present = [path for path in libraries.iterdir() if ".so" in path.name]
    wanted: dict[str, set[str]] = {}
    #: The library that defines a version of symbols.
    of_version: dict[str, str] = {}
    functions: dict[str, str] = {}
    for path in present:
        needed = re.findall(r"NEEDED.*\[(.*)\]", _readelf("--dynamic", path))
        wanted.update({name: set() for name in needed if _LIBRARY.match(name)})
        library = ""
        for match in re.finditer(r"File: (\S+)|Name: (\S+)", _readelf("--version-info", path)):
            library = match[1] or library
            if match[2] and _LIBRARY.match(library):
                of_version[match[2]] = library
        for match in re.finditer(r" UND (\w+)(?:@(\S+))?", _readelf("--dyn-syms", path)):
            functions[match[1]] = match[2] or ""
    versions = {library: version for version, library in of_version.items()}
    for name, version in functions.items():
        if version in of_version:
            wanted[of_version[version]].add(name)
        elif not version and _FUNCTION.match(name):
            # It belongs to one of those without versions; which one is not recorded.
            for library in wanted.keys() - versions.keys():
                wanted[library].add(name)
    for library in wanted.keys() - {path.name for path in present}:
        _write(libraries / library, versions.get(library, ""), wanted[library])


def _write(library: Path, version: str, functions: Iterable[str]) -> None:
    source = [".text"]
    for name in sorted(functions):
        answer = _NO_DEVICE if _DEVICES.match(name) else 0
        source += [f".globl {name}", f".type {name}, @function", f"{name}: mov ${answer}, %eax", "ret"]
    source.append('.section .note.GNU-stack, "", @progbits\n')
    with tempfile.TemporaryDirectory() as work:
        assembly, script = Path(work) / "functions.s", Path(work) / "versions"
        assembly.write_text("\n".join(source))
        script.write_text(f"{version} {{ global: *; }};\n")
        options = ["-shared", "-nostdlib", f"-Wl,-soname,{library.name}", f"-Wl,--version-script={script}"]
        subprocess.run(["cc", *options, "-o", library, assembly], check=True)


def _readelf(option: str, path: Path) -> str:
    return subprocess.run(["readelf", "--wide", option, path], capture_output=True, text=True, check=True).stdout
