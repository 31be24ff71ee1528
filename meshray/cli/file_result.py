"""The answer of the commands that print a file.

>>> FileResult(FileText("agent", "started\n")).text()
'started\n'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from meshray.cli.result import Result
from meshray.cli.tables import Paint, plain
from meshray.protocol.answers import FileText


@dataclass(frozen=True)
class FileResult(Result[FileText]):
    """``render``, ``completion`` and ``logs``: the text of a file."""

    keeps_lines: ClassVar[bool] = True

    def text(self, paint: Paint = plain) -> str:
        """Return the file."""
        return self.answer.text
