"""Install a wheel of meshray beside the running version, as `python -m meshray.runtime.upgrade.installer`.

Its arguments are the wheel, its SHA-256, and the folder of versions.

Only meshray itself is new. Its dependencies are copied from the running version, so that the new one needs nothing of
the old one, and no network. It runs in a separate process, which the agent can end at any moment: a version exists once
its folder has its final name.

Standard output is {"python"} or {"code", "message", "hint"}.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
import zipfile
from email.message import Message
from email.parser import Parser
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import meshray
from meshray.errors import MeshrayError
from meshray.installation.build import ENGINE, build_of
from meshray.installation.distributions import normal
from meshray.installation.programs import ORIGIN, origin_of
from meshray.linux.trusted_files import first_untrusted, is_root
from meshray.linux.user import User
from meshray.runtime.privileged import install
from meshray.runtime.privileged.packing import ONLY_DEPENDENCIES

#: What a new version must be able to import.
_MODULES = ("meshray.agent.main", "meshray.coordinator.server", "meshray.runtime.upgrade.watchdog")


def install_wheel(wheel: Path, sha256: str, root: Path) -> Path:
    """Install the wheel into a new folder below ``root``, and return its interpreter.

    Args:
        root: the folder of versions, to which only the user of this process can write.

    Raises:
        MeshrayError: ``upgrade_damaged``, ``upgrade_dependencies``, ``upgrade_python``, ``untrusted`` or
            ``install_failed``.
    """
    content = wheel.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise MeshrayError("upgrade_damaged", "the wheel is not the one that was ordered", hint="try again")
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        about = _metadata(archive)
        more = _require_dependencies(about)
        target = root / f"{about['Version']}-{_build_of(archive)}"
        root.mkdir(mode=0o755, parents=True, exist_ok=True)
        _require_own(root)
        if (target / ORIGIN).exists():
            # It was installed before, by this node or by another one of this machine, which may run it.
            return target / "bin/python"
        install.remove_unused(root)
        staging = Path(tempfile.mkdtemp(dir=root, prefix=install.UNFINISHED))
        try:
            return _fill(staging, target, archive, more)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise MeshrayError("upgrade_damaged", f"the wheel cannot be read: {error}", hint="try again") from None
    except OSError as error:
        raise MeshrayError(
            "install_failed", f"the new version cannot be written to {root}: {error.strerror}", hint=f"df -h {root}"
        ) from None


def _metadata(archive: zipfile.ZipFile) -> Message:
    name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA") and name.count("/") == 1)
    about = Parser().parsestr(archive.read(name).decode())
    if normal(about.get("Name", "")) != "meshray":
        raise ValueError("it is not meshray")
    wanted, own = about.get("Requires-Python", ""), ".".join(map(str, sys.version_info[:3]))
    if own not in SpecifierSet(wanted):
        raise MeshrayError(
            "upgrade_python",
            f"the new version needs Python {wanted}, and this node runs {own}",
            hint="install another Python there, then meshray with pip; then there: meshray down; meshray up",
        )
    return about


def _require_dependencies(about: Message) -> list[str]:
    """Return the names of the packages that the wheel requires; raise if one is missing or has another version."""
    names, problems = [], []
    for text in about.get_all("Requires-Dist", []):
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        names.append(requirement.name)
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            problems.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            problems.append(f"{requirement.name} {found} does not satisfy {requirement.specifier}")
    if problems:
        raise MeshrayError(
            "upgrade_dependencies",
            f"the new version needs other packages than this node has: {'; '.join(problems)}",
            hint="there: install the new meshray with pip, then meshray down; meshray up",
        )
    return names


def _require_own(root: Path) -> None:
    untrusted = first_untrusted(root) if is_root() else None
    if untrusted is not None:
        raise MeshrayError(
            "untrusted",
            f"{root} is for root's programs, but other users can change {untrusted}",
            hint=f"ls -ld {untrusted}",
        )


def _build_of(archive: zipfile.ZipFile) -> str:
    names = [name for name in archive.namelist() if name.startswith("meshray/")]
    return build_of((name, archive.read(name)) for name in names)


def _fill(staging: Path, target: Path, archive: zipfile.ZipFile, more: list[str]) -> Path:
    base = Path(getattr(sys, "_base_executable", sys.executable))
    packages = install.make_environment(staging, base)
    install.unpack_environment(
        packages, User.by_uid(Path(meshray.__file__).stat().st_uid), ONLY_DEPENDENCIES, *map(normal, more)
    )
    _unpack_wheel(archive, packages)
    _keep_engine(packages)
    release, _, build = target.name.rpartition("-")
    copy = install.Copy(target, origin_of(Path(sys.prefix)) or Path(sys.prefix) / "bin")
    install.finish(staging, copy, {"version": release, "build": build})
    install.require_works(staging, *_MODULES)
    # After a power failure, a name on disk must not lead to files without content.
    os.sync()
    try:
        staging.rename(target)
    except OSError:
        # The installer of an agent that was killed meanwhile has just finished the same version.
        if not (target / ORIGIN).exists():
            raise
        shutil.rmtree(staging)
    os.sync()
    return copy.python


def _unpack_wheel(archive: zipfile.ZipFile, packages: Path) -> None:
    for entry in archive.infolist():
        name = PurePosixPath(entry.filename)
        is_own = name.parts[0] == "meshray" or (name.parts[0].startswith("meshray-") and ".dist-info" in name.parts[0])
        if not is_own or name.is_absolute() or ".." in name.parts or entry.is_dir():
            raise ValueError(f"{entry.filename[:200]!r} does not belong to meshray")
        path = packages / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(archive.read(entry))
        path.chmod(0o755 if str(name) == ENGINE else 0o644)
    for folder in (packages, *(path for path in packages.rglob("*") if path.is_dir())):
        folder.chmod(0o755)


def _keep_engine(packages: Path) -> None:
    """Use the running version's engine unless the wheel has one for this kind of machine."""
    own, new = Path(meshray.__file__).parents[1] / ENGINE, packages / ENGINE
    if _machine_of(new) == _machine_of(Path(sys.executable)):
        return
    new.unlink(missing_ok=True)
    if own.is_file():
        shutil.copyfile(own, new)
        new.chmod(0o755)


def _machine_of(program: Path) -> bytes:
    """Return the kind of machine for which this program was built (elf(5), e_machine); empty: there is none."""
    try:
        with program.open("rb") as file:
            return file.read(20)[18:]
    except OSError:
        return b""


def main() -> int:
    """Install the wheel and print the result."""
    wheel, sha256, versions = sys.argv[1:]
    os.umask(0o022)
    try:
        result = {"python": str(install_wheel(Path(wheel), sha256, Path(versions)))}
    except MeshrayError as error:
        result = {"code": error.code, "message": error.message, "hint": error.hint or ""}
    sys.stdout.write(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
