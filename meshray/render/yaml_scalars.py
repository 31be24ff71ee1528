r"""Scalars of YAML, for files that users read and edit.

>>> print(quoted('on "gpu-1": 90 %'), literal('up{job="ray"} == 0'))
"on \"gpu-1\": 90 %" 'up{job="ray"} == 0'
"""

from __future__ import annotations

import json
from collections.abc import Callable

#: JSON leaves these characters as they are, but YAML rejects them or reads them as line breaks.
_ESCAPED = str.maketrans(
    {number: f"\\u{number:04x}" for number in (*range(0x7F, 0xA0), 0x2028, 0x2029, 0xFEFF, 0xFFFE, 0xFFFF)}
)


def quoted(text: str) -> str:
    """Return any text as a double-quoted scalar on one line."""
    return json.dumps(text, ensure_ascii=False).translate(_ESCAPED)


def literal(text: str) -> str:
    """Return printable text as a single-quoted scalar on one line, in which backslashes and double quotes are literal.

    Raises:
        ValueError: the text is not printable.
    """
    if not text.isprintable():
        raise ValueError(f"{text!r} is not printable")
    return "'" + text.replace("'", "''") + "'"


def block(text: str, indent: int) -> str:
    """Return text as a block of lines that users can edit, or as a double-quoted scalar if a block would change it.

    Args:
        indent: of the field, in spaces.
    """
    lines = text.splitlines()
    if not all(line.strip() and line.isprintable() for line in lines) or "\n".join(lines) != text:
        return quoted(text)
    return "\n".join(["|2-", *(" " * (indent + 2) + line for line in lines)])


#: The filters for templates of YAML.
FILTERS: dict[str, Callable[..., str]] = {"quoted": quoted, "literal": literal, "block": block}
