"""The folder of an environment, the commands of uv that build it, and the meaning of uv's errors (pure).

>>> key(Environment("2.60.0", "3.11.7"), "linux-x86_64")
'3f0c…'
>>> pythons(Environment("2.60.0", "3.11.7"))
('3.11.7', '3.11')
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from meshray.errors import MeshrayError
from meshray.model.environment import Environment
from meshray.model.node import Versions
from meshray.model.release import PATCH, python_digits, ray_difference, release

#: The file in a complete environment that says what it was built for.
RECORD = "meshray-environment.json"
#: Incremented when a folder of the same key must have other contents.
_FORMAT = 2
#: Variables that would make uv install packages elsewhere.
_DIVERTING = frozenset(
    {
        *("UV_SYSTEM_PYTHON", "UV_BREAK_SYSTEM_PACKAGES", "UV_PROJECT_ENVIRONMENT", "UV_PYTHON", "UV_PROJECT"),
        *("UV_WORKING_DIR", "UV_WORKING_DIRECTORY", "UV_VENV_CLEAR", "UV_VENV_SEED"),
        *("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP"),
    }
)
#: Variables that uv receives if another user (sudo) starts it.
_PASSED_ON = re.compile(
    r"UV_\w+|(?i:https?_proxy|all_proxy|no_proxy)|SSL_CERT_(FILE|DIR)|SSL_CLIENT_CERT|PATH|LANG|LC_\w+|TMPDIR"
    r"|XDG_(CACHE|CONFIG|DATA)_HOME|NETRC"
)
_SECRET = re.compile(r"://[^/@\s]*@")
_MAX_LINES = 4


def key(environment: Environment, platform: str) -> str:
    """Return the name of an environment's folder: a hash of Ray, Python, requirements and platform."""
    parts = [_FORMAT, environment.ray, environment.python, environment.requirements.split("\n"), platform]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def cache_folder(environ: Mapping[str, str], home: Path) -> Path:
    """Return the folder of all environments of a user.

    Args:
        environ: XDG_CACHE_HOME is used if it is absolute, as its specification says.
        home: the home folder of the user.
    """
    chosen = environ.get("XDG_CACHE_HOME", "")
    cache = Path(chosen) if chosen.startswith("/") else home / ".cache"
    return cache / "meshray" / "envs"


def pythons(environment: Environment) -> tuple[str, ...]:
    """Return the Pythons to try, the best first: the exact one, then another patch level if this Ray accepts it."""
    if python_digits(environment.ray) > 2:
        return (environment.python,)
    return (environment.python, ".".join(map(str, release(environment.python)[:2])))


def create_command(uv: str, folder: Path, python: str) -> list[str]:
    """Return the command that creates an empty environment. It can be moved, because its scripts find Python beside
    them."""
    return [uv, "venv", "--no-project", "--relocatable", "--python", python, str(folder)]


def fill_command(uv: str, folder: Path, environment: Environment, requirements: Path) -> list[str]:
    """Return the command that installs Ray and the recorded requirements."""
    wanted = [f"ray[default,serve]=={environment.ray}"]
    if environment.requirements:
        wanted += ["--requirements", str(requirements)]
    return [uv, "pip", "install", "--python", str(folder / "bin/python"), *wanted]


def uv_environment(environ: Mapping[str, str], user_variables: Mapping[str, str], *, is_other: bool) -> dict[str, str]:
    """Return uv's environment variables: the user's settings of uv, proxies and indexes, without diverting ones.

    Args:
        environ: the environment variables of meshray.
        user_variables: variables of the user, such as HOME.
        is_other: whether root runs meshray for the user.
    """
    passed = {
        name: value
        for name, value in environ.items()
        if name not in _DIVERTING and not name.startswith("MESHRAY_") and (not is_other or _PASSED_ON.fullmatch(name))
    }
    return {**passed, **user_variables, "UV_NO_PROGRESS": "1", "NO_COLOR": "1"}


def require_match(found: Versions, wanted: Environment) -> None:
    """Raise MeshrayError ``environment_differs`` if an environment does not have the wanted versions."""
    difference = ray_difference(found, Versions(ray=wanted.ray, python=wanted.python))
    if difference not in ("", PATCH):
        raise MeshrayError(
            "environment_differs",
            f"the environment has Ray {found.ray} on Python {found.python} instead of Ray {wanted.ray} on "
            f"Python {wanted.python}",
            hint="do the recorded requirements or UV_CONSTRAINT request another one? on the head: meshray env lock",
        )


def main_lines(output: str) -> str:
    """Return the important lines of uv's output as one line, without credentials in URLs."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith(("error:", "cause:", "×", "╰─▶", "hint:", "help:"))]
    return _SECRET.sub("://", "; ".join(line.rstrip(".") for line in (causes or lines)[:_MAX_LINES]))[:600]


def is_disk_full(output: str) -> bool:
    """Return whether uv reported a full disk."""
    return "os error 28" in output or "No space left" in output or "os error 122" in output


def disk_full_error(folder: Path) -> MeshrayError:
    """Return the error for a full disk."""
    return MeshrayError(
        "environment_no_room",
        f"no space left to build Ray's environment in {folder} (or in uv's cache); all parts of it were removed",
        hint="free about 1 GiB; or XDG_CACHE_HOME=FOLDER builds it elsewhere, UV_CACHE_DIR for uv",
    )


def python_not_found(environment: Environment, output: str) -> MeshrayError:
    """Return the error for a Python that uv neither has nor can download."""
    exact = environment.python
    return MeshrayError(
        "python_not_found",
        f"uv did not find Python {' or '.join(pythons(environment))}, which the head's Ray {environment.ray} needs: "
        f"{main_lines(output)}",
        hint=f"uv python install {exact}, then retry; or put a Python {exact} on PATH",
    )


def install_failed(command: Sequence[str], output: str) -> MeshrayError:
    """Return the error for packages that uv cannot install."""
    wanted = next((argument for argument in command if argument.startswith("ray[")), "the packages")
    return MeshrayError(
        "environment_failed",
        f"uv could not install {wanted} and what the head recorded: {main_lines(output)}",
        hint="is the package index reachable (UV_DEFAULT_INDEX, HTTPS_PROXY)? else, on the head: meshray env lock",
    )
