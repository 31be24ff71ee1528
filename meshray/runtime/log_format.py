"""The format of log lines. Text from other nodes stays within its line and reaches no terminal as a command.

>>> handler.setFormatter(formatter(os.environ))

MESHRAY_LOG          debug, info (the default), warning or error: the lowest level that is logged.
MESHRAY_LOG_FORMAT   text (the default) or json: one object a line, with time, level, logger, message and exception.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from copy import copy
from types import TracebackType

from meshray.errors import UsageError
from meshray.model.printable import escaped, escaped_lines

LEVEL, FORMAT = "MESHRAY_LOG", "MESHRAY_LOG_FORMAT"
_LEVELS = ("info", "debug", "warning", "error")
_TEXT, _JSON = _FORMATS = ("text", "json")
_FORM = "%(asctime)s %(levelname)s %(message)s"
#: sd-daemon(3): the priority of a line that goes to the journal, which notes the time itself.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class LogFormatter(logging.Formatter):
    """Time, level and message; tracebacks keep their lines."""

    def __init__(self, form: str = _FORM) -> None:
        super().__init__(form)

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text."""
        own = copy(record)
        own.exc_text = None  # another handler may have formatted the traceback differently
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


class JournalFormatter(LogFormatter):
    """The message, each line with the priority from which the journal derives its own levels."""

    def __init__(self) -> None:
        super().__init__("%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of the record."""
        priority = _PRIORITIES.get(record.levelno, 6)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


class JsonFormatter(logging.Formatter):
    """One object a line, ASCII only: control characters are JSON escapes."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON. The time is UTC as RFC 3339 has it."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        value = {
            "time": f"{seconds}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            value["exception"] = self.formatException(record.exc_info)
        return json.dumps(value)


def formatter(environ: Mapping[str, str], *, journal: bool = False) -> logging.Formatter:
    """Return the formatter that MESHRAY_LOG_FORMAT asks for.

    Args:
        journal: the lines go to the systemd journal.

    Raises:
        UsageError: MESHRAY_LOG_FORMAT holds another word.
    """
    if _setting(FORMAT, _FORMATS, environ) == _JSON:
        return JsonFormatter()
    return JournalFormatter() if journal else LogFormatter()


def require_valid(environ: Mapping[str, str]) -> None:
    """Raise UsageError if MESHRAY_LOG or MESHRAY_LOG_FORMAT holds an unknown word."""
    _setting(LEVEL, _LEVELS, environ)
    _setting(FORMAT, _FORMATS, environ)


def settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the two that are set."""
    return {name: environ[name] for name in (LEVEL, FORMAT) if environ.get(name)}


def set_levels(environ: Mapping[str, str]) -> None:
    """Log from the level of MESHRAY_LOG on in this process.

    Debug messages of libraries are always left out: netlink messages hold keys.

    Raises:
        UsageError: MESHRAY_LOG holds another word.
    """
    level = getattr(logging, _setting(LEVEL, _LEVELS, environ).upper())
    logging.getLogger().setLevel(max(level, logging.INFO))
    logging.getLogger("meshray").setLevel(level)


def error_of(line: str) -> str:
    """Return the error in a line of the agent's log, in either format; empty if it has none.

    >>> error_of('{"level": "error", "message": "the disk is full"}')
    'the disk is full'
    """
    if line.startswith("{"):
        try:
            value = json.loads(line)
        except ValueError:
            return ""
        return str(value.get("message", "")) if value.get("level") == "error" else ""
    if line.startswith("error: ") or " ERROR " in line:
        return line.removeprefix("error: ")
    return ""


def _setting(name: str, allowed: tuple[str, ...], environ: Mapping[str, str]) -> str:
    value = environ.get(name) or allowed[0]
    if value.lower() not in allowed:
        raise UsageError("bad_setting", f"{name} is {value!r}", hint=f"{name}={' or '.join(allowed)}")
    return value.lower()
