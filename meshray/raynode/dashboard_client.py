"""Ray's node table, from the head's dashboard over HTTP, without importing Ray.

    >>> await node_table(Endpoint("10.99.0.1", 8265), token, timeout_s=2)
    {IPv4Address('10.99.0.1'): RayState(alive=True, resources={'CPU': 8.0, …})}

``/api/v0/nodes`` is the state API behind `ray list nodes`. It has the same form from Ray 2.44 to 2.60 and queries the
GCS at every call. (``/nodes?view=summary`` is cached for seconds and lacks nodes that have not yet reported their
load.)
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, NamedTuple

from meshray.errors import RefusedError
from meshray.linux import overlay_netns
from meshray.model.address import Endpoint
from meshray.model.node import Versions
from meshray.model.ray_state import RayState, Waiting

if TYPE_CHECKING:
    from aiohttp import StreamReader

#: Far larger than a table of some thousand nodes.
_LONGEST_ANSWER = 16 * 1024 * 1024
#: As in the map (`meshray.protocol.fields`).
_LONGEST_VERSION = 64
#: Resource names that the dashboard's JSON does not change, and that mean the same on every node.
_USED = ("CPU", "GPU", "memory")
#: Different requests for resources; Ray itself reports at most some hundred.
_MOST_REQUESTS = 1000
#: Only living nodes are requested, because a cluster with unstable workers remembers a thousand dead ones.
_QUERY = {
    "limit": "10000",
    "detail": "1",
    "filter_keys": "state",
    "filter_predicates": "=",
    "filter_values": "ALIVE",
}


@dataclass(frozen=True)
class LiveNode:
    """A node that Ray reports as ALIVE.

    Attributes:
        started: the start of its raylet by that node's clock, unix seconds; 0 if unknown.
        name: the name at its start; Ray's default is the address.
        id: Ray's id of the node, hexadecimal.
    """

    ip: IPv4Address
    started: float
    resources: Mapping[str, float]
    name: str = ""
    id: str = ""


class Use(NamedTuple):
    """What tasks, actors and objects use, and what they wait for.

    Attributes:
        by_node: the used CPUs, GPUs and memory of each node, by Ray's id.
        waiting: the requests that wait.
    """

    by_node: Mapping[str, Mapping[str, float]]
    waiting: tuple[Waiting, ...]


async def node_table(
    dashboard: Endpoint, token: str | None, timeout_s: float, *, with_use: bool = False
) -> dict[IPv4Address, RayState] | None:
    """Return the living nodes by address, or None if the head's dashboard does not answer.

    Args:
        with_use: also fetch the used resources, with a second request.

    Raises:
        RefusedError: the dashboard refuses this token.
    """
    use = Use({}, ())
    if with_use:
        nodes, use = await asyncio.gather(
            live_nodes(dashboard, token, timeout_s), cluster_use(dashboard, token, timeout_s)
        )
    else:
        nodes = await live_nodes(dashboard, token, timeout_s)
    if nodes is None:
        return None
    # The newest comes last: after a quick restart Ray lists the old process beside the new one for a while.
    nodes = sorted(nodes, key=lambda node: node.started)
    table = {node.ip: RayState(True, node.resources, use.by_node.get(node.id), node.started) for node in nodes}
    head = table.get(IPv4Address(dashboard.host))
    if head is not None and use.waiting:
        table[IPv4Address(dashboard.host)] = replace(head, waiting=use.waiting)
    return table


async def live_nodes(dashboard: Endpoint, token: str | None, timeout_s: float) -> list[LiveNode] | None:
    """Return the living nodes like `node_table`, as a list: several may have one address."""
    status, nodes = await query_dashboard(dashboard, token, timeout_s)
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise RefusedError(
            "ray_token_refused",
            f"the Ray dashboard on the head ({dashboard}) does not accept this mesh's Ray token",
            hint="on the head: meshray down, then meshray up; is a Ray running there that meshray did not start?",
        )
    return nodes


async def query_dashboard(
    dashboard: Endpoint, token: str | None, timeout_s: float
) -> tuple[int, list[LiveNode] | None]:
    """Return the HTTP status of the dashboard with this token, 0 without an answer, and the living nodes."""
    status, body = await _get(dashboard, "/api/v0/nodes", token, timeout_s, _QUERY)
    return status, parse_nodes(body) if body else None


async def ray_versions(dashboard: Endpoint, token: str | None, timeout_s: float) -> Versions:
    """Return the versions of Ray and Python of the head's Ray; empty ones if the dashboard does not answer."""
    _, body = await _get(dashboard, "/api/v0/cluster_metadata", token, timeout_s)
    return parse_versions(body)


