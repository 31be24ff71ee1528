"""A user's options of `ray start`, and their consequences (pure).

>>> object_store(("--object-store-memory=1000000000",), memory=0)
(1000000000, True)
"""

from __future__ import annotations

import re
from collections.abc import Sequence

#: Ray uses 30 % of the memory for its object store (DEFAULT_OBJECT_STORE_MEMORY_PROPORTION of ray_constants.py), and at
#: most 95 % of /dev/shm (ray._private.utils).
STORE_OF_MEMORY = 0.3
STORE_OF_SHM = 0.95
#: Ray refuses to start with a smaller one (OBJECT_STORE_MINIMUM_MEMORY_BYTES of ray_constants.py), bytes.
LEAST_STORE = 75 * 1024**2
#: Names and values of Ray's labels, and what may be before the slash in a name.
LABEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
LABEL_RESERVED_PREFIX = "ray.io"
LABEL_PREFIX = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


def value_of(arguments: Sequence[str], name: str) -> str:
    """Return the value of ``--name=value`` or ``--name value``, the last one given; empty if there is none."""
    found = ""
    for index, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option == name:
            found = value if equals else next(iter(arguments[index + 1 : index + 2]), "")
    return found


def object_store(arguments: Sequence[str], memory: int) -> tuple[int, bool]:
    """Return the bytes of Ray's object store, and whether the user set them.

    Args:
        memory: the memory of which Ray uses its share without a user's value, bytes.
    """
    given = value_of(arguments, "--object-store-memory")
    return (int(given), True) if given.isdecimal() else (int(memory * STORE_OF_MEMORY), False)
