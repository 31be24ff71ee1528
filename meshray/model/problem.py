"""A failure of a part of a node, or a fault of a node."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """A fault, as status reports it.

    Attributes:
        code: the code of the doctor's check about it, if there is one.
        text: one sentence.
        node: the node that it concerns; None: the mesh.
        fix: the next command, with the node on which to run it if that is another.
    """

    code: str = ""
    text: str = ""
    node: str | None = None
    fix: str = ""
