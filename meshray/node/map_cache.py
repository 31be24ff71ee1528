"""The last map on disk, so that a node comes up while the coordinator is away.

A damaged cache is a loud error that keeps the file, never a silent empty start; for one that a
user removed the coordinator is asked.
"""

from __future__ import annotations

import asyncio
import json

from meshray.errors import MeshrayError, UnreachableError, UsageError
from meshray.home import Home
from meshray.linux.files import make_folder, write_atomically
from meshray.model import wire
from meshray.model.meshmap import MeshMap
from meshray.node.enrolment import Enrolment
from meshray.protocol.codec import WireError, decode_object

#: All addresses of the coordinator, and the map itself.
_FETCH_S = 30.0


def load_map(home: Home) -> MeshMap:
    """Reads map.json.

    Raises:
        MeshrayError: ``no_map`` where there is none, ``cache_damaged`` where it cannot be used.
    """
    path = home.map_cache
    try:
        return MeshMap.from_json(decode_object(path.read_bytes()))
    except FileNotFoundError:
        raise MeshrayError("no_map", f"there is no cached map {path}", hint="meshray up makes it anew") from None
    except (OSError, WireError, UsageError, ValueError) as error:
        raise MeshrayError(
            "cache_damaged",
            f"the cached map {path} is damaged ({error}); it was kept as it is",
            hint=f"move it away, then: meshray up (which makes it anew): mv {path} {path}.damaged",
        ) from None


def load_or_fetch_map(home: Home, enrolment: Enrolment) -> MeshMap:
    """Reads map.json, or gets it from the coordinator where there is none. Not from within an event loop.

    Raises:
        MeshrayError: ``no_map`` on the head, whose coordinator does not run yet; ``cache_damaged``; or what
            the coordinator answered instead of a map.
    """
    try:
        return load_map(home)
    except MeshrayError as error:
        if error.code != "no_map" or enrolment.hosts_coordinator:
            raise
    fetched = asyncio.run(_fetched_map(enrolment))
    save_map(home, fetched)
    return fetched


async def _fetched_map(enrolment: Enrolment) -> MeshMap:
    from meshray.client.coordinator import Coordinator

    coordinator = Coordinator(
        enrolment.coordinators, bytes.fromhex(enrolment.fingerprint), enrolment.credential, ticket=enrolment.ticket
    )
    link = await asyncio.wait_for(coordinator.open_link(), _FETCH_S)
    try:
        first = await asyncio.wait_for(link.messages().__anext__(), _FETCH_S)
        return MeshMap.from_json(wire.mapping(first, "map"))
    except (asyncio.TimeoutError, StopAsyncIteration, WireError, UsageError):
        raise UnreachableError(
            "coordinator_unreachable",
            f"the coordinator at {link.endpoint} sent no map",
            hint="on the head: meshray logs",
        ) from None
    finally:
        await link.close()


def save_map(home: Home, mesh_map: MeshMap) -> None:
    """Writes map.json, atomically, mode 0600."""
    make_folder(home.state)
    write_atomically(home.map_cache, json.dumps(mesh_map.to_json()))
