"""`meshray join`: this machine becomes a node of the token's mesh.

token ──► preflight ──► Ray found ──► key ──► enrolment ──► agent up ──► summary
                     (or built, --env match)   (through ssh with --via)

If a later stage fails, the agent, the enrolment and the files are rolled back.
"""

from __future__ import annotations

import asyncio
import platform
import socket
import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import click

from meshray import __version__
from meshray.cli import bring_up, env_options, external_ray, output
from meshray.cli.app import App
from meshray.cli.container_options import ContainerChoice, container_options
from meshray.cli.enrolment_rollback import ENROLMENT, Withdrawal, withdraw_enrolment
from meshray.cli.enrolment_route import PostRequest, enrol_via, parse_via, unenrol_via
from meshray.cli.env_options import environment_options
from meshray.cli.join_request import JoinRequest
from meshray.cli.join_result import JoinResult
from meshray.cli.matching import match_with_token, request_environment, warn_of_patch
from meshray.cli.options import (
    NodeCommand,
    endpoint_option,
    json_option,
    node_options,
    parse_exposed,
    parse_labels,
    ray_args,
    read_token,
    require_no_ray_args,
    rootless_option,
)
from meshray.cli.rollback import Rollback
from meshray.cli.variables import option
from meshray.defaults import DEFAULT_PORT, own_ports
from meshray.errors import UsageError
from meshray.home import Home
from meshray.model.address import Endpoint, NodeName
from meshray.model.node import HEAD, HUB, Versions
from meshray.model.path import MODES, Mode, Transport
from meshray.node.enrolment import MATCH
from meshray.protocol.codec import to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meshray.environment.matched import Matched
    from meshray.model.enrol import EnrolAnswer, EnrolRequest
    from meshray.model.keys import PrivateKey
    from meshray.node.enrolment import Enrolment
    from meshray.protocol.control import Summary
    from meshray.raynode.versions import RayInstallation
    from meshray.runtime.base import AgentRuntime, Progress


@dataclass(frozen=True)
class Found:
    """The result of examining the machine.

    Attributes:
        port: WireGuard's port; 0 if the kernel may choose it.
        matched: the environment of ``installation``, if it should match the head's.
    """

    installation: RayInstallation | None
    port: int
    endpoints: tuple[Endpoint, ...]
    versions: Versions
    matched: Matched | None = None


