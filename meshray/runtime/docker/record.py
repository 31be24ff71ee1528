"""The record of a node in a container, on the machine outside: which container it is.

>>> load(home)
Record(engine='unix:///var/run/docker.sock', container='5d41…', name='meshray-gpu-1', …)
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.linux.files import write_atomically


@dataclass(frozen=True)
class Record:
    """The container of this machine's node.

    Attributes:
        engine: the address of its Docker engine.
        container: its id.
        name: its name, as `docker ps` shows it.
        volume: the named volume with the node's state.
        python: path of the interpreter in it that has meshray.
        ephemeral: the node leaves the mesh when it goes down.
    """

    engine: str
    container: str
    name: str
    volume: str
    python: str
    ephemeral: bool = False


def load(home: Home) -> Record | None:
    """Return the record; None if this machine has no node in a container.

    Raises:
        MeshrayError: ``state_damaged``.
    """
    try:
        found = json.loads(home.container.read_text())
    except FileNotFoundError:
        return None
    except (ValueError, UnicodeDecodeError):
        found = None
    known = {field.name: type(field.default) if field.name == "ephemeral" else str for field in fields(Record)}
    if not isinstance(found, dict) or any(not isinstance(found.get(name), kind) for name, kind in known.items()):
        raise MeshrayError(
            "state_damaged",
            f"{home.container} is damaged: nobody knows in which container this node is",
            hint="docker ps --all --filter label=io.meshray; docker rm --force its name; meshray leave --yes",
        )
    return Record(**{name: found[name] for name in known})


def save(home: Home, record: Record) -> None:
    """Write the record."""
    write_atomically(home.container, json.dumps(asdict(record)))
