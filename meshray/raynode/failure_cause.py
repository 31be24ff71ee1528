r"""Find the cause of Ray's end in its log, as one line (pure).

>>> cause("Traceback …\nRuntimeError: Version mismatch: …")
'RuntimeError: Version mismatch: …'
"""

from __future__ import annotations

import re
import signal

#: The size of the log's end that is read, bytes.
TAIL_BYTES = 16 * 1024
_LONGEST = 300
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_EXCEPTION = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception|Timeout)\b.*")
_CLICK_ERROR = re.compile(r"Error: .*")
#: `ray start --block` lists what ended under it as "  raylet [exit code=1]".
_ENDED_CHILD = re.compile(r"\s*(\w+) \[exit code=(-?\d+)\]")
#: Lines that are never the cause.
_NOISE = re.compile(
    r"\t(INFO|SUCC) \S+ -- |remaining processes will be killed|some ray subprocesses exited|network_util.cc"
)


def cause(log: str, exit_code: int | None = None) -> str:
    """Return the most useful line: the last exception, or a process that ended, or the last line.

    Args:
        exit_code: the exit code of `ray start`, if known; negative for a signal.
    """
    if exit_code is not None and exit_code < 0:
        return f"`ray start` was ended by signal {-exit_code} ({signal.strsignal(-exit_code)})"
    error = last_error(log)
    if error:
        return error
    lines = _lines(log)
    for line in reversed(lines):
        child = _ENDED_CHILD.fullmatch(line)
        if child:
            return (
                f"Ray's {child.group(1)} ended with exit code {child.group(2)}; see ray.log and Ray's own session logs"
            )
    informative = [line for line in lines if not _NOISE.search(line)]
    return _cut(informative[-1].strip()) if informative else "`ray start` ended without a message"


def last_error(log: str) -> str:
    """Return the last exception in the log, or the error of `ray start` itself; empty if there is none."""
    lines = _lines(log)
    for pattern in (_EXCEPTION, _CLICK_ERROR):
        for line in reversed(lines):
            if pattern.fullmatch(line):
                return _cut(line.removeprefix("Error: "))
    return ""


def _lines(log: str) -> list[str]:
    return [line for line in (_COLOUR.sub("", raw).rstrip() for raw in log.splitlines()) if line.strip()]


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
