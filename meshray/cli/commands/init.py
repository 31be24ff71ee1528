"""`meshray init`: create a mesh, with this machine as coordinator, hub and (without --hub-only) Ray head.

preflight ──► Ray found ──► key, coordinator's store, first token ──► agent up ──► join line

Nothing changes before the preflight has succeeded, and all changes are rolled back if a later stage fails.
"""

from __future__ import annotations

import asyncio
import platform
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource
from msgspec import UNSET

from meshray import __version__
from meshray.cli import bring_up, env_options, external_ray, output
from meshray.cli.app import App
from meshray.cli.env_options import environment_options
from meshray.cli.external_ray import External
from meshray.cli.init_result import InitResult
from meshray.cli.options import (
    NodeCommand,
    json_option,
    lock_option,
    node_options,
    parse_exposed,
    ray_args,
    require_no_ray_args,
    rootless_option,
)
from meshray.cli.rollback import Rollback
from meshray.cli.variables import option
from meshray.defaults import DEFAULT_PORT, own_ports
from meshray.errors import MeshrayError, UsageError
from meshray.home import Home
from meshray.model.address import DEFAULT_NETWORK, Endpoint, NodeName, OverlayNetwork
from meshray.model.node import HEAD, Versions
from meshray.model.ray_ports import RayPorts, mesh_wide, of_node, take_ports
from meshray.model.token import Token
from meshray.protocol.answers import Init
from meshray.protocol.api import Endpoints
from meshray.protocol.codec import convert
from meshray.protocol.fields import DEFAULT_PATIENCE_S, MAX_PATIENCE_S, MIN_PATIENCE_S
from meshray.raynode.user_environment import UserEnvironment

if TYPE_CHECKING:
    from meshray.cli.lock_file import LockFile
    from meshray.node.enrolment import Enrolment
    from meshray.protocol.control import Summary
    from meshray.raynode.versions import RayInstallation


@dataclass(frozen=True)
class InitRequest:
    """The parsed request of the user.

    Attributes:
        network: None: any that this machine does not use.
        external: another program starts Ray (``ray`` is None then); None: meshray does.
    """

    name: NodeName
    network: OverlayNetwork | None
    port: int
    advertise: tuple[str, ...]
    with_ray: bool
    ray: str | None
    ray_args: tuple[str, ...]
    hub_only: bool = False
    patience_s: int = DEFAULT_PATIENCE_S
    rootless: bool = False
    trust_user_environment: bool = False
    open: tuple[str, ...] = ()
    unguarded: bool = False
    exposed: tuple[int, ...] = ()
    lock: str | None = None
    environment: UserEnvironment = field(default_factory=UserEnvironment)
    external: External | None = None


@dataclass(frozen=True)
class Found:
    """The result of examining the machine.

    Attributes:
        advertised: the endpoints given by the user.
        endpoints: all endpoints for the token and the map, the user's first.
    """

    network: OverlayNetwork
    installation: RayInstallation | None
    advertised: tuple[Endpoint, ...]
    endpoints: tuple[Endpoint, ...]


