"""`meshray join`: this machine becomes a node of the mesh that a token names.

token ──► preflight ──► Ray found ──► key ──► enrolment ──► agent up ──► summary

What was begun is taken back when a later stage fails: the agent, the enrolment, the files.
"""

from __future__ import annotations

import asyncio
import platform
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from meshray import __version__
from meshray.cli import bring_up, output
from meshray.cli.app import App
from meshray.cli.options import PassesOnToRay, json_option, node_options, parse_labels, ray_args, read_token
from meshray.cli.results import JoinResult, Result
from meshray.cli.undo import Undo
from meshray.model.address import NodeName
from meshray.model.node import Versions
from meshray.model.token import Token
from meshray.settings import Home

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshray.model.keys import PrivateKey
    from meshray.raynode.versions import RayInstallation


@dataclass(frozen=True)
class Wish:
    """What the person asked for, parsed. ``name_is_exact``: given by the person, not guessed."""

    token: Token
    name: NodeName
    name_is_exact: bool
    ephemeral: bool
    labels: Mapping[str, str]
    with_ray: bool
    ray: str | None
    ray_args: tuple[str, ...]


@click.command("join", cls=PassesOnToRay)
@click.argument("token", metavar="TOKEN|-|@FILE")
@node_options
@click.option("--ephemeral", is_flag=True, help="Leave the mesh when the agent ends.")
@click.option("--label", multiple=True, metavar="K=V", help="A label of the Ray node. May be repeated.")
@json_option
@click.pass_obj
def join_command(
    app: App,
    *,
    token: str,
    name: str | None,
    ray: str | None,
    no_ray: bool,
    block: bool,
    ephemeral: bool,
    label: tuple[str, ...],
) -> Result | int:
    """Join the mesh that a token names, with a Ray worker.

    \b
    Examples:
      sudo meshray join meshray1_AbC...
      ssh head sudo meshray token create | sudo meshray join -
      sudo meshray join @/run/secrets/token --ephemeral --block -- --num-gpus=1

    A token on the command line can be seen by other people of this machine: - reads it from standard input, @FILE
    from a file. Returns when Ray at the head counts this node as ALIVE. What stands behind -- goes to `ray start`.
    """
    wish = Wish(
        token=Token.parse(read_token(token, app.stdin)),
        name=NodeName.parse(name) if name is not None else NodeName.from_hostname(socket.gethostname()),
        name_is_exact=name is not None,
        ephemeral=ephemeral,
        labels=parse_labels(label),
        with_ray=not no_ray,
        ray=ray,
        ray_args=ray_args(),
    )
    return _join(app, wish, block)


def _join(app: App, wish: Wish, block: bool) -> Result | int:
    from meshray.cli.enrolled import require_stranger
    from meshray.raynode.command import check_extra_args, check_labels
    from meshray.runtime.state import claimed, require_clean

    home = app.own_home
    check_extra_args(wish.ray_args)
    check_labels(wish.labels)
    app.require_root()
    require_stranger(home, wish.token.mesh_id)
    with claimed(home) as release, Undo(app) as undo:
        require_clean(home)
        installation = _prepare(app, wish)
        _enrol(app, home, wish, installation, undo)

        def result(summary: bring_up.Summary) -> JoinResult:
            undo.keep()
            return JoinResult(summary)

        if block:
            release()
            return bring_up.run_here(app, home, lambda summary: output.show(app, result(summary)))
        return result(bring_up.start_and_follow(app, home))


def _prepare(app: App, wish: Wish) -> RayInstallation | None:
    """Looks at the machine and changes nothing."""
    from meshray.cli.enrolled import look_for_ray
    from meshray.runtime.preflight import check_wireguard

    with app.progress() as progress:
        progress.stage("preflight", "run")
        wireguard = check_wireguard(app.environ)
        progress.stage("preflight", "ok", wireguard)
        return look_for_ray(app, progress, wish.ray, head=False) if wish.with_ray else None


def _enrol(app: App, home: Home, wish: Wish, installation: RayInstallation | None, undo: Undo) -> None:
    from meshray.agent.cache import save_map
    from meshray.agent.client import enrol
    from meshray.agent.enrolment import Enrolment
    from meshray.cli.enrolled import unenrol
    from meshray.model.enrol import EnrolRequest
    from meshray.runtime import service
    from meshray.runtime.person import Person
    from meshray.runtime.preflight import require_no_overlap, routes

    key = _key(home, undo)
    request = EnrolRequest(
        mesh_id=wish.token.mesh_id,
        token_id=wish.token.token_id,
        secret=wish.token.secret,
        name=wish.name,
        name_is_exact=wish.name_is_exact,
        public_key=key.public(),
        versions=installation.versions if installation else Versions(__version__, "", platform.python_version()),
        with_ray=wish.with_ray,
        ephemeral=wish.ephemeral,
        labels=wish.labels,
    )
    with app.progress() as progress:
        progress.stage("enrol", "run", ", ".join(map(str, wish.token.coordinators)))
        answer, endpoint = asyncio.run(enrol(wish.token, request))
        me = answer.map.nodes[answer.node_id]
        enrolment = Enrolment(
            mesh_id=answer.map.mesh.id,
            node_id=answer.node_id,
            name=me.name,
            credential=answer.credential,
            coordinators=(endpoint, *(other for other in wish.token.coordinators if other != endpoint)),
            fingerprint=wish.token.fingerprint.hex(),
            mesh_secret=answer.mesh_secret,
            ray_token=answer.ray_token,
            mesh_port=endpoint.port,
            listen_port=0,
            person_uid=Person.invoking(app.environ).uid,
            ephemeral=me.ephemeral,
            with_ray=wish.with_ray,
            ray=str(installation.ray) if installation else "",
            ray_args=wish.ray_args,
            labels=wish.labels,
        )
        undo.add("the enrolment", lambda: unenrol(enrolment, take_back=True))
        require_no_overlap(answer.map.mesh.network, routes(), chosen_here=False)
        progress.stage("enrol", "ok", f"{me.name}, {me.ip} in mesh {answer.map.mesh.name}")
    save_map(home, answer.map)
    enrolment.save(home)
    undo.add("the unit", lambda: service.uninstall(home))
    undo.add("the agent", lambda: service.stop(home))


def _key(home: Home, undo: Undo) -> PrivateKey:
    """A new key; or the one of a join that was killed, with which the coordinator gives the same node again."""
    from meshray.agent.enrolment import load_private_key, save_private_key
    from meshray.model.keys import PrivateKey
    from meshray.runtime.state import forget

    undo.add("the state folder", lambda: forget(home, keep_logs=True))
    if home.private_key.exists():
        return load_private_key(home)
    key = PrivateKey.generate()
    save_private_key(home, key)
    return key
