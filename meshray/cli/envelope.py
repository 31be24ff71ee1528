"""The envelope of everything that ``--json`` prints.

>>> print(dumps(answer({"token": "meshray1_…"})))
{"schema": 1, "token": "meshray1_…"}
>>> print(dumps(failure(MeshrayError("agent_down", "the agent does not run", hint="meshray up"))))
{"schema": 1, "error": {"code": "agent_down", "message": "the agent does not run", "hint": "meshray up"}}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from meshray.errors import MeshrayError

#: It increases when a field changes its meaning or is removed; new fields do not change it.
SCHEMA = 1
#: JSON itself escapes only the first 32 characters; terminals interpret more of them, and some that change the text
#: direction.
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


def answer(fields: Mapping[str, object]) -> dict[str, object]:
    """Return a command's answer in its envelope."""
    return {"schema": SCHEMA, **{key: value for key, value in fields.items() if key != "schema"}}


def failure(error: MeshrayError) -> dict[str, object]:
    """Return a command's error in its envelope."""
    return {"schema": SCHEMA, "error": error.to_json()}


def dumps(value: Mapping[str, object]) -> str:
    """Return one line of JSON, so that a stream of answers (``--watch``) can be read line by line."""
    return _UNPRINTABLE.sub(_as_json, json.dumps(value, ensure_ascii=False))


def _as_json(found: re.Match[str]) -> str:
    letter = found.group()
    return letter if letter.isprintable() else json.dumps(letter)[1:-1]
