"""The copy of meshray from which root runs it: created, found, removed.

>>> part = first_untrusted_part()             # a part of this installation that other users can change
>>> copy = install_copy() if part else None   # /usr/local/lib/meshray/0.1.0-3f5a…
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import site
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path, PurePosixPath
from typing import IO

import meshray
from meshray import __version__
from meshray.defaults import INSTALL_FOLDER, PROGRAM_LINK
from meshray.errors import MeshrayError
from meshray.installation.distributions import needed
from meshray.installation.own_files import own_files
from meshray.installation.programs import ORIGIN, origin_of
from meshray.linux.capture import run_captured
from meshray.linux.trusted_files import SYSTEM_FOLDERS, first_untrusted
from meshray.linux.user import User
from meshray.render.templates import folder as templates_folder
from meshray.runtime.privileged import interpreter
from meshray.runtime.privileged.packing import EXTRAS

ROOT, LINK = INSTALL_FOLDER, PROGRAM_LINK
#: Option of `init` and `join`: root runs files that the user can change.
TRUST_OPTION = "--trust-user-environment"
#: Far above what an installation has.
_MAX_FILES, _MAX_BYTES = 50_000, 2**30
_PACK_S = 120.0
#: The prefix of the folder of a copy that is not complete.
UNFINISHED = ".new-"


@dataclass(frozen=True)
class Copy:
    """One copy of meshray.

    Attributes:
        folder: its virtual environment, root's.
        origin: the folder of programs of the environment from which it was made; Ray may be there.
    """

    folder: Path
    origin: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin/python"

    @property
    def program(self) -> Path:
        """Its `meshray`."""
        return self.folder / "bin/meshray"


def first_untrusted_part() -> Path | None:
    """Return the first part of this installation that users other than root can change; None: root may run it.

    An installation in a user's site-packages counts as such a part: an isolated interpreter does not look there.
    """
    own = Path(meshray.__file__).parent
    if own.is_relative_to(site.getusersitepackages()):
        return own
    for path in (Path(sys.executable), Path(sys.prefix), Path(sys.base_prefix), *_search_path()):
        if (untrusted := first_untrusted(path)) is not None:
            return untrusted
    return _first_untrusted_file()


def _search_path() -> Iterator[Path]:
    """Yield the folders from which this interpreter imports.

    Without -I, the first entry is the folder of the script or the current one. Root's processes run with -I.
    """
    first = 0 if sys.flags.isolated else 1
    yield from (Path(entry) for entry in sys.path[first:] if entry and Path(entry).is_absolute())


def _first_untrusted_file() -> Path | None:
    """Return the first file of meshray, or of its dependencies, that others can change; it is one of thousands."""
    for top in _tops():
        if (untrusted := first_untrusted(top)) is not None:
            return untrusted
        for folder, _, _ in os.walk(top):
            with os.scandir(folder) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    # Only a link or an unusual file needs the slow check.
                    is_unusual = status.st_uid != 0 or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
                    if (is_unusual or entry.is_symlink()) and (
                        untrusted := first_untrusted(Path(entry.path))
                    ) is not None:
                        return untrusted
    return None


def _tops() -> Iterator[Path]:
    """Yield the folders and single modules of the installation."""
    yield Path(meshray.__file__).parent
    yield templates_folder()
    for found in needed(distribution("meshray"), *EXTRAS):
        lines = (found.read_text("RECORD") or "").splitlines()
        names = {line.split(",", 1)[0].strip('"').split("/", 1)[0] for line in lines}
        yield from (Path(str(found.locate_file(name))) for name in sorted(names - {"..", "", "__pycache__"}))


def fingerprint() -> str:
    """Return a digest of the versions of all parts, and of the size and time of each file of meshray."""
    digest = hashlib.sha256(f"{sys.implementation.cache_tag} {sys.prefix}".encode())
    for found in needed(distribution("meshray"), *EXTRAS):
        digest.update(f"\n{found.metadata['Name']} {found.version}".encode())
    for name, path in own_files():
        status = path.stat()
        digest.update(f"\n{name} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:12]


def this_copy() -> Copy | None:
    """Return the copy from which this process runs; None: it runs from another installation."""
    return _read(Path(sys.prefix))


def installed_copy() -> Copy | None:
    """Return the copy of this very installation; None if there is none that can be trusted."""
    return _read(_folder())


def _folder() -> Path:
    """Return where the copy of this very installation is, or would be."""
    return ROOT / f"{__version__}-{fingerprint()}"


def _read(folder: Path) -> Copy | None:
    origin = origin_of(folder)
    return Copy(folder, origin) if origin is not None and first_untrusted(folder / ORIGIN) is None else None


def install_copy() -> Copy:
    """Create the copy of this installation, and the link to it.

    Raises:
        MeshrayError: ``no_trusted_python`` with each rejected interpreter and the reason; ``untrusted`` if the
            environment belongs to root but others can change it; ``install_failed``.
    """
    owner = _owner()
    try:
        ROOT.mkdir(mode=0o755, parents=True, exist_ok=True)
        if (untrusted := first_untrusted(ROOT)) is not None:
            raise MeshrayError(
                "untrusted",
                f"{ROOT} is for root's programs, but other users can change {untrusted}",
                hint=f"ls -ld {untrusted}",
            )
        python, rejected = interpreter.find(ROOT)
        if python is None:
            raise _no_python(rejected)
        staging = Path(tempfile.mkdtemp(dir=ROOT, prefix=UNFINISHED))
        try:
            copy = _fill(staging, python, owner)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        _link(copy)
        remove_unused(ROOT, copy.folder)
    except OSError as error:
        raise MeshrayError(
            "install_failed",
            f"meshray cannot be installed in {ROOT}: {error.strerror or error}",
            hint=f"free some space there; or run it from this environment: {TRUST_OPTION}",
        ) from None
    return copy


def _owner() -> User:
    """Return the user as whom the environment is read."""
    uid = Path(meshray.__file__).stat().st_uid
    if uid == 0:
        untrusted = first_untrusted_part()
        raise MeshrayError(
            "untrusted",
            f"meshray would run as root from a file of root that other users can change: {untrusted}",
            hint=f"chmod -R go-w {untrusted}",
        )
    return User.by_uid(uid)


def _no_python(rejected: Sequence[interpreter.Rejected]) -> MeshrayError:
    version = f"3.{sys.version_info[1]}"
    attempts = "; ".join(f"{one.python}: {one.reason}" for one in rejected)
    return MeshrayError(
        "no_trusted_python",
        f"root would run meshray with a Python that other users can change; no other Python {version} is usable "
        f"({attempts})",
        hint=f"apt-get install python{version}; or pip install uv into this environment; or {TRUST_OPTION}",
    )


def _fill(staging: Path, python: Path, owner: User) -> Copy:
    packages = make_environment(staging, python)
    unpack_environment(packages, owner)
    target = _folder()
    copy = Copy(target, Path(sys.prefix) / "bin")
    finish(staging, copy, {"version": __version__})
    require_works(staging)
    if _read(target) is not None:  # another command made it meanwhile
        shutil.rmtree(staging)
        return copy
    if target.exists():  # it cannot be trusted
        shutil.rmtree(target)
    staging.rename(target)
    return copy


def make_environment(folder: Path, python: Path) -> Path:
    """Make this empty folder a virtual environment; return the folder of its packages."""
    packages = folder / f"lib/python3.{sys.version_info[1]}/site-packages"
    programs = folder / "bin"
    for part in (packages, programs):
        part.mkdir(parents=True)
    folder.chmod(0o755)
    for name in ("python", "python3"):
        (programs / name).symlink_to(python)
    (folder / "pyvenv.cfg").write_text(f"home = {python.parent}\ninclude-system-site-packages = false\n")
    return packages


def finish(staging: Path, copy: Copy, about: Mapping[str, str]) -> None:
    """Write the program, and the file that makes this environment a copy.

    Args:
        copy: the environment under its final name.
        about: the version, for this file.
    """
    (staging / "bin/meshray").write_text(
        f"#!{copy.python} -I\nimport sys\n\nfrom meshray.cli.entry import main\n\nsys.exit(main())\n"
    )
    (staging / "bin/meshray").chmod(0o755)
    (staging / ORIGIN).write_text(json.dumps({"origin": str(copy.origin), **about}))
    for path in (staging / "pyvenv.cfg", staging / ORIGIN):
        path.chmod(0o644)


def unpack_environment(packages: Path, owner: User, *options: str) -> None:
    """Copy this environment's packages: the packer runs as the owner, so that root opens no file of the environment.

    Args:
        packages: an empty folder.
        options: those of the packer.
    """
    may_change_user = os.geteuid() == 0 and owner.uid != 0
    process = subprocess.Popen(
        [sys.executable, "-B", "-m", "meshray.runtime.privileged.packing", *options],
        cwd="/",
        env={"PATH": SYSTEM_FOLDERS, "HOME": str(owner.home)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **(owner.identity if may_change_user else {}),
    )
    try:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        unpack(process.stdout, packages)
        stderr = process.communicate(timeout=_PACK_S)[1].decode(errors="replace").strip()
    except (tarfile.TarError, subprocess.TimeoutExpired) as error:
        raise MeshrayError("install_failed", f"{sys.prefix} cannot be copied: {error}", hint=TRUST_OPTION) from None
    finally:
        process.kill()
        process.wait()
    if process.returncode != 0:
        last = stderr.splitlines()[-1] if stderr else f"exit code {process.returncode}"
        raise MeshrayError("install_failed", f"{sys.prefix} cannot be copied: {last[:300]}", hint=TRUST_OPTION)


def unpack(stream: IO[bytes], folder: Path) -> None:
    """Write the files of an archive into this empty folder.

    The archive comes from a less privileged process: only new regular files are created, and none outside the folder.

    Raises:
        MeshrayError: ``install_failed``: the archive holds anything else.
        tarfile.TarError: the data is not a tar archive.
    """
    count = total = 0
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for entry in archive:
            count, total = count + 1, total + entry.size
            name = PurePosixPath(entry.name)
            if not entry.isreg() or name.is_absolute() or ".." in name.parts or not name.parts:
                raise MeshrayError("install_failed", f"{str(name)[:200]!r} is not a regular file of a package")
            if count > _MAX_FILES or total > _MAX_BYTES:
                raise MeshrayError("install_failed", f"this environment is larger than {_MAX_BYTES >> 20} MiB")
            content = archive.extractfile(entry)
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            mode = 0o755 if entry.mode & 0o100 else 0o644
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with os.fdopen(handle, "wb") as file:
                os.fchmod(handle, mode)
                if content is not None:
                    shutil.copyfileobj(content, file)
            os.utime(path, (entry.mtime, entry.mtime))
    for built in folder.rglob("*"):
        if built.is_dir():
            built.chmod(0o755)


def require_works(staging: Path, *modules: str) -> None:
    """Raise MeshrayError ``install_failed`` if the interpreter of this copy cannot import meshray and these modules."""
    imports = ", ".join(["import meshray.cli.entry", "aiohttp", "cryptography", "pyroute2", *modules])
    command = [str(staging / "bin/python"), "-I", "-c", imports]
    done = run_captured(command, env={"PATH": SYSTEM_FOLDERS}, timeout_s=_PACK_S)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise MeshrayError("install_failed", f"the new copy of meshray does not start: {lines[-1][:300]}")


def _link(copy: Copy) -> None:
    """Create the link, unless a file of another origin has that name."""
    with contextlib.suppress(OSError):
        if LINK.is_symlink() and LINK.readlink().is_relative_to(ROOT):
            LINK.unlink()
        LINK.symlink_to(copy.program)


def remove_unused(root: Path, *kept: Path) -> None:
    """Remove the copies in this folder from which no process runs, and which no process names, except those kept."""
    used = _command_lines()
    for folder in root.iterdir():
        is_copy = folder.is_dir() and ((folder / ORIGIN).exists() or folder.name.startswith(UNFINISHED))
        if is_copy and folder not in kept and not any(str(folder) in line for line in used):
            shutil.rmtree(folder, ignore_errors=True)


def _command_lines() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes().decode(errors="replace"))
    return found
