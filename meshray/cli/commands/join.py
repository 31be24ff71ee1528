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
from typing import TYPE_CHECKING

import click

from meshray import __version__
from meshray.cli import bring_up, env_options, external_ray, output
from meshray.cli.app import App
from meshray.cli.container_options import ContainerChoice, container_options
from meshray.cli.enrolment_rollback import ENROLMENT, Withdrawal, taken_back
from meshray.cli.env_options import environment_options
from meshray.cli.join_request import JoinRequest
from meshray.cli.join_result import JoinResult
from meshray.cli.matching import ask_with_token, match_with_token, warn_of_patch
from meshray.cli.options import (
    NodeCommand,
    endpoint_option,
    json_option,
    node_options,
    parse_exposed,
    parse_labels,
    ray_args,
    read_token,
    require_no_words_to_ray,
    rootless_option,
)
from meshray.cli.undo import Undo
from meshray.cli.variables import option
from meshray.cli.via import PostRequest, enrol_via, parse_via, unenrol_via
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
    from meshray.runtime.base import AgentRuntime


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
    asked = JoinRequest(
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
        exposed=parse_exposed(expose, rootless=rootless),
        env=MATCH if given.match else "",
        environment=given.environment,
        external=external,
    )
    _require_sense(asked)
    require_no_words_to_ray(no_ray, ray)
    choice = ContainerChoice(runtime, image, bridge, volume)
    choice.require_sense(rootless=rootless, env=given.match)
    if (again := _again(app, asked, block)) is not None:
        return again
    if choice.in_container:
        from meshray.cli.container_join import join_in_container

        return join_in_container(app, asked, choice, block)
    return _join(app, asked, block)


def _again(app: App, asked: JoinRequest, block: bool) -> JoinResult | int | None:
    """Bring the node up if this machine is in the token's mesh already; return None if it is not."""
    from meshray.cli.commands.lifecycle import start_again
    from meshray.cli.membership_checks import find_enrolment

    home = app.own_home
    if home.container.exists():
        from meshray.cli.container_join import join_again

        return join_again(app, asked.token)
    known = find_enrolment(home)
    if known is None or known.mesh_id != asked.token.mesh_id or known.taken_out:
        return None
    return start_again(app, block, lambda summary: JoinResult.read({**to_json(summary), "already": True}, fresh=False))


def _require_sense(asked: JoinRequest) -> None:
    if HEAD in asked.roles and not asked.with_ray:
        raise UsageError("head_without_ray", "--head runs Ray, and --no-ray does not", hint="leave out one of them")
    said = (
        ("--no-ray", not asked.with_ray),
        ("--ray", asked.ray is not None or asked.external is not None),
        ("--head", HEAD in asked.roles),
    )
    other = next((option for option, is_said in said if is_said), "")
    if asked.env and other:
        raise UsageError(
            "env_with_other",
            f"--env match runs Ray from an environment that matches the head's, which contradicts {other}",
            hint="leave out one of them",
        )
    if HUB in asked.roles and not asked.endpoints:
        raise UsageError(
            "hub_needs_endpoint",
            "a hub must be reachable from outside: at which endpoint?",
            hint="--hub --endpoint HOST:PORT, with this machine's public address and a UDP port that is open there",
        )


def _join(app: App, asked: JoinRequest, block: bool) -> JoinResult | int:
    from meshray.cli.membership_checks import require_stranger
    from meshray.model.endpoints import require_few
    from meshray.node.state_folder import claimed, require_clean
    from meshray.raynode.command import check_extra_args, check_labels
    from meshray.runtime import agent_service

    home = app.own_home
    check_extra_args(asked.ray_args, own=own_ports(asked.token.coordinators[0].port))
    require_few(asked.endpoints, "--endpoint")
    agent_service.require_valid(app.environ)
    check_labels(asked.labels)
    require_stranger(home, asked.token.mesh_id)
    if not asked.trust_user_environment:
        app.run_from_copy()
    with claimed(home) as release, Undo(app) as undo:
        require_clean(home)
        found = _prepare(app, asked)
        _enrol(app, home, asked, found, undo)

        def result(summary: Summary) -> JoinResult:
            undo.keep()
            matched = found.matched
            env = {"env": {"path": str(matched.folder), "built": matched.built}} if matched is not None else {}
            return JoinResult.read({**to_json(summary), **env}, udp_port=_silent_udp(summary, asked))

        if block:
            release()
            return bring_up.run_here(app, home, lambda summary: output.show(app, result(summary)))
        return result(bring_up.start_and_follow(app, home))


