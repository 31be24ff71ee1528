"""The last map on disk, so that a node comes up while the coordinator is away.

A damaged cache is a loud error that keeps the file, never a silent empty start.
"""

from __future__ import annotations

import json

from meshray.errors import MeshrayError, UsageError
from meshray.model import wire
from meshray.model.meshmap import MeshMap
from meshray.runtime.files import make_folder, write_atomically
from meshray.settings import Home


def load_map(home: Home) -> MeshMap:
    """Reads map.json.

    Raises:
        MeshrayError: ``not_enrolled`` where there is none, ``cache_damaged`` where it cannot be used.
    """
    path = home.map_cache
    try:
        return MeshMap.from_json(wire.decode(path.read_bytes()))
    except FileNotFoundError:
        raise MeshrayError(
            "not_enrolled", "this machine has no map of a mesh", hint="meshray init, or meshray join TOKEN"
        ) from None
    except (OSError, wire.WireError, UsageError, ValueError) as error:
        raise MeshrayError(
            "cache_damaged",
            f"the cached map {path} is damaged ({error}); it was kept as it is",
            hint="meshray leave, then join again with a new token",
        ) from None


def save_map(home: Home, mesh_map: MeshMap) -> None:
    """Writes map.json, atomically, mode 0600."""
    make_folder(home.state)
    write_atomically(home.map_cache, json.dumps(mesh_map.to_json()))