@click.command("init", cls=NodeCommand)
@node_options
@option(
    "--network",
    metavar="CIDR",
    help=f"The overlay's addresses; default: {DEFAULT_NETWORK}, or another private network if this machine uses "
    "that one.",
)
@option(
    "--advertise",
    multiple=True,
    metavar="HOST",
    help="Where other nodes reach this machine (address, name, HOST:PORT); default: all its addresses, and the "
    "public one that the cloud reports. May be repeated.",
)
@option(
    "--port",
    type=click.IntRange(1, 65535),
    default=DEFAULT_PORT,
    show_default=True,
    help="UDP for WireGuard and TCP for the coordinator.",
)
@option("--hub-only", is_flag=True, help="Run no Ray head here; another machine becomes the head with `join --head`.")
@option(
    "--patience",
    type=click.IntRange(MIN_PATIENCE_S, MAX_PATIENCE_S),
    default=DEFAULT_PATIENCE_S,
    show_default=True,
    metavar="SECONDS",
    help="How long Ray waits for a node that does not answer before it runs that node's tasks elsewhere.",
)
@lock_option("Admit only nodes whose token was signed with the key in FILE, which is created if it does not exist.")
@rootless_option
@environment_options
@json_option
@click.pass_context
def init_command(
    context: click.Context,
    *,
    name: str | None,
    ray: str | None,
    ray_user: str | None,
    no_ray: bool,
    open_to_members: tuple[str, ...],
    unguarded: bool,
    expose: tuple[int, ...],
    block: bool,
    network: str | None,
    advertise: tuple[str, ...],
    port: int,
    hub_only: bool,
    patience: int,
    lock: str | None,
    rootless: bool,
    trust_user_environment: bool,
    env: tuple[str, ...],
    env_file: str | None,
) -> InitResult | int:
    """Create a mesh here: coordinator, overlay and Ray head.

    \b
    Examples:
      sudo meshray init
      sudo meshray init --advertise head.example.org --port 443
      sudo meshray init --hub-only           on a public machine, for a head behind a firewall
      sudo meshray init -- --num-cpus=0      the head itself runs no tasks
      sudo meshray init -- --port=6380 --dashboard-port=8266
      sudo meshray init --lock /media/key/mesh.lock

    Prints the command with which other machines join. Arguments after -- are passed to `ray start`.
    """
    from meshray.node.enrolment import parse_open

    app: App = context.obj
    if hub_only and (ray is not None or _has_args_besides_ports(ray_args())):
        raise UsageError(
            "hub_only_without_ray",
            "--hub-only runs no Ray here, so it accepts only the ports of the mesh's head",
            hint="pass the rest to `meshray join --head` on the machine that runs the Ray head",
        )
    require_no_ray_args(no_ray, ray)
    given = env_options.read(app, env, env_file)
    if given.match:
        raise UsageError(
            "env_match_at_head",
            "--env match copies the head's environment, and this machine is the head",
            hint="--ray PATH",
        )
    rootless = rootless or app.euid != 0
    variables = bool(given.environment.chosen)
    external = external_ray.read(app, ray, ray_user, ray_args(), rootless=rootless, with_environment=variables)
    request = InitRequest(
        name=NodeName.parse(name) if name is not None else NodeName.from_hostname(socket.gethostname()),
        network=OverlayNetwork.parse(network) if network is not None else None,
        port=port,
        advertise=advertise,
        with_ray=not (no_ray or hub_only),
        ray=ray if external is None else None,
        ray_args=ray_args(),
        hub_only=hub_only,
        patience_s=patience,
        rootless=rootless,
        trust_user_environment=trust_user_environment,
        open=parse_open(open_to_members),
        unguarded=unguarded,
        exposed=parse_exposed(expose, rootless=rootless),
        environment=given.environment,
        lock=lock,
        external=external,
    )
    known = _own_mesh(app)
    if known is not None and not _is_another(app, known, request, context):
        return _again(app, known, advertise, block)
    return _init(app, request, block)


def _has_args_besides_ports(args: tuple[str, ...]) -> bool:
    """Return whether the arguments for Ray concern more than the ports that the whole mesh shares."""
    chosen, rest = take_ports(args)
    return bool(rest or of_node(chosen))


def _is_another(app: App, known: Enrolment, request: InitRequest, context: click.Context) -> bool:
    """Return whether the command line describes another mesh than the one of which this machine is the head."""
    from meshray.node.map_cache import load_map

    def is_given(name: str) -> bool:
        return context.get_parameter_source(name) in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)

    mesh_map = load_map(app.own_home)
    mesh, own = mesh_map.mesh, mesh_map.nodes.get(known.node_id)
    return (
        (is_given("name") and str(request.name) != known.name)
        or (is_given("port") and request.port != known.mesh_port)
        or (is_given("network") and request.network != mesh.network)
        or (request.hub_only and own is not None and HEAD in own.roles)
        or RayPorts.of({**mesh.ray_ports, **mesh_wide(take_ports(request.ray_args)[0])}) != mesh_map.ports_of()
        # A user who asks for a lock must not assume that the mesh has one.
        or (request.lock is not None and mesh.lock is None)
    )


def _own_mesh(app: App) -> Enrolment | None:
    """Return this node's enrolment if it runs the coordinator of a mesh."""
    from meshray.cli.membership_checks import find_enrolment

    enrolment = find_enrolment(app.own_home)
    return enrolment if enrolment is not None and enrolment.hosts_coordinator and not enrolment.taken_out else None


