"""`meshray node …`: the head's operations on other nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import click
from msgspec import UNSET, UnsetType

from meshray.cli.app import App
from meshray.cli.commands import node_orders
from meshray.cli.commands.node_upgrade import upgrade_command
from meshray.cli.complete import node_names
from meshray.cli.join_result import JoinResult
from meshray.cli.lock_file import LockFile, open_lock
from meshray.cli.options import (
    PassesOnToRay,
    endpoint_option,
    group,
    json_option,
    lock_option,
    parse_duration,
    parse_labels,
    ray_args,
    yes_option,
)
from meshray.cli.remote_joins import AddedFromResult, JoinOptions, add_machines, read_list
from meshray.cli.result import Result
from meshray.cli.status_table import nodes_text
from meshray.cli.tables import Paint, children, duration, plain
from meshray.errors import MeshrayError, UsageError
from meshray.model.address import Endpoint, NodeName
from meshray.protocol.codec import convert
from meshray.protocol.node_answers import NodeDrain, NodeList, NodeRename, NodeRm, NodeRotateKey

#: The timeout covers all addresses of the coordinator, and the other node's agent with its own call, seconds.
_ROTATE_S = 40.0


@dataclass(frozen=True)
class NodeListResult(Result[NodeList]):
    """``node list``.

    Attributes:
        wide: users also see which nodes are ephemeral or drained, and the labels.
    """

    wide: bool = False

    def text(self, paint: Paint = plain) -> str:
        """Return one line per node."""
        return nodes_text(self.answer.nodes, wide=self.wide)


@dataclass(frozen=True)
class RemovedResult(Result[NodeRm]):
    """``node rm``."""

    def text(self, paint: Paint = plain) -> str:
        """Return the node, and whether the secrets changed."""
        secrets = self.answer.secrets
        renewed = f"; the other nodes use new secrets (epoch {secrets.epoch})" if secrets.started else ""
        return f"{self.answer.node} is removed{renewed}"


@dataclass(frozen=True)
class KeyResult(Result[NodeRotateKey]):
    """``node rotate-key``."""

    def text(self, paint: Paint = plain) -> str:
        """Return the new key."""
        return f"{self.answer.node} is rotated (public key {self.answer.public_key})"


@dataclass(frozen=True)
class RenamedResult(Result[NodeRename]):
    """``node rename``."""

    def text(self, paint: Paint = plain) -> str:
        """Return both names."""
        return f"{self.answer.node} is renamed (name {self.answer.name})"


@dataclass(frozen=True)
class DrainResult(Result[NodeDrain]):
    """``node drain``."""

    def text(self, paint: Paint = plain) -> str:
        """Return what happens to the node's tasks."""
        node, deadline_s = self.answer.node, self.answer.deadline_s
        if isinstance(deadline_s, UnsetType):
            return f"{node} takes tasks again as soon as its Ray has started"
        if self.answer.ray_node_id is None:
            return f"{node} runs no Ray, and starts none until: meshray node drain {node} --undo"
        deadline = duration(deadline_s)
        return f"{node} gets no new tasks; running tasks have up to {deadline} to finish (meshray status)"


@group("node")
def node_command() -> None:
    """Add, list, remove, drain, rename and restart nodes, show their logs, and change their keys. On the head."""


node_command.add_command(node_orders.logs_command)
node_command.add_command(node_orders.restart_command)
node_command.add_command(node_orders.bundle_command)
node_command.add_command(upgrade_command)