async def cluster_use(dashboard: Endpoint, token: str | None, timeout_s: float) -> Use:
    """Return the use of the cluster; empty if unknown.

    Ray's autoscaler counts them every five seconds, on every cluster.
    """
    _, body = await _get(dashboard, "/api/cluster_status", token, timeout_s)
    return parse_use(body)


async def _get(
    dashboard: Endpoint, path: str, token: str | None, timeout_s: float, query: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """Return the HTTP status, 0 without an answer, and the body of a 200."""
    import aiohttp

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    try:
        async with (
            aiohttp.ClientSession(connector=overlay_netns.connector(), timeout=timeout, headers=headers) as session,
            session.get(f"http://{dashboard}{path}", params=query or {}, allow_redirects=False) as answer,
        ):
            return answer.status, await _read(answer.content) if answer.status == HTTPStatus.OK else b""
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
        return 0, b""


def parse_nodes(body: bytes) -> list[LiveNode] | None:
    """Return the living nodes of an answer; None if it is not a complete answer of the state API."""
    try:
        data = json.loads(body).get("data")
    except (ValueError, AttributeError, RecursionError):
        return None
    result = data.get("result") if isinstance(data, dict) else None
    rows = result.get("result") if isinstance(result, dict) else None
    if not isinstance(rows, list):
        return None
    return [node for node in map(_live_node, rows) if node is not None]


def parse_versions(body: bytes) -> Versions:
    """Return the versions in an answer; empty ones if it is not an answer with versions."""
    try:
        data = json.loads(body).get("data")
    except (ValueError, AttributeError, RecursionError):
        data = None
    ray, python = (data.get("rayVersion"), data.get("pythonVersion")) if isinstance(data, dict) else ("", "")
    if not isinstance(ray, str) or not isinstance(python, str):
        return Versions("")
    return Versions("", ray[:_LONGEST_VERSION], python[:_LONGEST_VERSION])


def parse_use(body: bytes) -> Use:
    """Return the use in the autoscaler's report; empty if the report is missing or unknown."""
    try:
        found: object = json.loads(body).get("data")
    except (ValueError, AttributeError, RecursionError):
        return Use({}, ())
    for key in ("clusterStatus", "loadMetricsReport"):
        found = found.get(key) if isinstance(found, dict) else None
    report = found if isinstance(found, dict) else {}
    return Use(_used(report.get("usageByNode")), _waiting(report.get("resourceDemand")))


def _waiting(found: object) -> tuple[Waiting, ...]:
    """Return the requests of a list of pairs of resources and count."""
    pairs = [pair for pair in found if isinstance(pair, list) and len(pair) == 2] if isinstance(found, list) else []
    return tuple(
        Waiting(_numbers(resources), count)
        for resources, count in pairs[:_MOST_REQUESTS]
        if isinstance(resources, dict) and isinstance(count, int) and count > 0
    )


def _used(found: object) -> dict[str, dict[str, float]]:
    used = {}
    for node_id, amounts in found.items() if isinstance(found, dict) else ():
        pairs = ((name, amounts.get(name)) for name in _USED) if isinstance(amounts, dict) else ()
        used[str(node_id)] = {
            name: float(pair[0])
            for name, pair in pairs
            if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], (int, float))
        }
    return used


async def gcs_answers(gcs: Endpoint, timeout_s: float = 1.0) -> bool:
    """Return whether the head's Ray accepts connections on the overlay."""
    try:
        _, writer = await asyncio.wait_for(overlay_netns.open_connection(IPv4Address(gcs.host), gcs.port), timeout_s)
    except (OSError, asyncio.TimeoutError):
        return False
    writer.close()
    return True


async def _read(stream: StreamReader) -> bytes:
    body = bytearray()
    while len(body) < _LONGEST_ANSWER and (part := await stream.readany()):
        body += part
    return bytes(body)


def _live_node(row: object) -> LiveNode | None:
    if not isinstance(row, dict) or row.get("state") != "ALIVE":
        return None
    try:
        ip = IPv4Address(str(row.get("node_ip")))
    except ValueError:
        return None
    started, resources = row.get("start_time_ms"), row.get("resources_total")
    return LiveNode(
        ip,
        started / 1000 if isinstance(started, (int, float)) else 0.0,
        _numbers(resources if isinstance(resources, dict) else {}),
        str(row.get("node_name") or "")[:63],
        str(row.get("node_id") or "")[:64],
    )


def _numbers(resources: Mapping[object, object]) -> dict[str, float]:
    return {str(name): float(amount) for name, amount in resources.items() if isinstance(amount, (int, float))}
