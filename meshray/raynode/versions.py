"""Which Ray this node runs, of which version, and whether the head's will take it. Never imports Ray.

    >>> find_ray(None, os.environ, User.invoking()).versions
    Versions(meshray='0.1.0', ray='2.60.0', python='3.11.7')

The Ray's own interpreter is asked, as the user who will run it: that takes a tenth of a second, and
it proves that this user may execute it.
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
from meshray.linux.user import User
from meshray.model.node import Versions
from meshray.model.release import PYTHON, RAY, python_digits, ray_difference, release

OLDEST_RAY = (2, 44)
#: What mends a version that is not the head's, on a machine that is to join.
MATCH_COMMAND = "meshray join --env match TOKEN"
#: The same on a node.
MATCH_AGAIN = "meshray leave, then meshray join --env match TOKEN"
#: A cold disk, a loaded machine.
_PROBE_TIMEOUT_S = 30
_SHEBANG = re.compile(rb"#!\s*(\S+)(?:\s+(\S+))?")
#: pip and uv write this where the interpreter's path is too long for a shebang line.
_LONG_SHEBANG = re.compile(rb"'''exec'\s+\"?([^\"\n]+?)\"?\s+\"\$0\"")
# A package's record may outlive the package: both are looked for.
# `missing`: without these the dashboard, from which the node table is read, does not start.
# `options`: of Ray's commands, as its source names them; to import Ray would take seconds.
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
        ray: the program.
        python: the interpreter that it runs on.
        missing: packages that ``ray[default]`` brings and that are not there; the head needs them.
        options: of `ray start` and Ray's other commands; empty: not known.
    """

    ray: Path
    python: Path
    versions: Versions
    missing: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def activation(self) -> dict[str, str]:
        """The variables that an activated environment has; none where Ray is in no environment. Looks at files."""
        top = self.ray.parent.parent
        if (top / "pyvenv.cfg").is_file():
            return {"VIRTUAL_ENV": str(top)}
        if (top / "conda-meta").is_dir():
            return {"CONDA_PREFIX": str(top), "CONDA_DEFAULT_ENV": top.name}
        return {}


def find_ray(explicit: str | None, environ: Mapping[str, str], user: User) -> RayInstallation:
    """The Ray to run: the one that was named, else the one beside meshray, else the user's own.

    Args:
        explicit: ``--ray``: the program, or the folder of its virtual environment.
        environ: MESHRAY_RAY and PATH are looked at.
        user: as whom it will run.

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
                hint="--ray PATH names the program `ray` or the virtual environment that holds it",
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
    """What kind of Ray this program is. Raises MeshrayError where this user cannot run it."""
    python = _interpreter(program, user)
    if python is None:
        raise MeshrayError(
            "ray_unusable",
            f"cannot tell on which Python {program} runs: it is neither a Python script nor beside a python",
            hint="--ray /path/to/venv/bin/ray",
        )
    answer = _ask(program, python, user)
    try:
        ray, version, missing, options = json.loads(answer)
        versions = Versions(meshray=__version__, ray=str(ray), python=str(version))
        found = RayInstallation(program, python, versions, tuple(map(str, missing)), tuple(map(str, options)))
    except (ValueError, TypeError):
        raise MeshrayError(
            "ray_unusable", f"{python} does not say which Ray it has", hint=f"{python} -c 'import ray'"
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

    An unknown option that resembles none is left to Ray: what is known of its options comes from its source.

    Raises:
        UsageError: ``unknown_ray_option``.
    """
    import difflib

    for argument in args:
        option = argument.partition("=")[0]
        if not option.startswith("--") or option.replace("_", "-") in installation.options:
            continue
        meant = next(iter(difflib.get_close_matches(option, installation.options, 1, cutoff=0.8)), "")
        if meant:
            raise UsageError("unknown_ray_option", f"ray start has no option {option[:60]}", hint=f"it has {meant}")


def compare(mine: Versions, head: Versions, hint: str = MATCH_COMMAND) -> None:
    """Whether the head's Ray takes this one: the same Ray, and the same Python as far as Ray cares.

    A head whose versions are not known (it runs no Ray) takes every node.

    Args:
        hint: the command that mends a difference.

    Raises:
        MeshrayError: ``version_mismatch``.
    """
    difference = ray_difference(mine, head)
    if difference == RAY:
        raise MeshrayError(
            "version_mismatch",
            f"the head runs Ray {head.ray}, this node has {f'Ray {mine.ray}' if mine.ray else 'no Ray'}; "
            "Ray demands the same version on every node",
            hint=hint,
        )
    if difference == PYTHON:
        needed = ".".join(map(str, release(head.python)[: python_digits(head.ray)]))
        raise MeshrayError(
            "version_mismatch",
            f"the head runs Ray {head.ray} on Python {head.python}, this node has Python {mine.python}; "
            f"Ray {head.ray} demands Python {needed} on every node",
            hint=hint,
        )


def _candidates(environ: Mapping[str, str], user: User) -> Iterator[Path]:
    yield from (folder / "ray" for folder in folders() if (folder / "ray").is_file())
    # Behind sudo PATH is root's; the user's own folder of programs is the best guess at theirs.
    path = os.pathsep.join([environ.get("PATH", os.defpath), str(user.home / ".local/bin")])
    found = shutil.which("ray", path=path)
    if found:
        yield Path(found).absolute()


def _program(path: Path) -> Path | None:
    tries = (path / "bin/ray", path / "ray") if path.is_dir() else (path,)
    return next((item for item in tries if item.is_file()), None)


def _interpreter(program: Path, user: User) -> Path | None:
    try:
        with program.open("rb") as file:
            start = file.read(4096)
    except OSError as error:
        raise _not_executable(program, user, str(error.strerror)) from None
    long_form = _LONG_SHEBANG.search(start)
    short_form = _SHEBANG.match(start)
    named = os.fsdecode((long_form or short_form).group(1)) if long_form or short_form else ""  # type: ignore[union-attr]
    if "python" in Path(named).name:
        return Path(named)
    # `#!/usr/bin/env python3`, or a wrapper: the interpreter of the same folder.
    return next((item for name in ("python3", "python") if (item := program.parent / name).exists()), None)


def _ask(program: Path, python: Path, user: User) -> str:
    environ = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    environ["HOME"] = str(user.home)
    try:
        answer = subprocess.run(
            [str(python), "-c", _PROBE],
            cwd="/",
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
            **user.identity,
        )
    except PermissionError:
        raise _not_executable(program, user, f"{python} may not be executed") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MeshrayError(
            "ray_unusable", f"{python}, on which {program} runs, does not start: {error}", hint="--ray PATH"
        ) from None
    if answer.returncode != 0:
        # An interpreter that may be executed but whose libraries may not be read ends here.
        raise _not_executable(program, user, (answer.stderr.strip().splitlines() or ["it ended without a word"])[-1])
    return str(answer.stdout)


def _not_executable(program: Path, user: User, reason: str) -> MeshrayError:
    return MeshrayError(
        "ray_not_executable",
        f"{user.name} cannot run the Ray at {program}: {reason}",
        hint=f"Ray runs as {user.name}, not as root: install it where {user.name} may read it, then --ray PATH",
    )