@node_command.command("add", cls=PassesOnToRay)
@click.argument("target", metavar="[ssh://[USER@]HOST[:PORT]]", required=False)
@click.option(
    "--from",
    "file",
    metavar="hosts.ini|cluster.yaml",
    help="Add all machines of a file instead: the workers of an Ansible inventory, or of a cluster file of `ray up`.",
)
@click.option(
    "--parallel",
    type=click.IntRange(1, 100),
    default=8,
    show_default=True,
    metavar="N",
    help="With --from: how many machines join at a time.",
)
@click.option(
    "--group",
    "groups",
    multiple=True,
    metavar="NAME",
    help="With --from hosts.ini: a group whose machines to add; default: workernode, worker and their plurals. May be "
    "repeated.",
)
@click.option("--name", metavar="NAME", help="The node's name; default: its host name, with --from its name there.")
@click.option("--no-ray", is_flag=True, help="Only the overlay; start no Ray there.")
@click.option("--ray", metavar="PATH", help="The Ray to run there: a program or a virtual environment.")
@click.option("--ephemeral", is_flag=True, help="The node leaves the mesh when its agent ends.")
@endpoint_option
@click.option("--label", multiple=True, metavar="K=V", help="A label of the Ray node. May be repeated.")
@click.option("--meshray", "program", default="meshray", metavar="PATH", help="The path of meshray on that machine.")
@lock_option("The lock file of `init --lock`: it signs the token for that machine, and stays here.")
@json_option
@click.pass_obj
def add(
    app: App,
    *,
    target: str | None,
    file: str | None,
    parallel: int,
    groups: tuple[str, ...],
    name: str | None,
    no_ray: bool,
    ray: str | None,
    ephemeral: bool,
    endpoint: tuple[str, ...],
    label: tuple[str, ...],
    program: str,
    lock: str | None,
) -> JoinResult | AddedFromResult:
    """Run `meshray join` on another machine, through ssh, or on all machines of a file.

    \b
    Examples:
      sudo meshray node add ssh://ana@gpu-1
      sudo meshray node add ssh://root@gpu-2:2222 --meshray /opt/ray/bin/meshray -- --num-gpus=1
      sudo meshray node add --from hosts.ini --parallel 16

    meshray must be installed there, and sudo must work without a password. ssh runs as the user who typed sudo here.
    The enrolment goes through ssh and everything after it over the tunnel: it is enough if one of the two machines can
    reach the other's UDP port (there: 51888, or that of --endpoint).

    With --from, machines that fail are listed with the cause, and the others join; exit code 1 if any failed. The same
    command again adds the rest. The head in the file is not touched: the machines join the mesh of this machine.
    """
    from meshray.cli.remote_join import add_node
    from meshray.raynode.command import check_extra_args, check_labels
    from meshray.runtime.ssh import SshTarget

    labels, extra = parse_labels(label), ray_args()
    check_labels(labels)
    check_extra_args(extra)
    options = [
        *(("--name", str(NodeName.parse(name))) if name is not None else ()),
        *(("--no-ray",) if no_ray else ()),
        *(("--ray", ray) if ray is not None else ()),
        *(("--ephemeral",) if ephemeral else ()),
        *(word for item in endpoint for word in ("--endpoint", str(Endpoint.parse(item)))),
        *(word for key, value in labels.items() for word in ("--label", f"{key}={value}")),
    ]
    if file is None:
        if target is None:
            raise UsageError("no_machine", "no machine is named", hint="ssh://USER@HOST, or --from hosts.ini")
        if groups:
            raise UsageError("group_without_list", "--group needs --from", hint="--from hosts.ini --group NAME")
        return add_node(app, SshTarget.parse(target), program, options, extra, lock=open_lock(lock))
    one = next((word for word, given in (("--name", name), ("--endpoint", endpoint), (target, target)) if given), None)
    if one is not None:
        raise UsageError(
            "list_with_one", f"--from adds many machines, and {one} is for one of them", hint="leave out one of them"
        )
    joins = JoinOptions(program, tuple(options), extra, parallel, open_lock(lock))
    return add_machines(app, read_list(app, file, groups), joins)


@node_command.command("list")
@click.option("--wide", is_flag=True, help="Also show which nodes are ephemeral or drained, and the labels.")
@json_option
@click.pass_obj
def list_(app: App, wide: bool) -> NodeListResult:
    """List every enrolled node with its versions and labels."""
    return NodeListResult(convert(app.api("GET", "/v1/nodes"), NodeList), wide)


@node_command.command("rm")
@click.argument("node", shell_complete=node_names)
@lock_option(
    "The lock file of `init --lock`: it signs the removal, so that a compromised coordinator cannot admit the "
    "node again."
)
@yes_option
@json_option
@click.pass_obj
def remove(app: App, node: str, yes: bool, lock: str | None) -> RemovedResult:
    """Remove a node from the mesh and invalidate its key and credential.

    \b
    Example:
      sudo meshray node rm gpu-2

    The other nodes change the secrets that they share, as `meshray secrets rotate` does. No connection between them
    ends.
    """
    from meshray.cli.commands.secrets import rotation_of

    path = f"/v1/nodes/{app.word(node)}"
    signer = open_lock(lock)
    app.confirm(f"{node} loses its place in the mesh, and Ray's tasks on it end.", yes)
    if signer is None:
        answer = app.api("DELETE", path)
        if answer.get("locked"):
            app.warn(f"a compromised coordinator could admit {node} again: --lock FILE prevents that")
    else:
        answer = _remove_for_good(app, path, node, signer)
    return RemovedResult(NodeRm(node, "removed", rotation_of(app, answer.get("secrets"))))