@click.command("join", cls=NodeCommand)
@click.argument("token", metavar="TOKEN|-|@FILE", nargs=-1)
@node_options
@option("--ephemeral", is_flag=True, help="Leave the mesh when the agent ends.")
@option("--head", is_flag=True, help="Run the Ray head here, in a mesh made with `init --hub-only`.")
@option("--hub", is_flag=True, help="Also forward packets for other nodes; needs --endpoint.")
@endpoint_option
@option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="N",
    help="UDP port of this node's WireGuard; default: that of the first --endpoint, else any free port.",
)
@option(
    "--via",
    metavar="ssh://[USER@]HOST[:PORT]",
    help="Enrol through ssh to the coordinator's machine if its port cannot be reached from here. HOST:PORT: "
    "through a forward that you have set up.",
)
@option(
    "--transport",
    type=click.Choice(MODES),
    default="auto",
    show_default=True,
    help="The transport of the tunnel to the hub: UDP, or a TLS WebSocket (wss); auto uses wss where UDP is blocked.",
)
@option("--no-remote", is_flag=True, help="Refuse all orders of the mesh's administrator except `node drain`.")
@rootless_option
@environment_options
@option("--label", multiple=True, metavar="K=V", help="A label of the Ray node. May be repeated.")
@container_options
@json_option
@click.pass_obj
def join_command(
    app: App,
    *,
    token: tuple[str, ...],
    name: str | None,
    ray: str | None,
    ray_user: str | None,
    no_ray: bool,
    open_to_members: tuple[str, ...],
    unguarded: bool,
    expose: tuple[int, ...],
    block: bool,
    ephemeral: bool,
    label: tuple[str, ...],
    head: bool,
    hub: bool,
    endpoint: tuple[str, ...],
    port: int | None,
    via: str | None,
    transport: Mode,
    no_remote: bool,
    rootless: bool,
    trust_user_environment: bool,
    env: tuple[str, ...],
    env_file: str | None,
    runtime: str,
    image: str,
    bridge: str,
    volume: tuple[str, ...],
) -> JoinResult | int:
    """Join the mesh that a token names, with a Ray worker.

    \b
    Examples:
      sudo meshray join meshray1_AbC...
      ssh head sudo meshray token create | sudo meshray join -
      sudo meshray join @/run/secrets/token --ephemeral --block -- --num-gpus=1
      sudo meshray join --via ssh://ana@head TOKEN
      sudo meshray join --env match TOKEN
      meshray join --runtime docker TOKEN
      sudo meshray join --hub --endpoint vm.example.org:51888 TOKEN
      sudo meshray join TOKEN -- --metrics-export-port=8500
      sudo meshray join --ray external TOKEN && . /run/meshray/env && ray start $MESHRAY_RAY_START

    Other users of this machine can see a token on the command line: - reads it from standard input, @FILE from a file.
    The default is MESHRAY_TOKEN, then the file that MESHRAY_TOKEN_FILE names. Returns when the Ray head counts this
    node as ALIVE. Arguments after -- are passed to `ray start`.
    """
    from meshray.node.enrolment import parse_open

    given = env_options.read(app, env, env_file)
    rootless = rootless or app.euid != 0
    variables = bool(given.environment.chosen)
    external = external_ray.read(app, ray, ray_user, ray_args(), rootless=rootless, with_environment=variables)
    request = JoinRequest(
        token=read_token(token, app),
        name=NodeName.parse(name) if name is not None else NodeName.from_hostname(socket.gethostname()),
        name_is_exact=name is not None,
        ephemeral=ephemeral,
        labels=parse_labels(label),
        with_ray=not no_ray,
        ray=ray if external is None else None,
        ray_args=ray_args(),
        roles=frozenset(({HEAD} if head else set()) | ({HUB} if hub else set())),
        endpoints=tuple(Endpoint.parse(item, port) for item in endpoint),
        port=port or 0,
        via=parse_via(via) if via is not None else None,
        transport=transport,
        rootless=rootless,
        trust_user_environment=trust_user_environment,
        open=parse_open(open_to_members),
        unguarded=unguarded,
        no_remote=no_remote,
        exposed=parse_exposed(expose, rootless=rootless),
        env=MATCH if given.match else "",
        environment=given.environment,
        external=external,
    )
    _require_sense(request)
    require_no_ray_args(no_ray, ray)
    choice = ContainerChoice(runtime, image, bridge, volume)
    choice.require_sense(rootless=rootless, env=given.match)
    if (again := _again(app, request, block)) is not None:
        return again
    if choice.in_container:
        from meshray.cli.join_in_container import join_in_container

        return join_in_container(app, request, choice, block)
    return _join(app, request, block)


def _again(app: App, request: JoinRequest, block: bool) -> JoinResult | int | None:
    """Bring the node up if this machine is in the token's mesh already; return None if it is not."""
    from meshray.cli.commands.lifecycle import start_again
    from meshray.cli.membership_checks import find_enrolment

    home = app.own_home
    if home.container.exists():
        from meshray.cli.join_in_container import join_again

        return join_again(app, request.token)
    known = find_enrolment(home)
    if known is None or known.mesh_id != request.token.mesh_id or known.taken_out:
        return None
    return start_again(app, block, lambda summary: JoinResult.read({**to_json(summary), "already": True}, fresh=False))


