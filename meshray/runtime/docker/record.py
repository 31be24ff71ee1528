"""What is remembered outside of a node in a container: where it is.

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
    """One container.

    Attributes:
        engine: the address of the Docker engine in which it is.
        container: its id.
        name: its name, as `docker ps` shows it.
        volume: the named volume with the node's state.
        python: the interpreter in it to which meshray belongs.
        ephemeral: the node leaves the mesh when it goes down.
    """

    engine: str
    container: str
    name: str
    volume: str
    python: str
    ephemeral: bool = False


def load(home: Home) -> Record | None:
    """None where this machine's node is in no container, or there is none.

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
    """Remembers it."""
    write_atomically(home.container, json.dumps(asdict(record)))
