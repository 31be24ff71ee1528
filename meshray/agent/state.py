"""The state that the parts of one agent share: the node's identity, the map of the mesh, and the last observations.

    coordinator ──► published map ──pins──► map ──┐
    membership (enrolment) ───────────────────────┼──► every part
    reconciler ──► device, endpoints ─────────────┘

Values are replaced, never modified. A part that needs a current value reads it here each time.
"""

from __future__ import annotations

import asyncio

from meshray.agent.device.desired_device import own_node
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
        identity: signs this node's keys; None: it has no identity yet.
        published_map: the map that the coordinator sent.
        map: the used part of it, without the nodes whose keys have no valid signature.
        device: as last read; None if it does not exist.
        endpoints: the endpoints at which others may reach this node.
        woken: set when the device must be reconciled at once.
        overlay_up: set once a hub has answered; on a hub once its device exists.
        map_changed: set when the next map arrives, and then replaced by a new event.
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
        """This node's enrolment."""
        return self.membership.enrolment

    @property
    def me(self) -> Node:
        """This node in the current map. Raises MeshrayError if the map does not contain it."""
        return own_node(self.enrolment, self.map)

    @property
    def is_hub(self) -> bool:
        """Whether this node forwards for other nodes."""
        return HUB in self.me.roles

    @property
    def others(self) -> list[Node]:
        """The other nodes of the map."""
        return [node for node in self.map.nodes.values() if node.id != self.enrolment.node_id]

    @property
    def coordinator(self) -> Coordinator:
        """The endpoints of the coordinator: the addresses that this node knows, then its overlay address."""
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
        """Use a new map from the coordinator; return the map that was used before."""
        self.membership.keep_map(self.published_map, published)
        before, self.published_map, self.map = self.map, published, self.pins.admit(published)
        self.membership.store_coordinators(self.map)
        changed, self.map_changed = self.map_changed, asyncio.Event()
        changed.set()
        return before

    def wake(self) -> None:
        """Reconcile the device at once."""
        self.woken.set()
