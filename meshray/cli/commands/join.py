"""`meshray join`: this machine becomes a node of the mesh that a token names.

token ──► preflight ──► Ray found ──► key ──► enrolment ──► agent up ──► summary
                     (or built, --env match)   (through ssh with --via)

What was begun is taken back when a later stage fails: the agent, the enrolment, the files.
"""

from __future__ import annotations

import asyncio
import platform
import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from meshray import __version__
from meshray.agent.enrolment import MATCH
from meshray.agent.paths.transport import MODES, Mode
from meshray.cli import bring_up, output, user_environment
from meshray.cli.app import App
from meshray.cli.container_options import ContainerChoice, container_options
from meshray.cli.matching import ask_with_token, match_with_token, warn_of_patch
from meshray.cli.options import (
    NodeCommand,
    endpoint_option,
    json_option,
    node_options,
    parse_labels,
    ray_args,
    read_token,
    require_no_words_to_ray,
    rootless_option,
)
from meshray.cli.results import JoinResult, Result
from meshray.cli.undo import Undo
from meshray.cli.user_environment import environment_options
from meshray.cli.variables import option
from meshray.cli.via import PostRequest, Via, enrol_via, parse_via, unenrol_via
from meshray.cli.withdrawal import ENROLMENT, Withdrawal, taken_back
from meshray.errors import UsageError
from meshray.model.address import Endpoint, NodeName
from meshray.model.node import HEAD, HUB, Versions
from meshray.model.path import Transport
from meshray.model.token import Token
from meshray.raynode.user_environment import UserEnvironment
from meshray.settings import DEFAULT_PORT, Home, own_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meshray.agent.enrolment import Enrolment
    from meshray.environment.matched import Matched
    from meshray.model.enrol import EnrolAnswer, EnrolRequest
    from meshray.model.keys import PrivateKey
    from meshray.raynode.versions import RayInstallation


@dataclass(frozen=True)
class Wish:
    """What the person asked for, parsed.

    Attributes:
        name_is_exact: given by the person, not guessed.
        roles: beyond that of a node: head, hub.
        endpoints: where this node's WireGuard is reached.
        port: of this node's WireGuard; 0 leaves the choice to the machine.
        via: how the enrolment travels; None: straight to the coordinator.
        transport: how the tunnel to the hub may travel.
        env: ``match``: Ray runs from an environment that is built to match the head's; empty: from one that is there.
        environment: what Ray is started with besides what meshray sets.
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
    via: Via | None = None
    rootless: bool = False
    trust_user_environment: bool = False
    open: tuple[str, ...] = ()
    unguarded: bool = False
    transport: Mode = "auto"
    env: str = ""
    environment: UserEnvironment = field(default_factory=UserEnvironment)


@dataclass(frozen=True)
class Found:
    """What the machine offers.

    Attributes:
        port: of WireGuard, 0 where the kernel may choose.
        matched: the environment of ``installation``, where it was to match the head's.
    """

    installation: RayInstallation | None
    port: int
    endpoints: tuple[Endpoint, ...]
    matched: Matched | None = None


@click.command("join", cls=NodeCommand)
@click.argument("token", metavar="TOKEN|-|@FILE", nargs=-1)
@node_options
@option("--ephemeral", is_flag=True, help="Leave the mesh when the agent ends.")
@option("--head", is_flag=True, help="Run the Ray head here, in a mesh made with `init --hub-only`.")
@option("--hub", is_flag=True, help="Forward for others, too; needs --endpoint.")
@endpoint_option
@option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="N",
    help="UDP port of this node's WireGuard; default: that of the first --endpoint, else any.",
)
@option(
    "--via",
    metavar="ssh://[USER@]HOST[:PORT]",
    help="Enrol through ssh to the coordinator's machine, where its port is closed to this one. HOST:PORT: through "
    "a forward that you have made.",
)
@option(
    "--transport",
    type=click.Choice(MODES),
    default="auto",
    show_default=True,
    help="The tunnel to the hub: over UDP, or in a TLS WebSocket; auto takes the latter where UDP is blocked.",
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
    no_ray: bool,
    open_to_members: tuple[str, ...],
    unguarded: bool,
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
) -> Result | int:
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

    A token on the command line can be seen by other people of this machine: - reads it from standard input, @FILE
    from a file. Without one it is that of MESHRAY_TOKEN, else of the file that MESHRAY_TOKEN_FILE names. Returns
    when Ray at the head counts this node as ALIVE. Arguments after -- are passed to `ray start`.
    """
    from meshray.agent.enrolment import parse_open

    given = user_environment.read(app, env, env_file)
    wish = Wish(
        token=read_token(token, app),
        name=NodeName.parse(name) if name is not None else NodeName.from_hostname(socket.gethostname()),
        name_is_exact=name is not None,
        ephemeral=ephemeral,
        labels=parse_labels(label),
        with_ray=not no_ray,
        ray=ray,
        ray_args=ray_args(),
        roles=frozenset(({HEAD} if head else set()) | ({HUB} if hub else set())),
        endpoints=tuple(Endpoint.parse(item, port) for item in endpoint),
        port=port or 0,
        via=parse_via(via) if via is not None else None,
        transport=transport,
        rootless=rootless or app.euid != 0,
        trust_user_environment=trust_user_environment,
        open=parse_open(open_to_members),
        unguarded=unguarded,
        env=MATCH if given.match else "",
        environment=given.environment,
    )
    _require_sense(wish)
    require_no_words_to_ray(no_ray, ray)
    choice = ContainerChoice(runtime, image, bridge, volume)
    choice.require_sense(rootless=rootless, env=given.match)
    if (again := _again(app, wish, block)) is not None:
        return again
    if choice.in_container:
        from meshray.cli.containers import join_in_container

        return join_in_container(app, wish, choice, block)
    return _join(app, wish, block)


