"""The paths that this node uses now: those to its WireGuard peers, and some of the relayed ones.

A relayed pair is of interest if its direct path was lost, or if its nodes exchange packets. Idle pairs are left out:
their path through the hub is healthy. The number of relayed ones is limited, so that the reports and metrics of a mesh
grow with the number of its peers, not with the square of its nodes.

>>> used = UsedPaths().current(paths.in_use(), state.device, partial(current_path, sources))
>>> [(str(node.name), path.kind) for node, path in used]
[('head', <PathKind.DIRECT: 'direct'>), ('gpu-2', <PathKind.HUB: 'hub'>)]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from meshray.model.node import STATIC, Node
from meshray.model.path import PathKind
from meshray.protocol.status import PathStatus
from meshray.wireguard.config import DeviceState

#: The most relayed pairs of one node that count as used.
MOST_RELAYED = 32

UsedPath = tuple[Node, PathStatus]


class UsedPaths:
    """The used paths of one node. It remembers which pairs had a direct path, because their loss is news."""

    def __init__(self) -> None:
        self._were_direct: set[str] = set()

    def current(
        self, in_use: Iterable[Node], device: DeviceState | None, path_to: Callable[[Node], PathStatus]
    ) -> list[UsedPath]:
        """Return the used paths: the direct ones by address, then the relayed ones, lost direct paths first.

        Args:
            in_use: the other nodes whose paths are in use; see `meshray.agent.paths.paths.Paths.in_use`.
            path_to: returns the current path to a node.
        """
        others = sorted(in_use, key=lambda node: int(node.ip))
        peers = device.peers if device is not None else {}
        # Only a node that is a peer itself can have a direct path.
        tried = [(node, path_to(node)) for node in others if node.public_key in peers]
        used = [(node, path) for node, path in tried if path.kind == PathKind.DIRECT]
        direct_ids = {node.id for node, _ in used}
        self._were_direct = (self._were_direct | direct_ids) & {node.id for node in others}
        rest = [node for node in others if node.id not in direct_ids and node.online and STATIC not in node.roles]
        rest.sort(key=lambda node: node.id not in self._were_direct)
        for node in rest[:MOST_RELAYED]:
            path = path_to(node)
            if path.kind == PathKind.HUB:
                used.append((node, path))
        return used
