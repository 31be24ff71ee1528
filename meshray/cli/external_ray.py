"""`--ray external` of `init` and `join`: another program starts Ray on this node.

>>> external = read(app, "external", "1000", ray_args, rootless=False, with_environment=False)
>>> external.user.uid
1000
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshray.errors import MeshrayError, UsageError

if TYPE_CHECKING:
    from meshray.cli.app import App
    from meshray.home import Home
    from meshray.linux.user import User

#: The value of ``--ray``.
EXTERNAL = "external"


@dataclass(frozen=True)
class External:
    """The request that another program starts Ray.

    Attributes:
        user: the user who runs that Ray.
    """

    user: User


def read(
    app: App, ray: str | None, ray_user: str | None, args: Sequence[str], *, rootless: bool, with_environment: bool
) -> External | None:
    """Return the request, or None if ``--ray`` does not name it.

    Args:
        ray_user: the value of ``--ray-user``: a name or a uid.
        args: the arguments after ``--``.
        with_environment: variables for Ray were given.

    Raises:
        UsageError: it contradicts another option, or there is no such user.
    """
    from meshray.linux.user import User
    from meshray.raynode.environment_file import require_splittable

    if ray != EXTERNAL:
        if ray_user is not None:
            raise UsageError(
                "ray_user_without_external",
                "--ray-user names the user of a Ray that another program starts",
                hint="--ray external; otherwise Ray runs as the user who calls sudo",
            )
        return None
    if rootless:
        raise UsageError(
            "external_rootless",
            "--ray external needs the overlay in this network namespace, and without root it is in another one",
            hint="run it with root; without root: leave out --ray external, and meshray starts Ray",
        )
    if with_environment:
        raise UsageError(
            "external_environment",
            "with --ray external, meshray passes no variables of yours to Ray: every user may read its file",
            hint="set the variables of --env and --env-file where Ray is started",
        )
    require_splittable(args)
    return External(User.named(ray_user) if ray_user is not None else User.invoking(app.environ))


def listening_port(home: Home) -> int:
    """Return the node manager's port of this node's external Ray; 0 if another program starts no Ray here, or none
    runs."""
    from meshray.linux.sockets import LISTEN, tcp_sockets
    from meshray.model.ray_ports import RayPorts
    from meshray.node.enrolment import Enrolment

    try:
        enrolment = Enrolment.load(home)
    except MeshrayError:
        return 0
    port = RayPorts.of(enrolment.ray_ports).node_manager
    runs = enrolment.external and any(socket.port == port for socket in tcp_sockets(LISTEN))
    return port if runs else 0