def _require_sense(request: JoinRequest) -> None:
    if HEAD in request.roles and not request.with_ray:
        raise UsageError("head_without_ray", "--head runs Ray, and --no-ray does not", hint="leave out one of them")
    options = (
        ("--no-ray", not request.with_ray),
        ("--ray", request.ray is not None or request.external is not None),
        ("--head", HEAD in request.roles),
    )
    other = next((option for option, is_given in options if is_given), "")
    if request.env and other:
        raise UsageError(
            "env_with_other",
            f"--env match runs Ray from an environment that matches the head's, which contradicts {other}",
            hint="leave out one of them",
        )
    if HUB in request.roles and not request.endpoints:
        raise UsageError(
            "hub_needs_endpoint",
            "a hub must be reachable from outside, and no endpoint was given",
            hint="--hub --endpoint HOST:PORT, with this machine's public address and a UDP port that is open there",
        )


def _join(app: App, request: JoinRequest, block: bool) -> JoinResult | int:
    from meshray.cli.membership_checks import require_not_enrolled
    from meshray.model.endpoints import require_few
    from meshray.node.state_folder import claimed, require_clean
    from meshray.raynode.command import check_extra_args, check_labels
    from meshray.runtime import agent_service

    home = app.own_home
    check_extra_args(request.ray_args, own=own_ports(request.token.coordinators[0].port))
    require_few(request.endpoints, "--endpoint")
    agent_service.require_valid(app.environ)
    check_labels(request.labels)
    require_not_enrolled(home, request.token.mesh_id)
    if not request.trust_user_environment:
        app.run_from_copy()
    with claimed(home) as release, Rollback(app) as rollback:
        require_clean(home)
        found = _prepare(app, request)
        _enrol(app, home, request, found, rollback)

        def result(summary: Summary) -> JoinResult:
            rollback.keep()
            matched = found.matched
            env = {"env": {"path": str(matched.folder), "built": matched.built}} if matched is not None else {}
            return JoinResult.read({**to_json(summary), **env}, udp_port=_silent_udp(summary, request))

        if block:
            release()
            return bring_up.run_here(app, home, lambda summary: output.show(app, result(summary)))
        return result(bring_up.start_and_follow(app, home))


def _silent_udp(summary: Summary, request: JoinRequest) -> int:
    """Return the head's UDP port if the tunnel works only without it; else 0."""
    is_relayed = summary.path.transport == Transport.WSS and request.transport == "auto"
    return request.token.coordinators[0].port if is_relayed else 0


def _prepare(app: App, request: JoinRequest) -> Found:
    """Examine the machine, without changing anything."""
    from meshray.cli.membership_checks import look_for_ray, warn_of_missing_engine
    from meshray.runtime.selection import agent_runtime

    with app.progress() as progress:
        progress.stage("preflight", "run")
        runtime = agent_runtime(app.own_home, app.environ, request.rootless)
        wireguard = runtime.preflight(app)
        port = _listen_port(request)
        progress.stage("preflight", "ok", wireguard + (f", UDP port {port}" if port else ""))
        warn_of_missing_engine(app, wireguard)
        head = HEAD in request.roles
        has_own = request.with_ray and request.external is None
        if has_own:
            _require_ports(app, progress, request, runtime)
        # Ray's interpreter takes a while to answer; this process does other work meanwhile.
        threading.Thread(target=_import_for_enrolment).start()
        matched = match_with_token(app, progress, request.token, request.via) if request.env else None
        ray = str(matched.ray) if matched is not None else request.ray
        installation = look_for_ray(app, progress, ray, request.ray_args, head=head) if has_own else None
        versions = installation.versions if installation is not None else _versions(app, progress, request)
    return Found(installation, port, request.endpoints or _endpoints(request, port), versions, matched)


def _versions(app: App, progress: Progress, request: JoinRequest) -> Versions:
    """Return the versions that a node reports if meshray does not start its Ray.

    A worker's Ray that another program starts has the head's versions, because Ray itself requires that.
    """
    if request.external is not None and HEAD not in request.roles:
        environment = request_environment(app, progress, request.token, request.via)
        return Versions(__version__, environment.ray, environment.python)
    return Versions(__version__, "", platform.python_version())


