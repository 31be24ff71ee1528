"""Find the programs of this installation: beside its interpreter and, for root's copy, in the environment from which it
was copied.

>>> folders()
[PosixPath('/usr/local/lib/meshray/0.1.0-3f5a/bin'), PosixPath('/home/ann/ray/bin')]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

#: The file in a copy of meshray that says where it came from (`meshray.runtime.privileged.install`).
ORIGIN = "origin.json"


def folders() -> list[Path]:
    """Return the folders, the one of this installation first."""
    own = Path(sys.executable).parent
    origin = origin_of(Path(sys.prefix))
    return [own, origin] if origin is not None else [own]


def user_python() -> Path:
    """Return the interpreter of the user's environment, for messages."""
    origin = origin_of(Path(sys.prefix))
    return origin / "python" if origin is not None else Path(sys.executable)


def origin_of(copy: Path) -> Path | None:
    """Return the programs folder of the environment from which this copy was made, or None if it is not a copy."""
    try:
        return Path(str(json.loads((copy / ORIGIN).read_text())["origin"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
