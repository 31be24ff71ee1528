"""What a part of a node could not do, or what is wrong with a node."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be.

    Attributes:
        code: of the doctor's check about it, where there is one.
        text: one sentence.
        node: the node that it concerns; None: the mesh.
        fix: the next command, with the node on which to run it where that is another.
    """

    code: str = ""
    text: str = ""
    node: str | None = None
    fix: str = ""
