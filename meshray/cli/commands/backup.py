"""`meshray backup` and `meshray restore`: the head's state in an encrypted file, and on another machine."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meshray.cli import bring_up
from meshray.cli.app import App
from meshray.cli.options import json_option
from meshray.cli.passphrase import passphrase
from meshray.cli.result import Result
from meshray.cli.rollback import Rollback
from meshray.cli.tables import Paint, plain
from meshray.defaults import own_ports
from meshray.errors import MeshrayError, UsageError
from meshray.home import Home
from meshray.model.address import Endpoint
from meshray.model.amounts import counted
from meshray.protocol.answers import BackupAnswer, RestoreAnswer

if TYPE_CHECKING:
    from meshray.coordinator.records import Member
    from meshray.node.backup_file import Backup
    from meshray.node.enrolment import Enrolment
    from meshray.raynode.versions import RayInstallation


@dataclass(frozen=True)
class BackupResult(Result[BackupAnswer]):
    """``backup``."""

    def text(self, paint: Paint = plain) -> str:
        """Return the file, and what it is."""
        answer = self.answer
        return (
            f"{answer.file} is the state of mesh {answer.mesh}, encrypted ({answer.size // 1024 + 1} KiB)\n"
            "On another machine, once this head has stopped for good: sudo meshray restore FILE"
        )


@dataclass(frozen=True)
class RestoreResult(Result[RestoreAnswer]):
    """``restore``."""

    def text(self, paint: Paint = plain) -> str:
        """Return the head, and what the other nodes need."""
        answer = self.answer
        at = datetime.fromtimestamp(answer.created).astimezone().strftime("%Y-%m-%d %H:%M")
        lines = [f"{answer.node.name} ({answer.node.ip}) is the head of mesh {answer.mesh} again, as of {at}"]
        if answer.nodes:
            lines.append(
                f"{counted(len(answer.nodes), 'node')} will connect: those that this machine reaches, within three "
                f"minutes; on each other one: sudo meshray up --coordinator {next(iter(answer.endpoints), 'HOST:PORT')}"
            )
        lines.append(
            "What happened after the backup is undone: meshray node list, token list, web list and audit show what is "
            "back, and sudo meshray secrets rotate replaces the secrets"
        )
        return "\n".join(lines)


@click.command("backup")
@click.argument("file", metavar="FILE")
@json_option
@click.pass_obj
def backup_command(app: App, file: str) -> BackupResult:
    """Write the state of this head to a new file, encrypted with a passphrase.

    \b
    Examples:
      sudo meshray backup /media/usb/lab-2026-11-30.backup
      sudo --preserve-env=MESHRAY_PASSPHRASE meshray backup lab.backup

    With the file and the passphrase, `meshray restore` makes another machine the head: same mesh, same addresses. They
    are every secret of the mesh: keep them apart. The mesh continues while the file is written.
    """
    from meshray.cli.head_backup import collect
    from meshray.cli.new_file import new_file
    from meshray.node.enrolment import Enrolment
    from meshray.node.state_folder import claimed

    home = app.own_home
    app.require_root_of_node()
    enrolment = Enrolment.load(home)
    if not enrolment.hosts_coordinator:
        raise UsageError(
            "not_coordinator",
            "this node does not run the coordinator, so it has no state of the mesh",
            hint="on the head",
        )
    with new_file(Path(file), "FILE", app.environ) as target:
        secret = passphrase(app, confirm=True)
        with claimed(home):
            backup = collect(app, home, enrolment)
        data = backup.sealed(secret)
        target.write(data)
    return BackupResult(BackupAnswer(file, len(data), backup.mesh, backup.node, backup.created))


@click.command("restore")
@click.argument("file", metavar="FILE")
@click.option(
    "--advertise",
    multiple=True,
    metavar="HOST[:PORT]",
    help="An address at which others reach this machine, instead of those advertised before. May be repeated.",
)
@click.option("--ray", metavar="PATH", help="The Ray to run here: a program or a virtual environment.")
@json_option
@click.pass_obj
def restore_command(app: App, file: str, advertise: tuple[str, ...], ray: str | None) -> RestoreResult:
    """Make this machine the head of a mesh, from the file of `meshray backup`.

    \b
    Examples:
      sudo meshray restore lab.backup
      sudo meshray restore lab.backup --advertise 203.0.113.9

    The old head must not run any more. Nodes keep their names, addresses and keys, and connect to this machine. What
    happened after the backup is undone: nodes that were removed and tokens that were revoked since then are back.
    """
    from meshray.cli.head_backup import adapt, put_in_place, remove_interrupted, staged
    from meshray.cli.membership_checks import require_not_enrolled
    from meshray.cli.user_file import read_bytes_as_user
    from meshray.model.endpoints import require_few
    from meshray.node.backup_file import MAX_BYTES, SealedBackup
    from meshray.node.enrolment import Enrolment
    from meshray.node.state_folder import claimed, delete_state, require_clean
    from meshray.runtime import agent_service

    home = app.own_home
    agent_service.require_valid(app.environ)
    require_not_enrolled(home)
    app.run_from_copy()
    try:
        sealed = SealedBackup.parse(read_bytes_as_user(file, app.environ, MAX_BYTES))
    except OSError as error:
        raise UsageError("file_closed", f"{file} cannot be read: {error.strerror}", hint="another FILE") from None
    backup = sealed.open(passphrase(app, confirm=False))
    with claimed(home), Rollback(app) as rollback:
        remove_interrupted(home)
        require_clean(home)
        with staged(home, backup) as stage:
            rollback.add("the state folder", lambda: delete_state(home, keep_logs=True))
            before = Enrolment.load(stage)
            advertised = require_few([Endpoint.parse(host, before.mesh_port) for host in advertise], "--advertise")
            found = _check_machine(app, stage, before, ray)
            enrolment = _for_this_machine(app, before, found)
            member = adapt(stage, enrolment, found.versions if found else None, advertised, backup)
            put_in_place(home, stage)
        rollback.add("the unit", lambda: agent_service.uninstall(home))
        rollback.add("the agent", lambda: agent_service.stop(home))
        answer = _start(app, home, backup, member)
        rollback.keep()
    return RestoreResult(answer)


def _check_machine(app: App, stage: Home, enrolment: Enrolment, ray: str | None) -> RayInstallation | None:
    """Check that this machine can be that head; return its Ray, None if the head runs none."""
    from meshray.cli.membership_checks import look_for_ray, naming_rootless_node, warn_of_missing_engine
    from meshray.coordinator.store import open_store
    from meshray.model.ray_ports import RayPorts, take_ports
    from meshray.raynode.command import check_extra_args
    from meshray.raynode.preflight import require_free
    from meshray.raynode.versions import compare
    from meshray.runtime.preflight import check_network_and_port
    from meshray.runtime.selection import agent_runtime

    store = open_store(stage)
    try:
        registry = store.load()
    finally:
        store.close()
    old = registry.member(enrolment.node_id).node
    with app.progress() as progress:
        progress.stage("old head", "run")
        _require_stopped(enrolment, old.endpoints)
        progress.stage("old head", "ok", "does not answer")
        progress.stage("preflight", "run")
        runtime = agent_runtime(app.own_home, app.environ, app.euid != 0)
        with naming_rootless_node(app):
            check_network_and_port(registry.mesh.network, enrolment.mesh_port)
            wireguard = runtime.preflight(app)
        has_own = enrolment.with_ray and not enrolment.external
        if has_own and not runtime.has_own_network:
            require_free(RayPorts.of(take_ports(enrolment.ray_args)[0]), head=True)
        progress.stage("preflight", "ok", wireguard)
        warn_of_missing_engine(app, wireguard)
        if not has_own:
            return None
        check_extra_args(enrolment.ray_args, own=own_ports(enrolment.mesh_port), makes_mesh=True)
        found = look_for_ray(app, progress, ray, enrolment.ray_args, head=True)
        compare(found.versions, old.versions, "install the same versions here, or name them: --ray PATH")
    return found


def _require_stopped(enrolment: Enrolment, endpoints: tuple[Endpoint, ...]) -> None:
    """Raise MeshrayError ``head_runs`` if the mesh's coordinator answers at an address of the old head."""
    from meshray.client.coordinator import Coordinator

    if not endpoints:
        return
    try:
        asyncio.run(Coordinator(endpoints, bytes.fromhex(enrolment.fingerprint)).call("GET", "/v1/hello"))
    except MeshrayError:
        return
    raise MeshrayError(
        "head_runs",
        f"the coordinator of this mesh still runs ({', '.join(map(str, endpoints))}); two would divide the mesh",
        hint="on that machine: sudo meshray down; then make a new backup there, so that nothing is lost",
    )


def _for_this_machine(app: App, enrolment: Enrolment, found: RayInstallation | None) -> Enrolment:
    from meshray.linux.user import User

    return replace(
        enrolment,
        user_uid=User.invoking(app.environ).uid,
        rootless=app.euid != 0,
        ray=str(found.ray) if found else "",
        # The user trusted the environment of the other machine.
        trust_user_environment=False,
    )


def _start(app: App, home: Home, backup: Backup, member: Member) -> RestoreAnswer:
    from meshray.cli.commands.lifecycle import restore_map
    from meshray.model.node import STATIC
    from meshray.node.map_cache import load_map

    restore_map(home)
    summary = bring_up.start_and_follow(app, home)
    nodes = load_map(home).nodes
    endpoints = nodes[member.node.id].endpoints
    others = sorted(str(node.name) for node in nodes.values() if node.id != member.node.id and STATIC not in node.roles)
    return RestoreAnswer(
        mesh=summary.mesh,
        node=summary.node,
        ray_address=summary.ray_address,
        created=backup.created,
        endpoints=tuple(map(str, endpoints)),
        nodes=tuple(others),
    )
