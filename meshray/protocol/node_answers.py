"""The answers of `meshray node …` with ``--json``, as in `meshray.protocol.answers`."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import UNSET, Struct, UnsetType

from meshray.protocol.api import MemberForm, Restored, Rotation
from meshray.protocol.control import SummaryNode
from meshray.protocol.forms import VersionsForm


class NodeEntry(MemberForm, frozen=True, kw_only=True):
    """One node, from the coordinator.

    Attributes:
        id: the node's id while it is enrolled.
        name: its name in the mesh.
        ip: its overlay address.
        public_key: its WireGuard public key.
        roles: ``head``, ``hub``, ``coordinator``, ``worker`` or ``static``.
        endpoints: the endpoints of its WireGuard.
        seen: its endpoint as observed by a hub; empty: not over UDP.
        hubs: the ids of the hubs that it can use.
        online: its agent is connected.
        ephemeral: it is removed when it disconnects.
        drained: Ray must not run there now.
        down: it was taken down.
        ended: its agent was killed.
        silence: whether it answers the coordinator's node over the overlay.
        labels: the labels of its Ray node.
        versions: the versions of its programs.
        ray_instance: which start of the head's Ray it belongs to; empty: none.
        enrolled: unix seconds.
        attestation: the identity's signature of the node's key, see `Attestation` in openapi.json.
        faults: the node's faults that others must know: detail by code.
        ray_ports: the ports that the node chose for its Ray, by name.
        secret_epoch: the newest epoch of the mesh's secrets that it holds; absent: 1.
        no_remote: it refuses orders of the mesh's administrator; absent: it accepts them.
    """

    attestation: Mapping[str, object] | UnsetType = UNSET  # type: ignore[assignment]


class NodeList(Struct, frozen=True):
    """``node list``.

    Attributes:
        nodes: every enrolled node.
        restored: the changes from restoring an older copy of the coordinator's database; None: none was restored.
    """

    nodes: tuple[NodeEntry, ...]
    restored: Restored | None = None


class MachineError(Struct, frozen=True):
    """Why a machine could not be added.

    Attributes:
        code: the code of the error, as of any command.
        message: its subject and cause.
        hint: the next step; may be empty.
    """

    code: str
    message: str
    hint: str


class AddedMachine(Struct, frozen=True):
    """The result for one machine of a list.

    Attributes:
        machine: its name in the file.
        done: ``added``; ``already``: it was a node before; ``head``: not touched; ``failed``.
        node: the node; None if there is none, and for the head.
        error: why it failed; None if it did not.
        took_s: how long it took, seconds.
    """

    machine: str
    done: str
    node: SummaryNode | None = None
    error: MachineError | None = None
    took_s: float = 0.0


class NodeAddFrom(Struct, frozen=True):
    """``node add --from``.

    Attributes:
        machines: the result of the head, of each machine to add, and of each that cannot be added.
        added: how many are new nodes.
        already: how many were nodes before.
        failed: how many could not be added; the same command again adds the rest.
    """

    machines: tuple[AddedMachine, ...]
    added: int
    already: int
    failed: int


class NodeRm(Struct, frozen=True):
    """``node rm``.

    Attributes:
        node: its name.
        done: ``removed``.
        secrets: the rotation of the secrets that follows.
    """

    node: str
    done: str
    secrets: Rotation


class NodeRotateKey(Struct, frozen=True):
    """``node rotate-key``.

    Attributes:
        node: its name.
        done: ``rotated``.
        public_key: the new one.
    """

    node: str
    done: str
    public_key: str


class NodeRename(Struct, frozen=True):
    """``node rename``.

    Attributes:
        node: its name before.
        done: ``renamed``.
        name: its name now.
    """

    node: str
    done: str
    name: str


class NodeDrain(Struct, frozen=True):
    """``node drain``.

    Attributes:
        node: its name.
        done: ``drained``, or with ``--undo`` ``undrained`` and no more fields.
        ray_node_id: Ray's own id of the node; None if Ray does not list it as ALIVE.
        deadline_s: the time for running tasks, seconds.
        waited_s: with ``--when idle``: how long the node still ran tasks, seconds.
    """

    node: str
    done: str
    ray_node_id: str | UnsetType | None = UNSET
    deadline_s: int | UnsetType = UNSET
    waited_s: float | UnsetType = UNSET


class NodeLogs(Struct, frozen=True):
    """``node logs``.

    Attributes:
        node: its name.
        part: whose log: ``agent``, ``engine``, ``coordinator`` or ``ray``.
        text: the lines.
    """

    node: str
    part: str
    text: str


class NodeRestart(Struct, frozen=True):
    """``node restart``.

    Attributes:
        node: its name.
        done: ``restarting``: its agent ends and starts again now. With ``--ray`` ``restarted``: its Ray is ALIVE again.
    """

    node: str
    done: str


class NodeBundle(Struct, frozen=True):
    """``node bundle``.

    Attributes:
        node: its name.
        bundle: the file on this machine.
        size: its size, bytes.
    """

    node: str
    bundle: str
    size: int


class NodeUpgraded(Struct, frozen=True):
    """The result of an upgrade for one node.

    Attributes:
        node: its name.
        done: ``upgraded``; ``switching``: without ``--wait``, its new version starts now; ``already``: it runs this
            build; ``returned``: the new version did not work, and the old one runs again; ``refused``; ``failed``;
            ``skipped``: not tried, because the new version did not work on a node before it.
        error: why it was not upgraded; None if it was.
        took_s: how long it took, seconds.
    """

    node: str
    done: str
    error: MachineError | None = None
    took_s: float = 0.0


class NodeUpgrade(Struct, frozen=True):
    """``node upgrade``.

    Attributes:
        version: of the meshray on the head, to which the nodes are upgraded.
        build: identifies its files.
        nodes: the result of each node, in the order in which they were upgraded.
    """

    version: str
    build: str
    nodes: tuple[NodeUpgraded, ...]


ROTATION_EXAMPLE = Rotation(epoch=2, started=True, away=("gpu-3",))
NODE_EXAMPLES: Mapping[str, Struct] = {
    "node list": NodeList(
        (
            NodeEntry(
                id="5d41402abc4b2a76",
                name="gpu-1",
                ip="10.99.0.2",
                public_key="gN65BkIKy1eCE9pP1wdc8ROUtkHLF2PfAqYdyYBz6EA=",
                roles=("worker",),
                endpoints=("192.0.2.7:40000",),
                seen="198.51.100.7:40000",
                hubs=("0cc175b9c0f1b6a8",),
                online=True,
                ray_instance="",
                labels={"zone": "lab-2"},
                versions=VersionsForm("0.1.0", "2.60.0", "3.11.7"),
                enrolled=1767139200.0,
            ),
        ),
        Restored(at=1767225600.0, serial=41, whole=True, had=37, added=("gpu-1",), removed=()),
    ),
    "node add --from": NodeAddFrom(
        (
            AddedMachine("head", "head"),
            AddedMachine("gpu-1", "added", SummaryNode("gpu-1", "10.99.0.2"), took_s=14.2),
            AddedMachine(
                "gpu-2",
                "failed",
                error=MachineError("ssh_failed", "ssh to gpu-2 failed: …", "test the connection: …"),
                took_s=10.1,
            ),
        ),
        added=1,
        already=0,
        failed=1,
    ),
    "node rm": NodeRm("gpu-1", "removed", ROTATION_EXAMPLE),
    "node rotate-key": NodeRotateKey("gpu-1", "rotated", "gN65BkIKy1eCE9pP1wdc8ROUtkHLF2PfAqYdyYBz6EA="),
    "node rename": NodeRename("gpu-1", "renamed", "gpu-7"),
    "node drain": NodeDrain("gpu-1", "drained", "3f5c…", 600),
    "node logs": NodeLogs("gpu-1", "agent", "2026-01-01 12:00:00,000 INFO the node is up\n"),
    "node restart": NodeRestart("gpu-1", "restarting"),
    "node bundle": NodeBundle("gpu-1", "gpu-1.tar.gz", 48213),
    "node upgrade": NodeUpgrade(
        "0.1.0",
        "3f5a0c9e12ab",
        (
            NodeUpgraded("gpu-1", "upgraded", took_s=9.4),
            NodeUpgraded(
                "gpu-2",
                "refused",
                MachineError("remote_refused", "gpu-2 accepts no remote orders: …", "run the command on gpu-2 itself"),
            ),
        ),
    ),
}