def _again(app: App, enrolment: Enrolment, hosts: tuple[str, ...], block: bool) -> InitResult | int:
    """Bring up the node of the existing mesh, and advertise these addresses as well.

    Args:
        hosts: the values of ``--advertise``.
    """
    from meshray.cli.commands.lifecycle import start_again
    from meshray.model.endpoints import require_few
    from meshray.node.map_cache import load_map

    given = require_few([Endpoint.parse(host, enrolment.mesh_port) for host in hosts], "--advertise")

    def result(summary: Summary) -> InitResult:
        endpoints = load_map(app.own_home).nodes[enrolment.node_id].endpoints
        if given:
            answer = app.api("POST", "/v1/advertise", {"endpoints": [str(endpoint) for endpoint in given]})
            endpoints = tuple(map(Endpoint.parse, convert(answer, Endpoints).endpoints))
        return _result(app, summary, None, enrolment, endpoints, already=True)

    return start_again(app, block, result)


def _init(app: App, request: InitRequest, block: bool) -> InitResult | int:
    from meshray.cli.membership_checks import require_not_enrolled
    from meshray.model.endpoints import require_few
    from meshray.node.state_folder import claimed, require_clean
    from meshray.raynode.command import check_extra_args
    from meshray.runtime import agent_service

    home = app.own_home
    check_extra_args(request.ray_args, own=own_ports(request.port), makes_mesh=True)
    advertised = require_few([Endpoint.parse(item, request.port) for item in request.advertise], "--advertise")
    agent_service.require_valid(app.environ)
    require_not_enrolled(home)
    if not request.trust_user_environment:
        app.run_from_copy()
    with claimed(home) as release, Rollback(app) as rollback:
        require_clean(home)
        found = _prepare(app, request, advertised)
        token, enrolment = _create(home, request, found, rollback)

        def result(summary: Summary) -> InitResult:
            rollback.keep()
            return _result(app, summary, token, enrolment, found.endpoints, hub_only=request.hub_only)

        if block:
            release()
            return bring_up.run_here(app, home, lambda summary: output.show(app, result(summary)))
        return result(bring_up.start_and_follow(app, home))


def _prepare(app: App, request: InitRequest, advertised: tuple[Endpoint, ...]) -> Found:
    """Examine the machine, without changing anything."""
    from meshray.cli.membership_checks import look_for_ray, naming_rootless_node, warn_of_missing_engine
    from meshray.model.endpoints import choose_endpoints
    from meshray.raynode.preflight import require_free
    from meshray.runtime.own_endpoints import find_endpoints
    from meshray.runtime.preflight import check_network_and_port, choose_network, routes_here
    from meshray.runtime.selection import agent_runtime

    with app.progress() as progress:
        progress.stage("preflight", "run")
        network, taken = (request.network, None) if request.network is not None else choose_network(routes_here())
        runtime = agent_runtime(app.own_home, app.environ, request.rootless)
        with naming_rootless_node(app):
            check_network_and_port(network, request.port)
            wireguard = runtime.preflight(app)
        has_own = request.with_ray and request.external is None
        if has_own and not runtime.has_own_network:
            require_free(RayPorts.of(take_ports(request.ray_args)[0]), head=True)
        progress.stage("preflight", "ok", wireguard)
        warn_of_missing_engine(app, wireguard)
        if taken is not None:
            progress.stage("network", "ok", f"{network}, since this machine has {taken}")
        installation = look_for_ray(app, progress, request.ray, request.ray_args, head=True) if has_own else None
        progress.stage("addresses", "run")
        # As the agent will report them, so that the first token contains the same endpoints as later ones.
        endpoints = choose_endpoints(advertised, asyncio.run(find_endpoints(request.port)))
        if not endpoints:
            raise MeshrayError(
                "no_address",
                "this machine has no address that others could reach",
                hint="meshray init --advertise HOST",
            )
        progress.stage("addresses", "ok", ", ".join(map(str, endpoints)))
    return Found(network, installation, advertised, endpoints)


