"""The last map on disk, so that a node can start while the coordinator is unreachable.

A damaged cache raises an error and is kept. If the user removed it, the map is fetched from the coordinator.
"""

from __future__ import annotations

import asyncio
import contextlib

from meshray.errors import MeshrayError, UnreachableError, UsageError
from meshray.home import Home
from meshray.linux.files import make_folder, write_atomically
from meshray.model.meshmap import MeshMap
from meshray.node.enrolment import Enrolment
from meshray.protocol.codec import WireError, decode
from meshray.protocol.connection import WholeMap
from meshray.protocol.forms import MapForm

#: The timeout for all addresses of the coordinator and the map.
_FETCH_S = 30.0


def load_map(home: Home) -> MeshMap:
    """Read map.json.

    Raises:
        MeshrayError: ``no_map`` if it does not exist, ``cache_damaged`` if it cannot be used.
    """
    path = home.map_cache
    try:
        return MeshMap.of(decode(path.read_bytes(), MapForm))
    except FileNotFoundError:
        raise MeshrayError("no_map", f"there is no cached map {path}", hint="meshray up fetches it again") from None
    except (OSError, WireError, UsageError, ValueError) as error:
        raise MeshrayError(
            "cache_damaged",
            f"the cached map {path} is damaged ({error}); it was kept as it is",
            hint=f"move it away, then run meshray up, which fetches it again: mv {path} {path}.damaged",
        ) from None


def load_or_fetch_map(home: Home, enrolment: Enrolment) -> MeshMap:
    """Read map.json, or fetch the map from the coordinator. Must not be called in an event loop.

    Raises:
        MeshrayError: ``no_map`` on the head, whose coordinator does not run yet; ``cache_damaged``; or the
            coordinator's error.
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
    connection = await asyncio.wait_for(coordinator.open_connection(), _FETCH_S)
    try:
        with contextlib.suppress(asyncio.TimeoutError, StopAsyncIteration, WireError, UsageError):
            first = await asyncio.wait_for(connection.messages().__anext__(), _FETCH_S)
            if isinstance(first, WholeMap):
                return MeshMap.of(first.map)
    finally:
        await connection.close()
    raise UnreachableError(
        "coordinator_unreachable",
        f"the coordinator at {connection.endpoint} sent no map",
        hint="on the head: meshray logs",
    )


def save_map(home: Home, mesh_map: MeshMap) -> None:
    """Write map.json atomically with mode 0600."""
    make_folder(home.state)
    write_atomically(home.map_cache, mesh_map.encoded())
