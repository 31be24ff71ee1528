"""The errors of meshray, as one tree with exit codes.

    MeshrayError                 1   something failed
    ├── UsageError               2   the user's input is wrong; nothing was changed
    ├── UnhealthyError           3   it works, but a check fails
    ├── RefusedError             4   the coordinator refused this token, name or node
    ├── UnreachableError         5   agent or coordinator does not answer
    └── InterruptedByUser      130   Ctrl-C or SIGTERM

An error has the subject, the cause and the next command:

    >>> error = RefusedError("token_expired", "the token expired 3 h ago", hint="meshray token create")
    >>> str(error), error.exit_code
    ('the token expired 3 h ago', 4)
"""

from __future__ import annotations

from collections.abc import Mapping


class MeshrayError(Exception):
    """Something failed.

    Attributes:
        code: a stable machine-readable word (``token_expired``), shown in ``--json``.
        message: subject and cause in one line, without secrets.
        hint: the next command or step; may be empty.
    """

    exit_code = 1

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def to_json(self) -> dict[str, str]:
        """Return the ``error`` object of ``--json`` and of the coordinator's API."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


class UsageError(MeshrayError):
    """The input is wrong; nothing was changed."""

    exit_code = 2


class UnhealthyError(MeshrayError):
    """It works, but a check fails."""

    exit_code = 3


class RefusedError(MeshrayError):
    """The coordinator refused this token, name or node."""

    exit_code = 4


class UnreachableError(MeshrayError):
    """The agent or the coordinator does not answer."""

    exit_code = 5


class InterruptedByUser(MeshrayError):
    """Ctrl-C or SIGTERM interrupted a command."""

    exit_code = 130


_BY_EXIT_CODE: dict[int, type[MeshrayError]] = {
    kind.exit_code: kind
    for kind in (
        MeshrayError,
        UsageError,
        UnhealthyError,
        RefusedError,
        UnreachableError,
        InterruptedByUser,
    )
}


def error_from_json(value: Mapping[str, object], exit_code: int) -> MeshrayError:
    """Return the error that another process (agent, coordinator) reported, as an exception."""
    kind = _BY_EXIT_CODE.get(exit_code, MeshrayError)
    return kind(
        str(value.get("code", "failed")),
        str(value.get("message", "no message was given")),
        hint=str(value.get("hint", "")),
    )
