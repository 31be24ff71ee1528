"""A question that the coordinator passes on to agents, and what they say to it.

    coordinator → {"type": "ask", "id": "…", "op": "survey"}
    agent       → {"type": "answer", "id": "…", "answer": {…}}    or, where it cannot,    "error": "why"

>>> Answer.from_json(Answer("7f", {"name": "gpu-1"}).to_json()).answer
{'name': 'gpu-1'}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from meshray.model import wire

#: What a node found out about itself and its peers.
SURVEY = "survey"
#: The node is to change its key; it answers with the new one.
ROTATE_KEY = "rotate_key"
#: The longest answer of one node. A peer takes about 600 bytes of a survey, so this is enough for 400 of them.
MAX_ANSWER_BYTES = 256 * 1024
#: Nobody waits longer for an answer, seconds.
MAX_WAIT_S = 15
_ERROR_CHARACTERS = 300


@dataclass(frozen=True)
class Question:
    """What one agent is asked."""

    id: str
    op: str

    def to_json(self) -> dict[str, object]:
        """The message to the agent."""
        return {"type": "ask", "id": self.id, "op": self.op}

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Question:
        """The inverse of `to_json`. Raises WireError."""
        return cls(wire.text(value, "id", 32), wire.text(value, "op", 32))


@dataclass(frozen=True)
class Answer:
    """What one agent says: the answer, or why it has none."""

    id: str
    answer: Mapping[str, object] = field(default_factory=dict)
    error: str = ""

    def to_json(self) -> dict[str, object]:
        """The message to the coordinator, never longer than `MAX_ANSWER_BYTES`."""
        error = self.error[:_ERROR_CHARACTERS]
        value: dict[str, object] = {"type": "answer", "id": self.id, "answer": self.answer, "error": error}
        if len(json.dumps(value)) <= MAX_ANSWER_BYTES:
            return value
        return Answer(self.id, error=f"its answer is longer than {MAX_ANSWER_BYTES // 1024} KiB").to_json()

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Answer:
        """The inverse of `to_json`. Raises WireError."""
        error = wire.text(value, "error", _ERROR_CHARACTERS, "")
        return cls(wire.text(value, "id", 32), wire.mapping(value, "answer"), error)