def _again(app: App, wish: Wish, block: bool) -> Result | int | None:
    """Brings the node up where this machine is in the token's mesh already; None where it is not."""
    from meshray.cli.commands.lifecycle import start_again
    from meshray.cli.enrolled import find_enrolment

    home = app.own_home
    if home.container.exists():
        from meshray.cli.containers import join_again

        return join_again(app, wish.token)
    known = find_enrolment(home)
    if known is None or known.mesh_id != wish.token.mesh_id or known.taken_out:
        return None
    return start_again(app, block, lambda summary: JoinResult(summary, fresh=False, already=True))


def _require_sense(wish: Wish) -> None:
    if HEAD in wish.roles and not wish.with_ray:
        raise UsageError("head_without_ray", "--head runs Ray, and --no-ray does not", hint="leave out one of them")
    said = (("--no-ray", not wish.with_ray), ("--ray", wish.ray is not None), ("--head", HEAD in wish.roles))
    other = next((option for option, is_said in said if is_said), "")
    if wish.env and other:
        raise UsageError(
            "env_with_other",
            f"--env match runs Ray from an environment that matches the head's, and {other} says otherwise",
            hint="leave out one of them",
        )
    if HUB in wish.roles and not wish.endpoints:
        raise UsageError(
            "hub_needs_endpoint",
            "a hub is reached from outside: where?",
            hint="--hub --endpoint HOST:PORT, with this machine's public address and a UDP port that is open there",
        )


def _join(app: App, wish: Wish, block: bool) -> Result | int:
    from meshray.cli.enrolled import require_stranger
    from meshray.model.endpoints import require_few
    from meshray.raynode.command import check_extra_args, check_labels
    from meshray.runtime import service
    from meshray.runtime.state import claimed, require_clean

    home = app.own_home
    check_extra_args(wish.ray_args, own=own_ports(wish.token.coordinators[0].port))
    require_few(wish.endpoints, "--endpoint")
    service.require_valid(app.environ)
    check_labels(wish.labels)
    require_stranger(home, wish.token.mesh_id)
    if not wish.trust_user_environment:
        app.run_from_copy()
    with claimed(home) as release, Undo(app) as undo:
        require_clean(home)
        found = _prepare(app, wish)
        _enrol(app, home, wish, found, undo)

        def result(summary: bring_up.Summary) -> JoinResult:
            undo.keep()
            env = found.matched.to_json() if found.matched is not None else None
            return JoinResult(summary, env=env, udp_port=_silent_udp(summary, wish))

        if block:
            release()
            return bring_up.run_here(app, home, lambda summary: output.show(app, result(summary)))
        return result(bring_up.start_and_follow(app, home))