def _create(home: Home, request: InitRequest, found: Found, rollback: Rollback) -> tuple[Token, Enrolment]:
    from meshray.coordinator.mesh_creation import create_mesh
    from meshray.linux.user import User
    from meshray.model.attestation import Attestation, Chain, Grant
    from meshray.model.keys import PrivateKey, SigningKey
    from meshray.model.node import COORDINATOR, HEAD, HUB
    from meshray.node.enrolment import Enrolment, save_private_key
    from meshray.node.identity import Identity
    from meshray.node.map_cache import save_map
    from meshray.node.state_folder import delete_state
    from meshray.runtime import agent_service

    rollback.add("the state folder", lambda: delete_state(home, keep_logs=True))
    key, installation = PrivateKey.generate(), found.installation
    save_private_key(home, key)
    lock = _lock(home, request.lock, rollback)
    roles = frozenset({HUB, COORDINATOR} if request.hub_only else {HEAD, HUB, COORDINATOR})

    def attest(mesh_id: str) -> Attestation:
        identity = Identity.load_or_create(home, mesh_id)
        if lock is not None:
            first = SigningKey.generate()
            grant = Grant.sign(lock.key, mesh_id, first.public(), roles, epoch=0)
            identity.set_chain(lambda public: Chain.sign(first, grant, mesh_id, public))
        return identity.sign(key.public())

    answer, token = create_mesh(
        home,
        mesh_name=str(request.name),
        network=found.network,
        node_name=request.name,
        public_key=key.public(),
        port=request.port,
        endpoints=found.endpoints,
        advertised=found.advertised,
        versions=installation.versions if installation else Versions(__version__, "", platform.python_version()),
        labels={},
        now=time.time(),
        hub_only=request.hub_only,
        patience_s=request.patience_s,
        ray_ports=mesh_wide(take_ports(request.ray_args)[0]),
        lock=lock.key if lock is not None else None,
        attest=attest,
    )
    save_map(home, answer.map)
    enrolment = Enrolment(
        mesh_id=answer.map.mesh.id,
        node_id=answer.node_id,
        name=request.name,
        credential=answer.credential,
        # The agent runs beside the coordinator: the loopback address is always right.
        coordinators=(Endpoint("127.0.0.1", request.port),),
        fingerprint=token.fingerprint.hex(),
        mesh_secret=answer.mesh_secret,
        ray_token=answer.ray_token,
        secret_epoch=answer.secret_epoch,
        mesh_port=request.port,
        listen_port=request.port,
        user_uid=(request.external.user if request.external else User.invoking()).uid,
        external=request.external is not None,
        hosts_coordinator=True,
        with_ray=request.with_ray,
        ray=str(installation.ray) if installation else "",
        ray_args=request.ray_args if request.with_ray else (),
        rootless=request.rootless,
        trust_user_environment=request.trust_user_environment,
        open=request.open,
        unguarded=request.unguarded,
        exposed=request.exposed,
        environment=request.environment,
    )
    enrolment.save(home)
    rollback.add("the unit", lambda: agent_service.uninstall(home))
    rollback.add("the agent", lambda: agent_service.stop(home))
    return token, enrolment


def _lock(home: Home, path: str | None, rollback: Rollback) -> LockFile | None:
    if path is None:
        return None
    from meshray.cli.lock_file import LockFile

    lock, is_new = LockFile.load_or_create(Path(path), home)
    if is_new:
        rollback.add("the lock file", Path(path).unlink)
    return lock


def _result(
    app: App,
    summary: Summary,
    token: Token | None,
    enrolment: Enrolment,
    endpoints: tuple[Endpoint, ...],
    *,
    hub_only: bool = False,
    already: bool = False,
) -> InitResult:
    from meshray.cli.join_line import join_line
    from meshray.linux.user import User

    port, text = enrolment.mesh_port, token.encode() if token is not None else ""
    answer = Init(
        token=text or None,
        mesh=summary.mesh,
        node=summary.node,
        ray_address=summary.ray_address,
        dashboard=summary.dashboard,
        port=port,
        endpoints=tuple(map(str, endpoints)),
        already=already,
        local=summary.local or UNSET,
        env_file=summary.env_file,
        open_commands=tuple(_or_empty(lambda: _open_commands(port))),
    )
    return InitResult(
        answer,
        join_line=join_line(app, text) if text else "",
        head_line=join_line(app, text, "--head") if text and hub_only else "",
        rootless=User.by_uid(enrolment.user_uid).name if enrolment.rootless and not already else "",
    )


def _open_commands(port: int) -> list[str]:
    from meshray.firewall import open_port_commands

    return open_port_commands(port)


def _or_empty(find: Callable[[], list[str]]) -> list[str]:
    # This is only advice: the mesh is up, whatever the host's firewall programs answer.
    try:
        return find()
    except (MeshrayError, OSError):
        return []
