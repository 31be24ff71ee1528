"""Find this node's Ray and its version, and compare it with the head's, without importing Ray.

    >>> find_ray(None, os.environ, User.invoking()).versions
    Versions(meshray='0.1.0', ray='2.60.0', python='3.11.7')

Ray's own interpreter reports the version, as the user who will run it. This takes a tenth of a second and proves that
this user may execute it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from meshray import __version__
from meshray.errors import MeshrayError, UsageError
from meshray.installation.programs import folders, user_python
from meshray.linux.capture import run_captured
from meshray.linux.user import User
from meshray.model.node import Versions
from meshray.model.release import PYTHON, RAY, python_digits, ray_difference, release

OLDEST_RAY = (2, 44)
#: The command that fixes a version mismatch on a machine that joins.
MATCH_COMMAND = "meshray join --env match TOKEN"
#: The commands that fix a version mismatch on a node.
MATCH_AGAIN = "meshray leave, then meshray join --env match TOKEN"
#: Enough for a cold disk and a busy machine.
_PROBE_TIMEOUT_S = 30
_SHEBANG = re.compile(rb"#![ \t]*(\S+)(?:[ \t]+(\S+))?")
#: pip and uv write this if the interpreter's path is too long for a shebang line.
_LONG_SHEBANG = re.compile(rb"'''exec'\s+\"?([^\"\n]+?)\"?\s+\"\$0\"")
#: The line of the program `ray` that installers write from the package's entry point.
_ENTRY_POINT = b"from ray.scripts.scripts import main"
# The metadata of a package may outlive the package, so both are checked.
# `missing`: without these packages the dashboard, which provides the node table, does not start.
# `options`: the options of Ray's commands, from its source, because importing Ray takes seconds.
_PROBE = """
import json, pathlib, re, sys
from importlib import metadata, util
try:
    place = getattr(util.find_spec("ray"), "origin", None)
    ray = metadata.version("ray") if place else ""
except metadata.PackageNotFoundError:
    ray = ""
try:
    source = pathlib.Path(place).with_name("scripts").joinpath("scripts.py").read_text(encoding="utf-8")
    options = sorted(set(re.findall('"(--[a-z0-9-]+)"', source)))
except (OSError, TypeError, ValueError):
    options = []
missing = [name for name in ("aiohttp", "aiohttp_cors", "grpc", "opencensus", "prometheus_client", "pydantic")
           if util.find_spec(name) is None]