def _remove_for_good(app: App, path: str, name: str, lock: LockFile) -> Mapping[str, object]:
    from meshray.cli.lock_file import lock_of
    from meshray.model.attestation import Removals, signature_text
    from meshray.model.lock import removal_key
    from meshray.model.node import Node

    answer = app.api("GET", "/v1/nodes")
    found = next((node for node in children(answer, "nodes") if node.get("name") == name.lower()), None)
    if found is None:
        raise UsageError("node_unknown", f"there is no node {name[:63]!r} in this mesh", hint="meshray node list")
    lock.require_of(lock_of(answer))
    mesh_id = convert(answer["mesh"], str)
    removals_before = Removals.from_json(answer["removals"]) if "removals" in answer else None
    after, removals = lock.removing(mesh_id, removals_before, removal_key(Node.from_json(found)))
    # The file comes first: an epoch that was signed once is never signed again.
    after.save()
    signed = {"epoch": removals.epoch, "signature": signature_text(removals.signature)}
    return app.api("DELETE", path, {"removal": signed})


@node_command.command("rotate-key")
@click.argument("node", shell_complete=node_names, required=False, default="")
@json_option
@click.pass_obj
def rotate_key(app: App, node: str) -> KeyResult:
    """Give this node, or on the head another one, a new WireGuard key. No connection ends.

    \b
    Examples:
      sudo meshray node rotate-key
      sudo meshray node rotate-key gpu-2

    Keys also change automatically after about 30 days. A hub with static peers (`meshray peer add`) keeps its key
    because their files contain it.
    """
    from meshray.protocol.control import RotateKey

    rotated = app.control().request(RotateKey(node and app.word(node)), timeout_s=_ROTATE_S)
    return KeyResult(NodeRotateKey(rotated.node, "rotated", rotated.public_key))


@node_command.command("rename")
@click.argument("node", shell_complete=node_names)
@click.argument("new_name", metavar="NEW")
@json_option
@click.pass_obj
def rename(app: App, node: str, new_name: str) -> RenamedResult:
    """Give a node another name; its address stays. Ray shows the new name after the node's next start."""
    name = NodeName.parse(new_name)
    app.api("PATCH", f"/v1/nodes/{app.word(node)}", {"name": str(name)})
    return RenamedResult(NodeRename(node, "renamed", str(name)))


@node_command.command("drain")
@click.argument("node", shell_complete=node_names)
@click.option(
    "--deadline", default="10m", show_default=True, metavar="TIME", help="How long running tasks may take to end."
)
@click.option(
    "--when",
    type=click.Choice(["idle"]),
    help="First wait until no task or actor uses the node. Ctrl-C ends the wait, and nothing is changed.",
)
@click.option("--undo", is_flag=True, help="Let Ray use the node again.")
@json_option
@click.pass_obj
def drain(app: App, node: str, deadline: str, when: str | None, undo: bool) -> DrainResult:
    """Give a node no more Ray tasks, and stop its Ray once it is idle.

    \b
    Examples:
      sudo meshray node drain gpu-2 --deadline 5m
      sudo meshray node drain gpu-2 --when idle
      sudo meshray node drain gpu-2 --undo

    Running tasks continue, and Ray schedules no new ones on the node. Its Ray stays stopped until --undo, even if the
    node restarts. The node stays in the mesh.
    """
    from meshray.cli.idle_wait import wait_until_idle
    from meshray.cli.ray_program import FoundRay

    path = f"/v1/nodes/{app.word(node)}"
    if undo:
        if when is not None:
            raise UsageError("undo_when", "--undo does not wait, so --when has no meaning", hint="leave out one")
        app.api("PATCH", path, {"drained": False})
        return DrainResult(NodeDrain(node, "undrained"))
    seconds = parse_duration(deadline)
    if seconds == 0:
        raise UsageError("bad_duration", "a drain needs a deadline", hint="--deadline 10m")
    ray = FoundRay.of(app, node)
    waited_s = wait_until_idle(app, ray, node) if when is not None else None
    # The agent's part comes first: it would otherwise start Ray again as soon as it has ended.
    app.api("PATCH", path, {"drained": True})
    try:
        ray.drain(seconds)
    except MeshrayError:
        app.api("PATCH", path, {"drained": False})
        raise
    waited = round(waited_s, 1) if waited_s is not None else UNSET
    return DrainResult(NodeDrain(node, "drained", ray.node_id, seconds, waited))