def _require_ports(app: App, progress: Progress, request: JoinRequest, runtime: AgentRuntime) -> None:
    """Check that Ray's ports are free. A head requests the mesh's ports, which does not use up the token.

    Raises:
        UsageError: two of them are equal. MeshrayError: ``port_in_use``.
    """
    from meshray.model.ray_ports import RayPorts, check_ports, take_ports
    from meshray.raynode.preflight import require_free

    head = HEAD in request.roles
    chosen, _ = take_ports(request.ray_args)
    if head:
        chosen |= request_environment(app, progress, request.token, request.via).ray_ports
        check_ports(chosen, head=True, own=own_ports(request.token.coordinators[0].port))
    if not runtime.has_own_network:
        require_free(RayPorts.of(chosen), head=head)


def _import_for_enrolment() -> None:
    """Import now what would take a tenth of a second later."""
    import aiohttp  # noqa: F401
    from cryptography.hazmat.primitives.asymmetric import x25519  # noqa: F401


def _listen_port(request: JoinRequest) -> int:
    from meshray.linux import ports

    chosen = request.port or (request.endpoints[0].port if request.endpoints else 0)
    if chosen:
        ports.require_free(chosen, ("udp",))
        return chosen
    # A node that cannot reach the coordinator must itself be reachable, at a port that is known in advance.
    return ports.free_udp_port(DEFAULT_PORT) if request.via is not None else 0


def _endpoints(request: JoinRequest, port: int) -> tuple[Endpoint, ...]:
    from meshray.runtime.own_endpoints import find_endpoints

    return asyncio.run(find_endpoints(port)) if request.via is not None else ()


def _enrol(app: App, home: Home, request: JoinRequest, found: Found, rollback: Rollback) -> None:
    from meshray.cli.lock_file import require_lock
    from meshray.cli.membership_checks import unenrol
    from meshray.linux.user import User
    from meshray.model.enrol import EnrolRequest
    from meshray.node.enrolment import Enrolment
    from meshray.node.identity import Identity
    from meshray.node.map_cache import save_map
    from meshray.runtime import agent_service
    from meshray.runtime.preflight import require_no_clash, routes_here

    key, installation = _key(home, rollback), found.installation
    identity = Identity.load_or_create(home, request.token.mesh_id)
    identity.set_chain(request.token.endorse if request.token.endorser is not None else None)
    enrol_request = EnrolRequest(
        mesh_id=request.token.mesh_id,
        token_id=request.token.token_id,
        secret=request.token.secret,
        name=request.name,
        name_is_exact=request.name_is_exact,
        public_key=key.public(),
        versions=found.versions,
        with_ray=request.with_ray,
        ephemeral=request.ephemeral,
        labels=request.labels,
        endpoints=found.endpoints,
        roles=request.roles,
        attestation=identity.sign(key.public()),
        short_map=True,
    )
    withdrawal = Withdrawal(app, rollback, request.token, key, request.via)
    with withdrawal.unless_refused():
        answer, coordinators = _request_enrolment(app, request, enrol_request, key, on_sent=withdrawal.sent)
    with app.progress() as progress:
        me = answer.map.nodes[answer.node_id]
        enrolment = Enrolment(
            mesh_id=answer.map.mesh.id,
            node_id=answer.node_id,
            name=me.name,
            credential=answer.credential,
            observed=answer.observed,
            ticket=answer.ticket,
            coordinators=coordinators,
            fingerprint=request.token.fingerprint.hex(),
            mesh_secret=answer.mesh_secret,
            ray_token=answer.ray_token,
            secret_epoch=answer.secret_epoch,
            mesh_port=coordinators[0].port,
            listen_port=found.port,
            transport=request.transport,
            user_uid=(request.external.user if request.external else User.invoking(app.environ)).uid,
            external=request.external is not None,
            ephemeral=me.ephemeral,
            with_ray=request.with_ray,
            ray=str(installation.ray) if installation else "",
            ray_args=request.ray_args,
            labels=request.labels,
            rootless=request.rootless,
            trust_user_environment=request.trust_user_environment,
            env=request.env,
            environment=request.environment,
            open=request.open,
            unguarded=request.unguarded,
            no_remote=request.no_remote,
            exposed=request.exposed,
        )
        via = request.via

        def undo_enrolment() -> None:
            unenrol_via(app, via, enrolment) if via is not None else unenrol(enrolment, take_back=True)

        rollback.add(ENROLMENT, lambda: withdraw_enrolment(undo_enrolment))
        withdrawal.settled()
        require_lock(request.token, answer.map.mesh)
        require_no_clash(answer.map.mesh.network, routes_here(), new_mesh=False)
        progress.stage("node", "ok", f"{me.name}, {me.ip} in mesh {answer.map.mesh.name}")
    if installation is not None and answer.map.head is not None:
        warn_of_patch(app, installation.versions, answer.map.head.versions)
    if HUB in request.roles:
        _require_reachable(app, request, enrolment)
    enrolment.save(home)  # This comes first: a join killed after it leaves a node whose map can be requested again.
    save_map(home, answer.map)
    rollback.add("the unit", lambda: agent_service.uninstall(home))
    rollback.add("the agent", lambda: agent_service.stop(home))


