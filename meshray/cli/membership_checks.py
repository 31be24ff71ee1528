"""Checks of this machine's membership and Ray, for `init`, `join` and later commands.

>>> require_not_enrolled(home)      # MeshrayError if the machine is a node already
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from meshray.cli.app import App
from meshray.errors import MeshrayError, RefusedError
from meshray.home import Home

if TYPE_CHECKING:
    from meshray.node.enrolment import Enrolment
    from meshray.raynode.versions import RayInstallation
    from meshray.runtime.base import Progress


def require_not_enrolled(home: Home, mesh_id: str = "") -> None:
    """Raise MeshrayError ``already_enrolled`` if this machine is a node.

    Args:
        mesh_id: the mesh to join; empty for `init`.
    """
    if home.container.exists():
        raise MeshrayError(
            "already_enrolled",
            "this machine has a node in a container already; nothing was changed",
            hint="meshray status, or meshray leave before it joins another mesh; a second node: MESHRAY_HOME=FOLDER",
        )
    enrolment = find_enrolment(home)
    if enrolment is None:
        return
    if enrolment.taken_out:
        hint = "meshray leave, then try again"
        raise MeshrayError(
            "already_enrolled", f"this machine was {enrolment.name} and was removed from its mesh", hint=hint
        )
    if enrolment.hosts_coordinator:
        raise MeshrayError(
            "already_enrolled",
            f"this machine is the head of a mesh already, as {enrolment.name}; nothing was changed",
            hint="meshray token create makes a token for `meshray join` on the other machines"
            if not mesh_id
            else "meshray leave ends that mesh",
        )
    raise MeshrayError(
        "already_enrolled",
        f"this machine is in a mesh already, as {enrolment.name}; nothing was changed",
        hint="meshray status, or meshray leave before it joins another one",
    )


def find_enrolment(home: Home) -> Enrolment | None:
    """Return this node's enrolment; None if this machine is not in a mesh. Raises MeshrayError if it cannot be read."""
    from meshray.node.enrolment import Enrolment

    try:
        return Enrolment.load(home)
    except MeshrayError as error:
        if error.code == "not_enrolled":
            return None
        raise


def warn_of_missing_engine(app: App, wireguard: str) -> None:
    """Warn if a node with root will use the distribution's slower engine, because meshray's own is not installed.

    Args:
        wireguard: as `meshray.runtime.preflight.check_wireguard` returned it.
    """
    from meshray.wireguard.engines import OWN, STOCK, VARIABLE, install_command

    if wireguard == STOCK and not app.environ.get(VARIABLE):
        app.warn(f"{OWN}, which has several times the throughput of {STOCK}, is not installed: {install_command()}")


@contextlib.contextmanager
def naming_rootless_node(app: App) -> Iterator[None]:
    """Within the block, explain a port in use if the user's own node has it: `init` was typed without sudo before."""
    from meshray.linux.user import User

    try:
        yield
    except MeshrayError as error:
        user = User.invoking(app.environ)
        theirs = user.home / ".local/share/meshray/node.json"
        if error.code == "port_in_use" and app.euid == 0 and user.uid != 0 and theirs.exists():
            raise MeshrayError(
                "port_in_use",
                f"{user.name} has a node without root on this machine: {error.message}",
                hint=f"as {user.name}, without sudo: meshray leave --yes",
            ) from None
        raise


def look_for_ray(
    app: App, progress: Progress, explicit: str | None, args: Sequence[str], *, head: bool
) -> RayInstallation:
    """Return the Ray that this node will run.

    Args:
        args: the arguments with which it will be started, as typed.

    Raises:
        MeshrayError: there is no usable Ray.
        UsageError: Ray does not have such an option.
    """
    from meshray.doctor.quick import before_ray
    from meshray.linux.user import User
    from meshray.raynode.preflight import check_head
    from meshray.raynode.versions import check_options, find_ray

    progress.stage("find ray", "run")
    user = User.invoking(app.environ)
    installation = find_ray(explicit, app.environ, user)
    check_options(installation, args)
    if head:
        check_head(installation)
    versions = installation.versions
    progress.stage("find ray", "ok", f"Ray {versions.ray}, Python {versions.python}, runs as {user.name}")
    for check in asyncio.run(before_ray(app.own_home, app.environ, args)):
        app.warn(f"{check.evidence}; {check.fix}")
    return installation


def answers_directly(enrolment: Enrolment) -> bool:
    """Return whether the coordinator answers at an address outside the tunnel."""
    from meshray.client.coordinator import Coordinator

    coordinator = Coordinator(enrolment.coordinators, bytes.fromhex(enrolment.fingerprint))
    try:
        asyncio.run(coordinator.call("GET", "/v1/hello"))
    except MeshrayError:
        return False
    return True


def unenrol(enrolment: Enrolment, *, take_back: bool = False) -> None:
    """Notify the coordinator that this node leaves. Idempotent: it succeeds if the node is already gone.

    Args:
        take_back: the join failed here, so its use of the token does not count.

    Raises:
        UnreachableError: no address of the coordinator answered.
    """
    from meshray.client.coordinator import Coordinator

    coordinator = Coordinator(enrolment.coordinators, bytes.fromhex(enrolment.fingerprint), enrolment.credential)
    try:
        asyncio.run(coordinator.call("POST", "/v1/leave", {"take_back": True} if take_back else None))
    except RefusedError as error:
        if error.code == "token_other_mesh":  # Another certificate answered: that server is not our coordinator.
            raise