def _silent_udp(summary: Summary, asked: JoinRequest) -> int:
    """Return the head's UDP port if the tunnel works only without it; else 0."""
    is_relayed = summary.path.transport == Transport.WSS and asked.transport == "auto"
    return asked.token.coordinators[0].port if is_relayed else 0


def _prepare(app: App, asked: JoinRequest) -> Found:
    """Examine the machine, without changing anything."""
    from meshray.cli.membership_checks import look_for_ray, warn_of_missing_engine
    from meshray.runtime.select import agent_runtime

    with app.progress() as progress:
        progress.stage("preflight", "run")
        runtime = agent_runtime(app.own_home, app.environ, asked.rootless)
        wireguard = runtime.preflight(app)
        port = _listen_port(asked)
        progress.stage("preflight", "ok", wireguard + (f", UDP port {port}" if port else ""))
        warn_of_missing_engine(app, wireguard)
        head = HEAD in asked.roles
        has_own = asked.with_ray and asked.external is None
        if has_own:
            _require_ports(app, asked, runtime)
        # Ray's interpreter takes a while to answer, in which this one does other work.
        threading.Thread(target=_import_for_enrolment).start()
        matched = match_with_token(app, progress, asked.token, asked.via) if asked.env else None
        ray = str(matched.ray) if matched is not None else asked.ray
        installation = look_for_ray(app, progress, ray, asked.ray_args, head=head) if has_own else None
        versions = installation.versions if installation is not None else _versions(app, asked)
    return Found(installation, port, asked.endpoints or _endpoints(asked, port), versions, matched)


def _versions(app: App, asked: JoinRequest) -> Versions:
    """Return what a node without a Ray of its own reports. A worker's Ray that another program starts is the head's,
    because Ray itself requires that."""
    if asked.external is not None and HEAD not in asked.roles:
        told = ask_with_token(app, asked.token, asked.via)
        return Versions(__version__, told.ray, told.python)
    return Versions(__version__, "", platform.python_version())


def _require_ports(app: App, asked: JoinRequest, runtime: AgentRuntime) -> None:
    """Check that Ray's ports are free. A head requests the mesh's ports, which does not use up the token.

    Raises:
        UsageError: two of them are equal. MeshrayError: ``port_in_use``.
    """
    from meshray.model.ray_ports import RayPorts, check_ports, take_ports
    from meshray.raynode.preflight import require_free

    head = HEAD in asked.roles
    chosen, _ = take_ports(asked.ray_args)
    if head:
        chosen |= ask_with_token(app, asked.token, asked.via).ray_ports
        check_ports(chosen, head=True, own=own_ports(asked.token.coordinators[0].port))
    if not runtime.has_own_network:
        require_free(RayPorts.of(chosen), head=head)


def _import_for_enrolment() -> None:
    """Import now what would take a tenth of a second later."""
    import aiohttp  # noqa: F401
    from cryptography.hazmat.primitives.asymmetric import x25519  # noqa: F401


def _listen_port(asked: JoinRequest) -> int:
    from meshray.linux import ports

    chosen = asked.port or (asked.endpoints[0].port if asked.endpoints else 0)
    if chosen:
        ports.require_free(chosen, ("udp",))
        return chosen
    # A node that cannot reach the coordinator must itself be reachable, at a port that is known in advance.
    return ports.free_udp_port(DEFAULT_PORT) if asked.via is not None else 0


def _endpoints(asked: JoinRequest, port: int) -> tuple[Endpoint, ...]:
    from meshray.runtime.own_endpoints import find_endpoints

    return asyncio.run(find_endpoints(port)) if asked.via is not None else ()


