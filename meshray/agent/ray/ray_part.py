"""Ray as the agent's loop sees it: the supervisor, and the node table that the head answers with."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from ipaddress import IPv4Address

from meshray.defaults import INTERFACE
from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.linux.user import User
from meshray.model.meshmap import MeshMap
from meshray.model.node import HEAD, Node
from meshray.model.ray_ports import RayPorts, take_ports
from meshray.model.status import RayState
from meshray.node.enrolment import Enrolment
from meshray.raynode.command import RayPlan
from meshray.raynode.state import LiveNode, live_nodes, node_table
from meshray.raynode.supervisor import RayNode, RayNow
from meshray.raynode.tokens import RayTokens
from meshray.raynode.versions import RayInstallation

#: The head's dashboard answers in milliseconds, or it is not there.
TABLE_TIMEOUT_S = 3.0


def ray_plan(enrolment: Enrolment, me: Node, head: Node, mesh_map: MeshMap, home: Home) -> RayPlan:
    """What this node's Ray shall be (pure)."""
    _, extra_args = take_ports(enrolment.ray_args)
    return RayPlan(
        head=HEAD in me.roles,
        node_ip=me.ip,
        head_ip=head.ip,
        node_name=me.name,
        labels=enrolment.labels,
        extra_args=extra_args,
        interface=INTERFACE,
        token_path=home.ray_token,
        network=mesh_map.mesh.network,
        ports=RayPorts.of({**enrolment.ray_ports, **mesh_map.mesh.ray_ports}),
        patience_s=mesh_map.mesh.patience_s,
        environment=enrolment.environment,
    )


class RayOnNode:
    """The supervised Ray of this node."""

    def __init__(
        self,
        installation: RayInstallation,
        plan: RayPlan,
        home: Home,
        user: User,
        *,
        tokens: RayTokens,
        on_instance: Callable[[str], None],
        renew: Callable[[RayInstallation], Awaitable[RayInstallation]] | None = None,
        check_start: Callable[[], None] | None = None,
    ) -> None:
        self._dashboard = plan.dashboard
        self._refused = ""
        self._node = RayNode(installation, plan, home, user, tokens=tokens, on_instance=on_instance)
        self._node.renew = renew
        self._node.check_start = check_start
        self.ports = plan.used_ports
        self.head_instance = self._node.head_instance
        self.hold_tokens = self._node.hold_tokens
        self.drained = self._node.drained
        self.label = self._node.label
        self.look = self._node.look
        self.run = self._node.run
        self.stop = self._node.stop

    @property
    def now(self) -> RayNow:
        """How the supervised Ray stands."""
        return self._node.now

    @property
    def failure(self) -> str:
        """Why Ray does not run although it should; empty while nothing is wrong."""
        return self._refused or (self._node.last_error if self._node.state.startswith("backoff") else "")

    async def live_nodes(self) -> list[LiveNode] | None:
        """The living nodes of Ray's own table, several of one address included; None where the head does not answer."""
        if self._node.waits_for_token:
            return None
        with contextlib.suppress(MeshrayError):
            return await live_nodes(self._dashboard, self._node.token, TABLE_TIMEOUT_S)
        return None

    async def unregister(self, nodes: Sequence[str], reason: str) -> bool:
        """Tells Ray that the nodes with these ids are dead; returns whether it took it."""
        now = self._node.now
        return await self._node.unregister(now.installation, now.plan, now.user, nodes, reason)

    async def node_table(self, *, with_use: bool = False) -> Mapping[IPv4Address, RayState] | None:
        """Ray's own node table, on request with what is in use; None where the head does not answer."""
        if self._node.waits_for_token:
            return None
        try:
            table = await node_table(self._dashboard, self._node.token, TABLE_TIMEOUT_S, with_use=with_use)
        except MeshrayError as error:
            self._refused = error.message
            return None
        self._refused = ""
        return table