def _silent_udp(summary: bring_up.Summary, wish: Wish) -> int:
    """The head's UDP port, where the tunnel had to do without it; else 0."""
    path = summary.get("path")
    is_relayed = isinstance(path, dict) and path.get("transport") == Transport.WSS and wish.transport == "auto"
    return wish.token.coordinators[0].port if is_relayed else 0


def _prepare(app: App, wish: Wish) -> Found:
    """Looks at the machine and changes nothing."""
    from meshray.cli.enrolled import check_rootless, look_for_ray, warn_of_missing_engine
    from meshray.runtime.preflight import check_wireguard

    with app.progress() as progress:
        progress.stage("preflight", "run")
        wireguard = check_rootless(app) if wish.rootless else check_wireguard(app.environ)
        port = _listen_port(wish)
        progress.stage("preflight", "ok", wireguard + (f", UDP port {port}" if port else ""))
        warn_of_missing_engine(app, wireguard)
        head = HEAD in wish.roles
        if wish.with_ray:
            _require_ports(app, wish)
        # While Ray's own interpreter answers, this one has time.
        threading.Thread(target=_import_for_enrolment).start()
        matched = match_with_token(app, progress, wish.token, wish.via) if wish.env else None
        ray = str(matched.ray) if matched is not None else wish.ray
        installation = look_for_ray(app, progress, ray, wish.ray_args, head=head) if wish.with_ray else None
    return Found(installation, port, wish.endpoints or _endpoints(wish, port), matched)


def _require_ports(app: App, wish: Wish) -> None:
    """Check that Ray can have its ports here. A head asks which ones the mesh has; the token's use is not spent.

    Raises:
        UsageError: two of them clash. MeshrayError: ``port_in_use``.
    """
    from meshray.model.ray_ports import RayPorts, check_ports, take_ports
    from meshray.raynode.preflight import require_free

    head = HEAD in wish.roles
    chosen, _ = take_ports(wish.ray_args)
    if head:
        chosen |= ask_with_token(app, wish.token, wish.via).ray_ports
        check_ports(chosen, head=True, own=own_ports(wish.token.coordinators[0].port))
    if not wish.rootless:  # else Ray listens in a network namespace that is still to be made
        require_free(RayPorts.of(chosen), head=head)


def _import_for_enrolment() -> None:
    """A tenth of a second that would have to be waited for later."""
    import aiohttp  # noqa: F401
    from cryptography.hazmat.primitives.asymmetric import x25519  # noqa: F401


def _listen_port(wish: Wish) -> int:
    from meshray.runtime import ports

    chosen = wish.port or (wish.endpoints[0].port if wish.endpoints else 0)
    if chosen:
        ports.require_free(chosen, ("udp",))
        return chosen
    # Who cannot reach the coordinator may have to be reached: at a port that can be told beforehand.
    return ports.free_udp_port(DEFAULT_PORT) if wish.via is not None else 0


def _endpoints(wish: Wish, port: int) -> tuple[Endpoint, ...]:
    from meshray.runtime.own_endpoints import find_endpoints

    return asyncio.run(find_endpoints(port)) if wish.via is not None else ()


