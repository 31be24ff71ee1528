"""The user's environment variables for Ray: those of the session, and those of ``--env`` (pure).

>>> select_session({"HF_HOME": "/data/hf", "EDITOR": "vi"})
{'HF_HOME': '/data/hf'}
>>> parse_assignments(["EPOCHS=3", "HF_TOKEN"], {"HF_TOKEN": "hf_1"})
{'EPOCHS': '3', 'HF_TOKEN': 'hf_1'}

sudo, systemd and a reboot lose a session's environment. So `init`, `join` and `up` record the variables that Ray's
programs use, and Ray always starts with them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta, Struct

from meshray.errors import UsageError

#: The limits of the record: variables, and characters of one value (PATH with a cluster's modules is long).
MOST_VARIABLES, LONGEST_VALUE = 128, 8192
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
#: Variables of a session that Ray's programs use: accelerators, libraries and caches, network, installers, locale.
_KEPT = re.compile(
    r"PATH|LD_LIBRARY_PATH|VIRTUAL_ENV|CONDA_(PREFIX|DEFAULT_ENV)|LANG|LC_\w+|TZ"
    r"|(?i:(http|https|ftp|all|no)_proxy)|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE"
    r"|(RAY|CUDA|NVIDIA|HIP|ROCR|ROCM|HSA|HABANA|ASCEND|XLA|JAX|TPU|ONEAPI|NCCL|GLOO|UCX|TP|OMP|MKL|OPENBLAS)_\w+"
    r"|(HF|HUGGINGFACE|TRANSFORMERS|TORCH|PYTORCH|VLLM|SGLANG|TRITON|WANDB|MLFLOW|UV|PIP)_\w+"
)
#: Variables of one session or process, and those that meshray sets.
_DROPPED = re.compile(
    r"SUDO_\w+|MESHRAY_\w+|XDG_\w+|DBUS_\w+|MAIL|OLDPWD|PWD|INVOCATION_ID|JOURNAL_STREAM|NOTIFY_SOCKET|MEMORY_PRESSURE_\w+"
    r"|RAY_ADDRESS|RAY_API_SERVER_ADDRESS|RAY_AUTH_\w+|RAY_JOB_\w+|RAY_NODE_ID|RAY_RAYLET_PID|RAY_REDIS_ADDRESS"
)
_Variables = Annotated[dict[str, Annotated[str, Meta(max_length=LONGEST_VALUE)]], Meta(max_length=MOST_VARIABLES)]
_HINT = "--env NAME=VALUE; or --env NAME, which copies the value from your environment"


class UserEnvironmentForm(Struct):
    """The variables in node.json. An older meshray recorded none."""

    session_environment: _Variables = {}
    environment: _Variables = {}


@dataclass(frozen=True)
class UserEnvironment:
    """The user's variables for Ray.

    Attributes:
        session: variables of the session that ran `init`, `join` or `up`.
        chosen: variables of ``--env`` and ``--env-file``.
    """

    session: Mapping[str, str] = field(default_factory=dict, repr=False)
    chosen: Mapping[str, str] = field(default_factory=dict, repr=False)

    def form(self) -> UserEnvironmentForm:
        """Return the form in node.json, which only root or the node's user can read."""
        return UserEnvironmentForm(dict(self.session), dict(self.chosen))

    @classmethod
    def of(cls, form: UserEnvironmentForm) -> UserEnvironment:
        """Return the value of this form."""
        return cls(form.session_environment, form.environment)

    @property
    def names(self) -> list[str]:
        """The variables of ``--env``; their values may be secrets."""
        return sorted(self.chosen)

    @property
    def variables(self) -> dict[str, str]:
        """All variables; chosen ones take precedence."""
        return {**self.session, **self.chosen}


def is_dropped(name: str) -> bool:
    """Return whether this variable must not be passed to Ray."""
    return _DROPPED.fullmatch(name) is not None


def select_session(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a session that Ray's programs use, at most `MOST_VARIABLES`."""
    kept = {
        name: value
        for name, value in sorted(environ.items())
        if _KEPT.fullmatch(name) and not is_dropped(name) and len(value) <= LONGEST_VALUE and "\0" not in value
    }
    return dict(list(kept.items())[:MOST_VARIABLES])


def parse_assignments(items: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Parse ``NAME=VALUE``, and ``NAME`` with the value of ``environ``.

    Raises:
        UsageError: the name of the item, never its value.
    """
    found: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not _NAME.fullmatch(name):
            raise UsageError("bad_env", f"--env: {name[:80]!r} is not the name of a variable", hint=_HINT)
        if not equals and name not in environ:
            raise UsageError("bad_env", f"--env {name}: your environment has no {name}", hint=_HINT)
        found[name] = value if equals else environ[name]
    return _checked(found, "--env")


def parse_file(text: str, file: str) -> dict[str, str]:
    """Parse the lines of an ``--env-file``: ``NAME=VALUE`` with the quotes of a shell. ``export`` and comments are
    allowed; substitutions are not performed.

    Raises:
        UsageError: the number of the line, never its value.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, words = _words(line)
        if not words:
            continue
        if len(words) != 1 or not _NAME.fullmatch(name):
            raise UsageError(
                "bad_env_file",
                f"{file}, line {number}: not NAME=VALUE",
                hint="one NAME=VALUE per line; a value with spaces needs quotes",
            )
        found[name] = words[0].partition("=")[2]
    return _checked(found, file)


def _words(line: str) -> tuple[str, list[str]]:
    """Return the name before the first "=", and the words of the line; an empty name where it is not an assignment."""
    try:
        words: Sequence[str] = shlex.split(line, comments=True)
    except ValueError:  # a quote is not closed
        return "", [line]
    words = words[1:] if len(words) > 1 and words[0] == "export" else words
    return (words[0].partition("=")[0] if words and "=" in words[0] else ""), list(words)


def _checked(found: Mapping[str, str], said_by: str) -> dict[str, str]:
    if len(found) > MOST_VARIABLES:
        raise UsageError("bad_env", f"{said_by}: at most {MOST_VARIABLES} variables are recorded", hint=_HINT)
    for name, value in found.items():
        if is_dropped(name):
            raise UsageError("owned_variable", f"{said_by}: meshray sets {name} itself", hint=f"omit {name}")
        if len(value) > LONGEST_VALUE or "\0" in value:
            raise UsageError(
                "bad_env",
                f"{said_by}: the value of {name} is longer than {LONGEST_VALUE} characters, or not text",
                hint="put the value in a file, and the file's name in the variable",
            )
    return dict(found)
