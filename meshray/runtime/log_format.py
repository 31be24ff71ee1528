"""The form of log lines: what nodes say in them stays within its line and reaches no terminal as a command.

>>> handler.setFormatter(LogFormatter())
"""

from __future__ import annotations

import logging
from copy import copy
from types import TracebackType

from meshray.model.printable import escaped, escaped_lines

_FORM = "%(asctime)s %(levelname)s %(message)s"


class LogFormatter(logging.Formatter):
    """Time, level and message; tracebacks keep their lines."""

    def __init__(self) -> None:
        super().__init__(_FORM)

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text."""
        own = copy(record)
        own.exc_text = None  # another handler may have formatted the traceback in its way
        return super().format(own)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line of the record."""
        record.message = escaped(record.message)
        return super().formatMessage(record)

    def formatException(
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
    ) -> str:
        """Return the traceback."""
        return escaped_lines(super().formatException(ei))


def log_to(handler: logging.Handler) -> None:
    """Sends what this process logs to the handler, from INFO on."""
    handler.setFormatter(LogFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
