"""What the parts of one agent have in common: who this node is, the map of the mesh, and what was last seen here.

    coordinator ──► published map ──pins──► map ──┐
    membership (enrolment) ───────────────────────┼──► every part
    reconciler ──► device, endpoints ─────────────┘

The values are replaced, never changed. A part that needs one of the moment reads it here each time.
"""

from __future__ import annotations

import asyncio

from meshray.agent.device.desired import own_node
from meshray.client.coordinator import Coordinator
from meshray.home import Home
from meshray.model.address import Endpoint
from meshray.model.meshmap import MeshMap
from meshray.model.node import HUB, Node
from meshray.node.enrolment import Enrolment
from meshray.node.identity import Identity
from meshray.node.membership import Membership
from meshray.node.pins import Pins
from meshray.node.state_writer import StateWriter
from meshray.wireguard.config import DeviceState


class NodeState:
    """The state of one node while its agent runs.

    Attributes:
        identity: what signs this node's keys; None: it has no identity yet.
        published_map: the map as the coordinator sent it.
        map: what of it is used: without the nodes whose keys nobody vouches for.
        device: as it was read last; None while there is none.
        endpoints: by which others may try to reach this node.
        woken: set when the device is to be compared with what it should be at once.
        overlay_up: set once a hub was heard; on a hub once its device is there.
        map_changed: set when the next map has come, and replaced by a new one then.
    """

    def __init__(self, home: Home, enrolment: Enrolment, mesh_map: MeshMap) -> None:
        self.home = home
        self.files = StateWriter(home)
        self.membership = Membership(home, enrolment, self.files)
        self.identity = Identity.of_node(home, enrolment.mesh_id)
        self.pins = Pins.load(home, enrolment.node_id, self.files)
        self.published_map = mesh_map
        self.map = self.pins.admit(mesh_map)
        self.device: DeviceState | None = None
        self.endpoints: tuple[Endpoint, ...] = ()
        self.woken = asyncio.Event()
        self.overlay_up = asyncio.Event()
        self.map_changed = asyncio.Event()

    @property
    def enrolment(self) -> Enrolment:
        """Who this node is."""
        return self.membership.enrolment

    @property
    def me(self) -> Node:
        """This node in the map of the moment. Raises MeshrayError where the map does not hold it (any more)."""
        return own_node(self.enrolment, self.map)

    @property
    def is_hub(self) -> bool:
        """Whether this node forwards for others."""
        return HUB in self.me.roles

    @property
    def others(self) -> list[Node]:
        """The other nodes of the map."""
        return [node for node in self.map.nodes.values() if node.id != self.enrolment.node_id]

    @property
    def coordinator(self) -> Coordinator:
        """Where the coordinator may be: the addresses that this node knows, and its overlay address as the last."""
        node = self.map.coordinator
        inside = (Endpoint(str(node.ip), self.enrolment.mesh_port),) if node and node.id != self.me.id else ()
        return Coordinator(
            (*self.enrolment.coordinators, *inside),
            bytes.fromhex(self.enrolment.fingerprint),
            self.enrolment.credential,
            self.published_map.mark,
            self.enrolment.ticket,
            self.membership.instance,
        )

    def take_map(self, published: MeshMap) -> MeshMap:
        """Use a new map of the coordinator; returns the one that was used before."""
        before, self.published_map, self.map = self.map, published, self.pins.admit(published)
        self.membership.keep_map(published)
        self.membership.learn(self.map)
        changed, self.map_changed = self.map_changed, asyncio.Event()
        changed.set()
        return before

    def wake(self) -> None:
        """Have the device compared with what it should be at once."""
        self.woken.set()
