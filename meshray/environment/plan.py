"""Where an environment lies, how uv makes it, and what uv's complaints mean (pure).

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

#: In the folder of an environment that is complete: what it was built for.
RECORD = "meshray-environment.json"
#: Raised when a folder of the same key would have to look otherwise.
_FORM = 2
#: Of the user's environment, what would make uv put packages elsewhere than it is told.
_DIVERTING = frozenset(
    {
        *("UV_SYSTEM_PYTHON", "UV_BREAK_SYSTEM_PACKAGES", "UV_PROJECT_ENVIRONMENT", "UV_PYTHON", "UV_PROJECT"),
        *("UV_WORKING_DIR", "UV_WORKING_DIRECTORY", "UV_VENV_CLEAR", "UV_VENV_SEED"),
        *("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP"),
    }
)
#: What uv is told where another than its user starts it (sudo).
_PASSED_ON = re.compile(
    r"UV_\w+|(?i:https?_proxy|all_proxy|no_proxy)|SSL_CERT_(FILE|DIR)|SSL_CLIENT_CERT|PATH|LANG|LC_\w+|TMPDIR"
    r"|XDG_(CACHE|CONFIG|DATA)_HOME|NETRC"
)
_SECRET = re.compile(r"://[^/@\s]*@")
_LAST_WORDS = 4


def key(environment: Environment, platform: str) -> str:
    """The name of its folder: the same for the same Ray, Python, requirements and platform, and for no other."""
    said = [_FORM, environment.ray, environment.python, environment.requirements.split("\n"), platform]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:24]


def folder_of_all(environ: Mapping[str, str], home: Path) -> Path:
    """Where the environments of a user lie.

    Args:
        environ: XDG_CACHE_HOME counts where it is absolute, as its specification says.
        home: of the user.
    """
    chosen = environ.get("XDG_CACHE_HOME", "")
    cache = Path(chosen) if chosen.startswith("/") else home / ".cache"
    return cache / "meshray" / "envs"


def pythons(environment: Environment) -> tuple[str, ...]:
    """What uv is asked for, the best first: the very Python, else, where this Ray takes it, another patch level."""
    if python_digits(environment.ray) > 2:
        return (environment.python,)
    return (environment.python, ".".join(map(str, release(environment.python)[:2])))


def make_command(uv: str, folder: Path, python: str) -> list[str]:
    """An empty environment that may be moved: its scripts find their Python beside them."""
    return [uv, "venv", "--no-project", "--relocatable", "--python", python, str(folder)]


def fill_command(uv: str, folder: Path, environment: Environment, requirements: Path) -> list[str]:
    """Ray, and what was recorded beside it."""
    wanted = [f"ray[default,serve]=={environment.ray}"]
    if environment.requirements:
        wanted += ["--requirements", str(requirements)]
    return [uv, "pip", "install", "--python", str(folder / "bin/python"), *wanted]


def uv_environment(environ: Mapping[str, str], own: Mapping[str, str], *, is_other: bool) -> dict[str, str]:
    """uv's environment: the user's settings of uv, of proxies and of indexes, and nothing that leads it astray.

    Args:
        environ: in which meshray was called.
        own: HOME and the like of the user.
        is_other: root called, for the user.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if name not in _DIVERTING and not name.startswith("MESHRAY_") and (not is_other or _PASSED_ON.fullmatch(name))
    }
    return {**kept, **own, "UV_NO_PROGRESS": "1", "NO_COLOR": "1"}


def require_match(found: Versions, wanted: Environment) -> None:
    """Raises MeshrayError ``environment_differs`` where an environment is not what it was built for."""
    difference = ray_difference(found, Versions(ray=wanted.ray, python=wanted.python))
    if difference not in ("", PATCH):
        raise MeshrayError(
            "environment_differs",
            f"the environment has Ray {found.ray} on Python {found.python} instead of Ray {wanted.ray} on "
            f"Python {wanted.python}",
            hint="do the recorded requirements or UV_CONSTRAINT ask for another? on the head: meshray env lock",
        )


def told(words: str) -> str:
    """The end of what uv said, on one line and without what is secret in addresses."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith(("error:", "cause:", "×", "╰─▶", "hint:", "help:"))]
    return _SECRET.sub("://", "; ".join(line.rstrip(".") for line in (causes or lines)[:_LAST_WORDS]))[:600]


def is_full(words: str) -> bool:
    """Whether a disk was full."""
    return "os error 28" in words or "No space left" in words or "os error 122" in words


def no_room(folder: Path) -> MeshrayError:
    """The disk is full."""
    return MeshrayError(
        "environment_no_room",
        f"no room to build Ray's environment in {folder} (or in uv's own cache); nothing of it was left there",
        hint="make room: it needs about 1 GiB; or XDG_CACHE_HOME=FOLDER builds it elsewhere, UV_CACHE_DIR for uv",
    )


def no_python(environment: Environment, words: str) -> MeshrayError:
    """uv has no such Python and could not get it."""
    exact = environment.python
    return MeshrayError(
        "python_not_found",
        f"uv finds no Python {' or '.join(pythons(environment))}, which the head's Ray {environment.ray} needs: "
        f"{told(words)}",
        hint=f"uv python install {exact}, then again; or put a Python {exact} on PATH",
    )


def not_filled(command: Sequence[str], words: str) -> MeshrayError:
    """uv could not install what is wanted."""
    wanted = next((word for word in command if word.startswith("ray[")), "the packages")
    return MeshrayError(
        "environment_failed",
        f"uv could not install {wanted} and what the head recorded: {told(words)}",
        hint="is the package index reachable (UV_DEFAULT_INDEX, HTTPS_PROXY)? else, on the head: meshray env lock",
    )