def _enrol(app: App, home: Home, wish: Wish, found: Found, undo: Undo) -> None:
    from meshray.agent.cache import save_map
    from meshray.agent.enrolment import Enrolment
    from meshray.agent.identity import Identity
    from meshray.cli.enrolled import unenrol
    from meshray.cli.lock_file import require_lock
    from meshray.model.enrol import EnrolRequest
    from meshray.runtime import service
    from meshray.runtime.person import Person
    from meshray.runtime.preflight import require_no_clash, routes

    key, installation = _key(home, undo), found.installation
    identity = Identity.load_or_make(home, wish.token.mesh_id)
    identity.endorsed(wish.token.endorse if wish.token.endorser is not None else None)
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
        endpoints=found.endpoints,
        roles=wish.roles,
        attestation=identity.sign(key.public()),
    )
    withdrawal = Withdrawal(app, undo, wish.token, key, wish.via)
    with withdrawal.unless_refused():
        answer, coordinators = _ask(app, wish, request, key, on_sent=withdrawal.sent)
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
            fingerprint=wish.token.fingerprint.hex(),
            mesh_secret=answer.mesh_secret,
            ray_token=answer.ray_token,
            secret_epoch=answer.secret_epoch,
            mesh_port=coordinators[0].port,
            listen_port=found.port,
            transport=wish.transport,
            person_uid=Person.invoking(app.environ).uid,
            ephemeral=me.ephemeral,
            with_ray=wish.with_ray,
            ray=str(installation.ray) if installation else "",
            ray_args=wish.ray_args,
            labels=wish.labels,
            rootless=wish.rootless,
            trust_user_environment=wish.trust_user_environment,
            env=wish.env,
            environment=wish.environment,
            open=wish.open,
            unguarded=wish.unguarded,
        )
        via = wish.via

        def take_back() -> None:
            unenrol_via(app, via, enrolment) if via is not None else unenrol(enrolment, take_back=True)

        undo.add(ENROLMENT, lambda: taken_back(take_back))
        withdrawal.settled()
        require_lock(wish.token, answer.map.mesh)
        require_no_clash(answer.map.mesh.network, routes(), chosen_here=False)
        progress.stage("node", "ok", f"{me.name}, {me.ip} in mesh {answer.map.mesh.name}")
    if installation is not None and answer.map.head is not None:
        warn_of_patch(app, installation.versions, answer.map.head.versions)
    if HUB in wish.roles:
        _require_reachable(app, wish, enrolment)
    enrolment.save(home)  # first: who is killed after it is a node whose map can be had again
    save_map(home, answer.map)
    undo.add("the unit", lambda: service.uninstall(home))
    undo.add("the agent", lambda: service.stop(home))


def _require_reachable(app: App, wish: Wish, enrolment: Enrolment) -> None:
    from meshray.agent.client import Coordinator
    from meshray.cli.hub_check import require_reachable

    coordinator = Coordinator(enrolment.coordinators, wish.token.fingerprint, enrolment.credential)

    def ask(path: str, body: Mapping[str, object]) -> Mapping[str, object]:
        if wish.via is not None:
            return wish.via.call(app, PostRequest(coordinator, path, body))
        return asyncio.run(coordinator.call("POST", path, body))

    app.note(f"hub: the coordinator tries {', '.join(map(str, wish.endpoints))}")
    require_reachable(app, wish.endpoints, enrolment.listen_port, ask)


def _ask(
    app: App, wish: Wish, request: EnrolRequest, key: PrivateKey, *, on_sent: Callable[[], None]
) -> tuple[EnrolAnswer, tuple[Endpoint, ...]]:
    """The coordinator's answer, and where it is tried from now on."""
    from meshray.agent import client

    if wish.via is not None:
        app.note(f"enrol: through {wish.via}")  # no live display: ssh may ask for a password
        return enrol_via(app, wish.via, wish.token, request, key, on_sent=on_sent), wish.token.coordinators
    with app.progress() as progress:
        progress.stage("enrol", "run", ", ".join(map(str, wish.token.coordinators)))
        answer, endpoint = asyncio.run(client.enrol(wish.token, request, key, on_sent=on_sent))
        progress.stage("enrol", "ok", str(endpoint))
    return answer, (endpoint, *(other for other in wish.token.coordinators if other != endpoint))


def _key(home: Home, undo: Undo) -> PrivateKey:
    """A new key; or the one of a join that was killed, with which the coordinator gives the same node again."""
    from meshray.agent.enrolment import load_private_key, save_private_key
    from meshray.model.keys import PrivateKey
    from meshray.runtime.state import forget

    undo.add("the state folder", lambda: forget(home, keep_logs=True, keep_keys=undo.has_failed(ENROLMENT)))
    if home.private_key.exists():
        return load_private_key(home)
    key = PrivateKey.generate()
    save_private_key(home, key)
    return key
