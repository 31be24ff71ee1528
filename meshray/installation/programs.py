"""Where programs are that belong to this installation: beside its interpreter and, for the copy that root runs, in the
environment from which it was copied.

>>> folders()
[PosixPath('/usr/local/lib/meshray/0.1.0-3f5a/bin'), PosixPath('/home/ann/ray/bin')]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

#: In a copy of meshray: where it came from (`meshray.runtime.privileged.install`).
ORIGIN = "origin.json"


def folders() -> list[Path]:
    """The folders, this installation's own first."""
    own = Path(sys.executable).parent
    origin = origin_of(Path(sys.prefix))
    return [own, origin] if origin is not None else [own]


def user_python() -> Path:
    """The interpreter of the environment that the user made, for messages."""
    origin = origin_of(Path(sys.prefix))
    return origin / "python" if origin is not None else Path(sys.executable)


def origin_of(copy: Path) -> Path | None:
    """The folder of programs of the environment from which this copy was made; None: it is no copy."""
    try:
        return Path(str(json.loads((copy / ORIGIN).read_text())["origin"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
