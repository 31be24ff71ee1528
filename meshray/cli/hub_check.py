"""The check of a new hub: is it reachable from outside? The coordinator sends packets, and this side listens.

enrolled ──► listen on the WireGuard port ──► POST /v1/reach for each endpoint ──► heard, or refused with the reason
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from meshray.cli.app import App
from meshray.errors import MeshrayError
from meshray.model.address import Endpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The time after the coordinator's report that it has sent; a packet around the world takes half of that.
_LISTEN_S = 1.0
#: The time if the coordinator must resolve a name; its answer does not wait for that.
_LISTEN_NAME_S = 4.0
#: A request to the coordinator with this node's credential: path and body.
Post = Callable[[str, Mapping[str, object]], object]


def require_reachable(app: App, endpoints: Sequence[Endpoint], port: int, post: Post) -> None:
    """Warn of endpoints that are not reachable.

    Raises:
        MeshrayError: ``hub_unreachable``: none of them is reachable.
    """
    from meshray.firewall import open_port_commands

    silent = [endpoint for endpoint in endpoints if not _is_reachable(endpoint, port, post)]
    if len(silent) == len(endpoints):
        named = ", ".join(map(str, silent))
        own = [command for command in open_port_commands(port) if "tcp" not in command]
        raise MeshrayError(
            "hub_unreachable",
            f"the coordinator's UDP packets to {named} do not arrive here, so this machine cannot be a hub",
            hint=own[0] if own else f"open UDP port {port} in its firewall (and the cloud's), or join without --hub",
        )
    for endpoint in silent:
        app.warn(f"the coordinator's UDP packets to {endpoint} do not arrive here; the others will not use it")


def _is_reachable(endpoint: Endpoint, port: int, post: Post) -> bool:
    from meshray.linux.reachability import Listener

    with Listener(port) as listener:
        post("/v1/reach", {"endpoint": str(endpoint), "word": listener.token})
        return listener.wait(_LISTEN_S if endpoint.ip is not None else _LISTEN_NAME_S)
