"""`meshray init`: a new mesh, with this machine as coordinator, hub and (but for --hub-only) Ray head.

preflight ──► Ray found ──► key, coordinator's store, first token ──► agent up ──► join line

Nothing is changed before the preflight is through, and all of it is taken back when a later stage fails.
"""

from __future__ import annotations

import asyncio
import platform
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from meshray import __version__
from meshray.cli import bring_up, output
from meshray.cli.app import App
from meshray.cli.options import (
    PassesOnToRay,
    json_option,
    node_options,
    ray_args,
    require_no_words_to_ray,
    rootless_option,
)
from meshray.cli.results import InitResult, Result
from meshray.cli.undo import Undo
from meshray.errors import MeshrayError, UsageError
from meshray.model.address import DEFAULT_NETWORK, Endpoint, NodeName, OverlayNetwork
from meshray.model.node import Versions
from meshray.model.token import Token
from meshray.settings import DEFAULT_PORT, Home

if TYPE_CHECKING:
    from meshray.raynode.versions import RayInstallation


@dataclass(frozen=True)
class Wish:
    """What the person asked for, parsed."""

    name: NodeName
    network: OverlayNetwork
    port: int
    advertise: tuple[Endpoint, ...]
    with_ray: bool
    ray: str | None
    ray_args: tuple[str, ...]
    hub_only: bool = False
    rootless: bool = False


@click.command("init", cls=PassesOnToRay)
@node_options
@click.option("--network", default=DEFAULT_NETWORK, show_default=True, metavar="CIDR", help="The overlay's addresses.")
@click.option(
    "--advertise",
    multiple=True,
    metavar="HOST",
    help="Where the others reach this machine (address, name, HOST:PORT); default: every address that it has, and "
    "the public one that the cloud tells. May be repeated.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=DEFAULT_PORT,
    show_default=True,
    help="UDP for WireGuard and TCP for the coordinator.",
)
@click.option("--hub-only", is_flag=True, help="No Ray head here: another machine becomes it with `join --head`.")
@rootless_option
@json_option
@click.pass_obj
def init_command(
    app: App,
    *,
    name: str | None,
    ray: str | None,
    no_ray: bool,
    block: bool,
    network: str,
    advertise: tuple[str, ...],
    port: int,
    hub_only: bool,
    rootless: bool,
) -> Result | int:
    """Make a mesh here: coordinator, overlay and Ray head.

    \b
    Examples:
      sudo meshray init
      sudo meshray init --advertise head.example.org --port 443
      sudo meshray init --hub-only           on a public machine, for a head behind a firewall
      sudo meshray init -- --num-cpus=0      the head itself runs no tasks

    Prints the command with which other machines join. What stands behind -- goes to `ray start`.
    """
    if hub_only and (ray is not None or ray_args()):
        raise UsageError(
            "hub_only_without_ray",
            "--hub-only runs no Ray here, so nothing can be said to it",
            hint="say it to `meshray join --head` on the machine that runs the Ray head",
        )
    require_no_words_to_ray(no_ray, ray)
    wish = Wish(
        name=NodeName.parse(name) if name is not None else NodeName.from_hostname(socket.gethostname()),
        network=OverlayNetwork.parse(network),
        port=port,
        advertise=tuple(Endpoint.parse(item, port) for item in advertise),
        with_ray=not (no_ray or hub_only),
        ray=ray,
        ray_args=ray_args(),
        hub_only=hub_only,
        rootless=rootless or app.euid != 0,
    )
    return _init(app, wish, block)


def _init(app: App, wish: Wish, block: bool) -> Result | int:
    from meshray.cli.enrolled import require_stranger
    from meshray.raynode.command import check_extra_args
    from meshray.runtime import service
    from meshray.runtime.state import claimed, require_clean

    home = app.own_home
    check_extra_args(wish.ray_args)
    service.require_valid(app.environ)
    require_stranger(home)
    with claimed(home) as release, Undo(app) as undo:
        require_clean(home)
        installation, endpoints = _prepare(app, wish)
        token = _create(home, wish, installation, endpoints, undo)

        def result(summary: bring_up.Summary) -> InitResult:
            undo.keep()
            return _result(summary, token, wish, endpoints)

        if block:
            release()
            return bring_up.run_here(app, home, lambda summary: output.show(app, result(summary)))
        return result(bring_up.start_and_follow(app, home))


