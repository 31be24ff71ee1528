"""The parsed request of `meshray join`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from meshray.cli.enrolment_route import EnrolmentRoute
from meshray.cli.external_ray import External
from meshray.model.address import Endpoint, NodeName
from meshray.model.path import Mode
from meshray.model.token import Token
from meshray.raynode.user_environment import UserEnvironment


@dataclass(frozen=True)
class JoinRequest:
    """The options and arguments of one `meshray join`.

    Attributes:
        name_is_exact: the user gave the name; it is not derived.
        roles: the additional roles: head, hub.
        endpoints: the endpoints of this node's WireGuard.
        port: this node's WireGuard port; 0 leaves the choice to the machine.
        via: the route of the enrolment; None: directly to the coordinator.
        transport: the allowed transports of the tunnel to the hub.
        env: ``match``: Ray runs from an environment that is built to match the head's; empty: from an existing one.
        external: another program starts Ray (``ray`` is None then); None: meshray does.
        environment: Ray's additional variables beside those that meshray sets.
    """

    token: Token
    name: NodeName
    name_is_exact: bool
    ephemeral: bool
    labels: Mapping[str, str]
    with_ray: bool
    ray: str | None
    ray_args: tuple[str, ...]
    roles: frozenset[str] = frozenset()
    endpoints: tuple[Endpoint, ...] = ()
    port: int = 0
    via: EnrolmentRoute | None = None
    rootless: bool = False
    trust_user_environment: bool = False
    open: tuple[str, ...] = ()
    unguarded: bool = False
    no_remote: bool = False
    exposed: tuple[int, ...] = ()
    transport: Mode = "auto"
    env: str = ""
    environment: UserEnvironment = field(default_factory=UserEnvironment)
    external: External | None = None