print(json.dumps([ray, "%d.%d.%d" % sys.version_info[:3], missing, options]))
"""


@dataclass(frozen=True)
class RayInstallation:
    """A Ray that a user may run.

    Attributes:
        ray: the `ray` program.
        python: the interpreter of the program.
        missing: missing packages of ``ray[default]``, which the head needs.
        options: the options of Ray's commands; empty if unknown.
        is_entry_point: the program only calls the entry point of Ray's package with `python`, so that it may be called
            without the program.
    """

    ray: Path
    python: Path
    versions: Versions
    missing: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    is_entry_point: bool = False

    @property
    def activation(self) -> dict[str, str]:
        """The variables of the activated environment; empty if Ray is outside an environment. Reads files."""
        top = self.ray.parent.parent
        if (top / "pyvenv.cfg").is_file():
            return {"VIRTUAL_ENV": str(top)}
        if (top / "conda-meta").is_dir():
            return {"CONDA_PREFIX": str(top), "CONDA_DEFAULT_ENV": top.name}
        return {}


def find_ray(explicit: str | None, environ: Mapping[str, str], user: User) -> RayInstallation:
    """Return the Ray to run: the named one, the one beside meshray, or the user's own.

    Args:
        explicit: the value of ``--ray``: the program, or the folder of its virtual environment.
        environ: provides MESHRAY_RAY and PATH.
        user: the user who will run Ray.

    Raises:
        MeshrayError: ``ray_missing``, ``ray_not_executable`` or ``ray_unusable``.
    """
    named = explicit or environ.get("MESHRAY_RAY")
    if named:
        program = _program(Path(named).expanduser().absolute())
        if program is None:
            raise MeshrayError(
                "ray_missing",
                f"there is no Ray at {named}",
                hint="--ray PATH names the program `ray` or its virtual environment",
            )
        return inspect(program, user)
    for program in _candidates(environ, user):
        return inspect(program, user)
    raise MeshrayError(
        "ray_missing",
        f"Ray is not installed: it is neither beside meshray ({folders()[-1]}) nor on PATH",
        hint=f"{user_python()} -m pip install 'ray[default]', or --ray /path/to/venv/bin/ray, or --no-ray",
    )


def inspect(program: Path, user: User) -> RayInstallation:
    """Return the Ray of this program. Raises MeshrayError if this user cannot run it."""
    python, is_entry_point = _interpreter(program, user)
    if python is None:
        raise MeshrayError(
            "ray_unusable",
            f"cannot determine the Python of {program}: it is neither a Python script nor beside a python",
            hint="--ray /path/to/venv/bin/ray",
        )
    answer = _run_probe(program, python, user)
    try:
        ray, version, missing, options = json.loads(answer)
        versions = Versions(meshray=__version__, ray=str(ray), python=str(version))
        found = RayInstallation(
            program, python, versions, tuple(map(str, missing)), tuple(map(str, options)), is_entry_point
        )
    except (ValueError, TypeError):
        raise MeshrayError(
            "ray_unusable", f"{python} does not report a Ray version", hint=f"{python} -c 'import ray'"
        ) from None
    if not found.versions.ray:
        raise MeshrayError(
            "ray_missing", f"{python} has no Ray", hint=f"{python} -m pip install 'ray[default]', or --ray PATH"
        )
    if release(found.versions.ray) < OLDEST_RAY:
        raise MeshrayError(
            "ray_too_old",
            f"Ray {found.versions.ray} at {program} is too old: "
            f"meshray needs {'.'.join(map(str, OLDEST_RAY))} or later",
            hint=f"{python} -m pip install --upgrade 'ray[default]'",
        )
    return found


def check_options(installation: RayInstallation, args: Sequence[str]) -> None:
    """Refuse a mistyped option of `ray start`, before anything is enrolled.

    An unknown option that resembles no other is left to Ray, because the known options come from Ray's source only.

    Raises:
        UsageError: ``unknown_ray_option``.
    """
    import difflib

    for argument in args:
        option = argument.partition("=")[0]
        if not option.startswith("--") or option.replace("_", "-") in installation.options:
            continue
        suggestion = next(iter(difflib.get_close_matches(option, installation.options, 1, cutoff=0.8)), "")
        if suggestion:
            raise UsageError(
                "unknown_ray_option", f"ray start has no option {option[:60]}", hint=f"it has {suggestion}"
            )


def compare(own: Versions, head: Versions, hint: str = MATCH_COMMAND) -> None:
    """Check that this Ray can join the head's: the same Ray, and the same Python as far as Ray requires it.

    A head with unknown versions (it runs no Ray) accepts every node.

    Args:
        hint: the command that fixes a mismatch.

    Raises:
        MeshrayError: ``version_mismatch``.
    """
    difference = ray_difference(own, head)
    if difference == RAY:
        raise MeshrayError(
            "version_mismatch",
            f"the head runs Ray {head.ray}, this node has {f'Ray {own.ray}' if own.ray else 'no Ray'}; "
            "Ray requires the same version on every node",
            hint=hint,
        )
    if difference == PYTHON:
        needed = ".".join(map(str, release(head.python)[: python_digits(head.ray)]))
        raise MeshrayError(
            "version_mismatch",
            f"the head runs Ray {head.ray} on Python {head.python}, this node has Python {own.python}; "
            f"Ray {head.ray} requires Python {needed} on every node",
            hint=hint,
        )


def _candidates(environ: Mapping[str, str], user: User) -> Iterator[Path]:
    yield from (folder / "ray" for folder in folders() if (folder / "ray").is_file())
    # Behind sudo, PATH is root's. The user's ~/.local/bin is the best guess.
    path = os.pathsep.join([environ.get("PATH", os.defpath), str(user.home / ".local/bin")])
    found = shutil.which("ray", path=path)
    if found:
        yield Path(found).absolute()


def _program(path: Path) -> Path | None:
    candidates = (path / "bin/ray", path / "ray") if path.is_dir() else (path,)
    return next((item for item in candidates if item.is_file()), None)


def _interpreter(program: Path, user: User) -> tuple[Path | None, bool]:
    """Return the interpreter of the program, and whether the program only calls the entry point with it."""
    try:
        with program.open("rb") as file:
            start = file.read(4096)
    except OSError as error:
        raise _not_executable(program, user, str(error.strerror)) from None
    long_form = _LONG_SHEBANG.search(start)
    short_form = _SHEBANG.match(start)
    named = os.fsdecode((long_form or short_form).group(1)) if long_form or short_form else ""  # type: ignore[union-attr]
    if "python" in Path(named).name:
        has_options = short_form is not None and short_form.group(2) is not None
        return Path(named), _ENTRY_POINT in start and not has_options
    # For `#!/usr/bin/env python3` or a wrapper, use the interpreter in the same folder.
    return next((item for name in ("python3", "python") if (item := program.parent / name).exists()), None), False


def _run_probe(program: Path, python: Path, user: User) -> str:
    environ = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    environ["HOME"] = str(user.home)
    try:
        answer = run_captured([str(python), "-c", _PROBE], env=environ, timeout_s=_PROBE_TIMEOUT_S, user=user)
    except PermissionError:
        raise _not_executable(program, user, f"{python} may not be executed") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MeshrayError(
            "ray_unusable", f"{python}, on which {program} runs, does not start: {error}", hint="--ray PATH"
        ) from None
    if answer.returncode != 0:
        # An executable interpreter whose libraries cannot be read fails here.
        raise _not_executable(program, user, (answer.stderr.strip().splitlines() or ["it ended without a message"])[-1])
    return str(answer.stdout)


def _not_executable(program: Path, user: User, reason: str) -> MeshrayError:
    return MeshrayError(
        "ray_not_executable",
        f"{user.name} cannot run the Ray at {program}: {reason}",
        hint=f"Ray runs as {user.name}, not as root: install it where {user.name} can read it, then --ray PATH",
    )
