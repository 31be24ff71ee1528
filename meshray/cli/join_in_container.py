"""`meshray join --runtime docker`: creates a container, in which the machine's node joins.

head's Ray and Python ──► image ──► container ──► in it: meshray join -, the token on standard input

A node in the container works and answers like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from meshray.cli import output
from meshray.cli.app import App
from meshray.cli.join_result import JoinResult
from meshray.cli.matching import request_environment
from meshray.cli.rollback import Rollback
from meshray.defaults import own_ports
from meshray.errors import MeshrayError, UsageError
from meshray.home import Home
from meshray.model.node import HEAD, HUB, Versions

if TYPE_CHECKING:
    from meshray.cli.container_options import ContainerChoice
    from meshray.cli.join_request import JoinRequest
    from meshray.model.token import Token
    from meshray.runtime.docker.container_plan import Plan
    from meshray.runtime.docker.engine import Engine
    from meshray.runtime.docker.node_container import NodeContainer

#: The folder with the logs of a failed join, in the container: see `meshray.node.state_folder.failed_logs`.
_FAILED = "log.failed"


def join_in_container(app: App, request: JoinRequest, choice: ContainerChoice, block: bool) -> JoinResult | int:
    """Run `meshray join --runtime docker`. What it creates is removed if a later step fails."""
    from meshray.cli.membership_checks import require_not_enrolled
    from meshray.node.state_folder import claimed, require_clean
    from meshray.raynode.command import check_extra_args, check_labels
    from meshray.runtime import log_format
    from meshray.runtime.container_commands import run_command
    from meshray.runtime.docker import record
    from meshray.runtime.docker.engine import open_engine
    from meshray.runtime.docker.node_container import create_container

    home = app.own_home
    _require_sense(request)
    check_extra_args(request.ray_args, own=own_ports(request.token.coordinators[0].port))
    check_labels(request.labels)
    log_format.require_valid(app.environ)
    require_not_enrolled(home, request.token.mesh_id)
    with claimed(home) as release, Rollback(app) as rollback:
        require_clean(home)
        engine = open_engine(app.environ)
        volumes = _volumes(engine, choice.volumes)
        with app.progress() as progress:
            progress.stage("head", "run", ", ".join(map(str, request.token.coordinators)))
            environment = request_environment(app, progress, request.token, None)
            head = Versions("", environment.ray, environment.python)
            progress.stage("head", "ok", f"Ray {head.ray or '-'}, Python {head.python or '-'}")
        plan = _plan(app, engine, request, choice, head)
        container = create_container(engine, replace(plan, volumes=volumes))
        rollback.add("the container", container.remove)
        rollback.add("its logs", lambda: _keep_logs(container, home))
        chosen = request.environment.chosen
        answer = run_command(
            container, _join_arguments(request), app, stdin=request.token.encode().encode(), environ=chosen
        )
        record.save(home, container.record)
        rollback.keep()
        result = JoinResult.read(answer)
        if not block:
            return result
        release()
        output.show(app, result)
        return _stay(app, home, container)


def join_again(app: App, token: Token) -> JoinResult:
    """Run `join` for a node that is in a container already, where meshray compares the meshes."""
    from meshray.runtime.docker.runtime import Docker

    words = ["join", "-", "--json", "--trust-user-environment"]
    answer = Docker(app.own_home, app.environ).bring_up(words, app, token.encode().encode())
    return JoinResult.read({**answer, "already": True}, fresh=False)


def _require_sense(request: JoinRequest) -> None:
    if HUB in request.roles:
        raise UsageError(
            "hub_in_container",
            "a hub forwards packets in the kernel, which a container may not set up",
            hint="--hub without --runtime docker, on the machine itself",
        )
    if request.external is not None:
        raise UsageError(
            "external_in_container",
            "--ray external and --ray-user are for a Ray in this network namespace, and the container has its own",
            hint="run meshray in the pod or container of that Ray, without --runtime docker",
        )
    if request.via is not None:
        raise UsageError(
            "via_in_container",
            "--via goes through the ssh of this machine, which is not in the container",
            hint="ssh -L a port of the coordinator, or join without --runtime docker",
        )


def _volumes(engine: Engine, volumes: Sequence[str]) -> dict[str, str]:
    found = {}
    for item in volumes:
        folder, colon, place = item.rpartition(":")
        if not colon or not Path(folder).is_absolute() or not place.startswith("/"):
            raise UsageError("bad_volume", f"{item[:80]!r} is not a volume", hint="--volume /home/ana/data:/data")
        if not Path(folder).is_dir():
            raise UsageError("bad_volume", f"the folder {folder} does not exist", hint="--volume /home/ana/data:/data")
        if engine.confined and Path("/home") not in Path(folder).resolve().parents:
            raise UsageError(
                "docker_confined",
                f"this Docker is a snap and sees only users' homes: {folder} would be empty in the container",
                hint="a folder below /home, or Docker's own packages: https://docs.docker.com/engine/install",
            )
        found[place] = folder
    return found


def _plan(app: App, engine: Engine, request: JoinRequest, choice: ContainerChoice, head: Versions) -> Plan:
    from meshray.runtime import log_format
    from meshray.runtime.docker import container_plan as plan
    from meshray.runtime.docker import image
    from meshray.runtime.docker.engine import count_gpus

    gpus, warning = plan.gpus(count_gpus(), engine.info.get("Runtimes") or {})
    if warning:
        app.warn(warning)
    if engine.forbids_new_privileges:
        app.warn("this Docker daemon sets no-new-privileges: sudo does not work in the container; Ray needs none")
    if not choice.image and not head.ray:
        raise MeshrayError(
            "head_unknown",
            "no image can be chosen: the head of this mesh runs no Ray yet",
            hint="--image IMAGE, for example rayproject/ray:2.60.0-py312",
        )
    name = choice.image or image.matching_image(head.ray, head.python, str(engine.info.get("Architecture", "")), gpus)
    with app.progress() as progress:
        found = image.prepare(engine, name, head, request.with_ray, progress.stage)
    if request.with_ray and request.unguarded and not found.content.closes:
        app.warn(f"{name} has neither nft nor iptables: Ray's ports are open to other containers of its bridge")
    return plan.Plan(
        image=found.id,
        python=found.content.python,
        name=plan.free_name(str(request.name), engine.container_names()),
        hostname=str(request.name),
        user_uid=found.content.uid,
        shm=plan.shm_bytes(request.ray_args, int(engine.info.get("MemTotal") or 0)),
        gpus=gpus,
        bridge=choice.bridge,
        ports=tuple(sorted({request.port, *(endpoint.port for endpoint in request.endpoints)} - {0})),
        ephemeral=request.ephemeral,
        settings=log_format.settings(app.environ),
    )


def _join_arguments(request: JoinRequest) -> list[str]:
    """Return the command line of the join in the container. The node's name is the host name there."""
    # The container is the boundary: environments of images belong to the user who runs Ray there.
    words = ["join", "-", "--json", "--transport", request.transport, "--trust-user-environment"]
    words += ["--name", str(request.name)] if request.name_is_exact else []
    words += ["--ray", request.ray] if request.ray is not None else []
    flags = (
        ("--ephemeral", request.ephemeral),
        ("--no-ray", not request.with_ray),
        ("--unguarded", request.unguarded),
        ("--no-remote", request.no_remote),
    )
    words += [flag for flag, is_set in flags if is_set]
    for item in request.open:
        words += ["--open", item]
    for port in request.exposed:
        words += ["--expose", str(port)]
    for name in request.environment.chosen:
        words += ["--env", name]
    words += ["--head"] if HEAD in request.roles else []
    words += ["--port", str(request.port)] if request.port else []
    for endpoint in request.endpoints:
        words += ["--endpoint", str(endpoint)]
    for key, value in request.labels.items():
        words += ["--label", f"{key}={value}"]
    return [*words, "--", *request.ray_args] if request.ray_args else words


def _keep_logs(container: NodeContainer, home: Home) -> None:
    """Keep the logs of a failed join, so that `meshray logs` shows them."""
    from meshray.linux.files import make_folder, write_atomically
    from meshray.node.state_folder import failed_logs
    from meshray.runtime.docker.container_plan import STATE

    for part in ("agent", "ray"):
        text = container.read(f"{STATE}/{_FAILED}/{part}.log")
        if text:
            make_folder(failed_logs(home))
            write_atomically(failed_logs(home) / f"{part}.log", text.decode(errors="replace"))


def _stay(app: App, home: Home, container: NodeContainer) -> int:
    """Wait with --block until the container ends, or this command is interrupted; then take the node down."""
    from meshray.runtime.docker.runtime import Docker

    try:
        return container.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        Docker(home, app.environ).take_down(["down", "--json"], app)
