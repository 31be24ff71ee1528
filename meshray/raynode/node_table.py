"""Ray's node table for one node's supervisor: read with the token of the head's Ray, and cleared of dead raylets.

The questions to the head's dashboard themselves are in `meshray.raynode.dashboard_client`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address

from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.linux.user import User
from meshray.model.ray_state import RayState
from meshray.raynode.command import RayPlan
from meshray.raynode.dashboard_client import LiveNode, live_nodes, node_table
from meshray.raynode.unregister import Unregister
from meshray.raynode.versions import RayInstallation

#: The head's dashboard answers in milliseconds, or it is not there.
TABLE_TIMEOUT_S = 3.0
#: The same for the supervisor's own questions, which hold up its next step.
_OWN_TIMEOUT_S = 2.0


class NodeTable:
    """The node table that the head's Ray answers with.

    Args:
        token: of the Ray that is asked; None: it has not been received, or Ray uses none.

    Attributes:
        refused: why the dashboard did not answer `states` last; empty where it did, or is not there.
    """

    def __init__(self, home: Home, plan: RayPlan, user: User, token: Callable[[], str | None]) -> None:
        self._plan = plan
        self._user = user
        self._token = token
        self._unregister = Unregister(home)
        self.refused = ""

    def use_plan(self, plan: RayPlan) -> None:
        """Query the head of this plan."""
        self._plan = plan

    @property
    def _waits_for_token(self) -> bool:
        """Whether the token of the head's Ray has not been received yet: a node that joins gets the newest one first,
        and the head's Ray may have been started with an earlier one."""
        return self._plan.token_path is not None and self._token() is None

    async def live_nodes(self) -> list[LiveNode] | None:
        """Return the living nodes, several of one address included; None where the head does not answer."""
        if self._waits_for_token:
            return None
        with contextlib.suppress(MeshrayError):
            return await live_nodes(self._plan.dashboard, self._token(), TABLE_TIMEOUT_S)
        return None

    async def states(self, *, with_use: bool) -> Mapping[IPv4Address, RayState] | None:
        """Return the living nodes by address, on request with what is in use; None where the head does not answer."""
        if self._waits_for_token:
            return None
        try:
            table = await node_table(self._plan.dashboard, self._token(), TABLE_TIMEOUT_S, with_use=with_use)
        except MeshrayError as error:
            self.refused = error.message
            return None
        self.refused = ""
        return table

    async def own_rows(self) -> list[LiveNode]:
        """Return the living nodes at this node's address. Raises MeshrayError where the dashboard refuses."""
        nodes = await live_nodes(self._plan.dashboard, self._token(), _OWN_TIMEOUT_S)
        return [node for node in nodes or () if node.ip == self._plan.node_ip]

    async def remove_ghosts(self, installation: RayInstallation, rows: Sequence[LiveNode]) -> bool:
        """Remove raylets from Ray's table that ran at this address before; returns whether there were any.

        Ray lists a raylet that was killed until its health checks have failed for the whole patience, counts its
        resources beside those of the next one, and gives it tasks.
        """
        ghosts = [row.id for row in rows if row.id]
        if ghosts:
            await self.unregister(installation, ghosts, "another raylet of this node takes its place")
        return bool(ghosts)

    async def unregister(self, installation: RayInstallation, nodes: Sequence[str], reason: str) -> bool:
        """Mark the nodes with these ids as dead in Ray, and return whether GCS accepted it."""
        return await self._unregister(installation, self._plan, self._user, nodes, reason)
