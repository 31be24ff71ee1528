"""The answer of a command, for scripts and for users; `output` writes it.

@dataclass(frozen=True)
class PingResult(Result[PingAnswer]):
    def text(self, paint: Paint = plain) -> str:
        return f"{self.answer.node}: {self.answer.received} of {self.answer.sent} answered"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Generic, TypeVar

from meshray.cli.tables import Paint, plain
from meshray.model.printable import escaped_all, escaped_lines

#: Exit code for "works but unhealthy" (status, doctor, ping without an answer).
UNHEALTHY = 3

A = TypeVar("A")
R = TypeVar("R", bound="Result[Any]")


@dataclass(frozen=True)
class Result(Generic[A]):
    """A command's answer. Further fields of a subclass only concern its text.

    Attributes:
        answer: the message, as described in `meshray.protocol.answers`.
        received: the message as another meshray sent it, which may have more fields; None: it is this one's own.
        keeps_lines: the answer has a ``text`` of several lines.
    """

    keeps_lines: ClassVar[bool] = False
    answer: A = field(repr=False)
    received: Mapping[str, object] | None = field(default=None, kw_only=True)

    @property
    def exit_code(self) -> int:
        """0, unless the answer itself reports a fault."""
        return 0

    def to_json(self) -> dict[str, object]:
        """Return the fields of ``--json``, without the envelope."""
        from meshray.protocol.codec import to_json

        return to_json(self.answer) if self.received is None else dict(self.received)

    def text(self, paint: Paint = plain) -> str:
        """Return the answer as text for a user."""
        raise NotImplementedError

    def harmless(self: R) -> R:
        """Return the result with everything escaped that a terminal would interpret, and each text on one line.

        Reports of other nodes reach a terminal only through this method.
        """
        shown = replace(self, **{item.name: escaped_all(getattr(self, item.name)) for item in fields(self)})
        if not self.keeps_lines:
            return shown
        from msgspec.structs import replace as with_fields

        lines = escaped_lines(self.answer.text)
        return replace(shown, answer=with_fields(shown.answer, text=lines))