def _prepare(app: App, wish: Wish) -> tuple[RayInstallation | None, tuple[Endpoint, ...]]:
    """Looks at the machine and changes nothing."""
    from meshray.cli.enrolled import check_rootless, look_for_ray
    from meshray.coordinator.advertise import find_endpoints
    from meshray.runtime.preflight import check_init, check_place

    with app.progress() as progress:
        progress.stage("preflight", "run")
        if wish.rootless:
            check_place(wish.network, wish.port)
        wireguard = check_rootless(app) if wish.rootless else check_init(wish.network, wish.port, app.environ)
        progress.stage("preflight", "ok", wireguard)
        installation = look_for_ray(app, progress, wish.ray, head=True) if wish.with_ray else None
        progress.stage("addresses", "run")
        endpoints = wish.advertise or asyncio.run(find_endpoints(wish.port))
        if not endpoints:
            raise MeshrayError(
                "no_address",
                "this machine has no address that others could reach",
                hint="meshray init --advertise HOST",
            )
        progress.stage("addresses", "ok", ", ".join(map(str, endpoints)))
    return installation, endpoints


def _create(
    home: Home, wish: Wish, installation: RayInstallation | None, endpoints: tuple[Endpoint, ...], undo: Undo
) -> Token:
    from meshray.agent.cache import save_map
    from meshray.agent.enrolment import Enrolment, save_private_key
    from meshray.coordinator.create import create_mesh
    from meshray.model.keys import PrivateKey
    from meshray.runtime import service
    from meshray.runtime.person import Person
    from meshray.runtime.state import forget

    undo.add("the state folder", lambda: forget(home, keep_logs=True))
    key = PrivateKey.generate()
    save_private_key(home, key)
    answer, token = create_mesh(
        home,
        mesh_name=str(wish.name),
        network=wish.network,
        node_name=wish.name,
        public_key=key.public(),
        port=wish.port,
        advertise=endpoints,
        versions=installation.versions if installation else Versions(__version__, "", platform.python_version()),
        labels={},
        now=time.time(),
        hub_only=wish.hub_only,
    )
    save_map(home, answer.map)
    Enrolment(
        mesh_id=answer.map.mesh.id,
        node_id=answer.node_id,
        name=wish.name,
        credential=answer.credential,
        # The agent runs beside the coordinator: the loopback is always right.
        coordinators=(Endpoint("127.0.0.1", wish.port),),
        fingerprint=token.fingerprint.hex(),
        mesh_secret=answer.mesh_secret,
        ray_token=answer.ray_token,
        mesh_port=wish.port,
        listen_port=wish.port,
        person_uid=Person.invoking().uid,
        hosts_coordinator=True,
        with_ray=wish.with_ray,
        ray=str(installation.ray) if installation else "",
        ray_args=wish.ray_args,
        rootless=wish.rootless,
    ).save(home)
    undo.add("the unit", lambda: service.uninstall(home))
    undo.add("the agent", lambda: service.stop(home))
    return token


def _result(summary: bring_up.Summary, token: Token, wish: Wish, endpoints: tuple[Endpoint, ...]) -> InitResult:
    from meshray.cli.tables import child

    node = child(summary, "node")
    return InitResult(
        token=token.encode(),
        mesh=str(summary.get("mesh")),
        name=str(node.get("name")),
        ip=str(node.get("ip")),
        ray_address=_text_or_none(summary.get("ray_address")),
        dashboard=_text_or_none(summary.get("dashboard")),
        port=wish.port,
        endpoints=tuple(map(str, endpoints)),
        hub_only=wish.hub_only,
        local={name: str(url) for name, url in child(summary, "local").items()},
        open_commands=tuple(_or_nothing(lambda: _open_commands(wish.port))),
    )


def _open_commands(port: int) -> list[str]:
    from meshray.firewall import open_port_commands

    return open_port_commands(port)


def _or_nothing(ask: Callable[[], list[str]]) -> list[str]:
    # Advice only: the mesh is up, whatever the host's firewall programs answer.
    try:
        return ask()
    except (MeshrayError, OSError):
        return []


def _text_or_none(value: object) -> str | None:
    return str(value) if value else None
