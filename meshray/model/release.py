"""The parts of versions that matter to Ray (pure).

>>> release("2.60.0rc1")
(2, 60, 0)
>>> ray_difference(Versions(ray="2.60.0", python="3.11.7"), Versions(ray="2.60.0", python="3.11.9"))
'patch'
"""

from __future__ import annotations

import re

from meshray.model.node import Versions

#: From this version on Ray compares Python by its minor version if configured (RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL).
MINOR_MATCH_RELEASE = (2, 52)
#: From this version on Ray supports token authentication.
TOKEN_RELEASE = (2, 52)

RAY, PYTHON, PATCH = "ray", "python", "patch"


def release(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, for comparison: ``2.60.0rc1`` is (2, 60, 0)."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in numbers.group().split(".")) if numbers else ()


def python_digits(ray: str) -> int:
    """Return how many numbers of Python's version this Ray requires to be equal on all nodes, in its lenient mode."""
    return 2 if release(ray) >= MINOR_MATCH_RELEASE else 3


def ray_difference(own: Versions, head: Versions) -> str:
    """Return the most important difference between this node and the head; empty: none, or one is not known.

    `RAY` and `PYTHON` are refused; `PATCH` (of Python) is accepted.
    """
    if not head.ray:
        return ""
    if own.ray != head.ray:
        return RAY
    if not head.python or not own.python:
        return ""
    digits = python_digits(head.ray)
    if release(own.python)[:digits] != release(head.python)[:digits]:
        return PYTHON
    return PATCH if release(own.python) != release(head.python) else ""