def _enrol(app: App, home: Home, asked: JoinRequest, found: Found, undo: Undo) -> None:
    from meshray.cli.lock_file import require_lock
    from meshray.cli.membership_checks import unenrol
    from meshray.linux.user import User
    from meshray.model.enrol import EnrolRequest
    from meshray.node.enrolment import Enrolment
    from meshray.node.identity import Identity
    from meshray.node.map_cache import save_map
    from meshray.runtime import agent_service
    from meshray.runtime.preflight import require_no_clash, routes_here

    key, installation = _key(home, undo), found.installation
    identity = Identity.load_or_make(home, asked.token.mesh_id)
    identity.endorsed(asked.token.endorse if asked.token.endorser is not None else None)
    request = EnrolRequest(
        mesh_id=asked.token.mesh_id,
        token_id=asked.token.token_id,
        secret=asked.token.secret,
        name=asked.name,
        name_is_exact=asked.name_is_exact,
        public_key=key.public(),
        versions=found.versions,
        with_ray=asked.with_ray,
        ephemeral=asked.ephemeral,
        labels=asked.labels,
        endpoints=found.endpoints,
        roles=asked.roles,
        attestation=identity.sign(key.public()),
    )
    withdrawal = Withdrawal(app, undo, asked.token, key, asked.via)
    with withdrawal.unless_refused():
        answer, coordinators = _ask(app, asked, request, key, on_sent=withdrawal.sent)
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
            fingerprint=asked.token.fingerprint.hex(),
            mesh_secret=answer.mesh_secret,
            ray_token=answer.ray_token,
            secret_epoch=answer.secret_epoch,
            mesh_port=coordinators[0].port,
            listen_port=found.port,
            transport=asked.transport,
            user_uid=(asked.external.user if asked.external else User.invoking(app.environ)).uid,
            external=asked.external is not None,
            ephemeral=me.ephemeral,
            with_ray=asked.with_ray,
            ray=str(installation.ray) if installation else "",
            ray_args=asked.ray_args,
            labels=asked.labels,
            rootless=asked.rootless,
            trust_user_environment=asked.trust_user_environment,
            env=asked.env,
            environment=asked.environment,
            open=asked.open,
            unguarded=asked.unguarded,
            exposed=asked.exposed,
        )
        via = asked.via

        def take_back() -> None:
            unenrol_via(app, via, enrolment) if via is not None else unenrol(enrolment, take_back=True)

        undo.add(ENROLMENT, lambda: taken_back(take_back))
        withdrawal.settled()
        require_lock(asked.token, answer.map.mesh)
        require_no_clash(answer.map.mesh.network, routes_here(), chosen_here=False)
        progress.stage("node", "ok", f"{me.name}, {me.ip} in mesh {answer.map.mesh.name}")
    if installation is not None and answer.map.head is not None:
        warn_of_patch(app, installation.versions, answer.map.head.versions)
    if HUB in asked.roles:
        _require_reachable(app, asked, enrolment)
    enrolment.save(home)  # This comes first: a join killed after it leaves a node whose map can be requested again.
    save_map(home, answer.map)
    undo.add("the unit", lambda: agent_service.uninstall(home))
    undo.add("the agent", lambda: agent_service.stop(home))


def _require_reachable(app: App, asked: JoinRequest, enrolment: Enrolment) -> None:
    from meshray.cli.hub_check import require_reachable
    from meshray.client.coordinator import Coordinator

    coordinator = Coordinator(enrolment.coordinators, asked.token.fingerprint, enrolment.credential)

    def ask(path: str, body: Mapping[str, object]) -> Mapping[str, object]:
        if asked.via is not None:
            return asked.via.call(app, PostRequest(coordinator, path, body))
        return asyncio.run(coordinator.call("POST", path, body))

    app.note(f"hub: the coordinator tries {', '.join(map(str, asked.endpoints))}")
    require_reachable(app, asked.endpoints, enrolment.listen_port, ask)


def _ask(
    app: App, asked: JoinRequest, request: EnrolRequest, key: PrivateKey, *, on_sent: Callable[[], None]
) -> tuple[EnrolAnswer, tuple[Endpoint, ...]]:
    """Return the coordinator's answer, and the endpoints to try from now on."""
    from meshray.client import coordinator as client

    if asked.via is not None:
        app.note(f"enrol: through {asked.via}")  # No live display: ssh may ask for a password.
        return enrol_via(app, asked.via, asked.token, request, key, on_sent=on_sent), asked.token.coordinators
    with app.progress() as progress:
        progress.stage("enrol", "run", ", ".join(map(str, asked.token.coordinators)))
        answer, endpoint = asyncio.run(client.enrol(asked.token, request, key, on_sent=on_sent))
        progress.stage("enrol", "ok", str(endpoint))
    return answer, (endpoint, *(other for other in asked.token.coordinators if other != endpoint))


def _key(home: Home, undo: Undo) -> PrivateKey:
    """Return a new key, or that of a killed join, for which the coordinator returns the same node."""
    from meshray.model.keys import PrivateKey
    from meshray.node.enrolment import load_private_key, save_private_key
    from meshray.node.state_folder import forget

    undo.add("the state folder", lambda: forget(home, keep_logs=True, keep_keys=undo.has_failed(ENROLMENT)))
    if home.private_key.exists():
        return load_private_key(home)
    key = PrivateKey.generate()
    save_private_key(home, key)
    return key