def _require_reachable(app: App, request: JoinRequest, enrolment: Enrolment) -> None:
    from meshray.cli.hub_check import require_reachable
    from meshray.client.coordinator import Coordinator

    coordinator = Coordinator(enrolment.coordinators, request.token.fingerprint, enrolment.credential)

    def post(path: str, body: Mapping[str, object]) -> Mapping[str, object]:
        if request.via is not None:
            return request.via.call(app, PostRequest(coordinator, path, body))
        return asyncio.run(coordinator.call("POST", path, body))

    app.note(f"hub: the coordinator tries {', '.join(map(str, request.endpoints))}")
    require_reachable(app, request.endpoints, enrolment.listen_port, post)


def _request_enrolment(
    app: App, request: JoinRequest, enrol_request: EnrolRequest, key: PrivateKey, *, on_sent: Callable[[], None]
) -> tuple[EnrolAnswer, tuple[Endpoint, ...]]:
    """Return the coordinator's answer, and the endpoints to try from now on."""
    from meshray.client import coordinator as client

    if request.via is not None:
        app.note(f"enrol: through {request.via}")  # No live display: ssh may ask for a password.
        answer = enrol_via(app, request.via, request.token, enrol_request, key, on_sent=on_sent)
        return answer, request.token.coordinators
    with app.progress() as progress:
        progress.stage("enrol", "run", ", ".join(map(str, request.token.coordinators)))
        on_wait = partial(progress.stage, "enrol", "run")
        enrol = client.enrol(request.token, enrol_request, key, on_sent=on_sent, on_wait=on_wait)
        answer, endpoint = asyncio.run(enrol)
        progress.stage("enrol", "ok", str(endpoint))
    return answer, (endpoint, *(other for other in request.token.coordinators if other != endpoint))


def _key(home: Home, rollback: Rollback) -> PrivateKey:
    """Return a new key, or that of a killed join, for which the coordinator returns the same node."""
    from meshray.model.keys import PrivateKey
    from meshray.node.enrolment import load_private_key, save_private_key
    from meshray.node.state_folder import delete_state

    rollback.add(
        "the state folder", lambda: delete_state(home, keep_logs=True, keep_keys=rollback.has_failed(ENROLMENT))
    )
    if home.private_key.exists():
        return load_private_key(home)
    key = PrivateKey.generate()
    save_private_key(home, key)
    return key
