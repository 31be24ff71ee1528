"""The answers of the commands with ``--json``; docs/reference.md contains them. A field that may be absent is `UNSET`.

The answers of `join`, `up`, `status` and the doctor's checks come from the agent: see `meshray.protocol.control`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import UNSET, Struct, UnsetType, field

from meshray.protocol.api import MemberForm, Restored, Rotation, TokenForm
from meshray.protocol.control import OtherPath, Summary, SummaryNode
from meshray.protocol.doctor import Check
from meshray.protocol.status import PathStatus, Status
from meshray.protocol.web_answers import WebInvite, WebList, WebOpen, WebRevoke


class MatchedEnvironment(Struct, frozen=True):
    """The environment of ``--env match``.

    Attributes:
        path: with ``--env match``: the folder of the environment.
        built: with ``--env match``: whether it was built now.
    """

    path: str = ""
    built: bool = False


class Join(Summary, frozen=True):
    """``join`` and ``node add``: the node is up.

    Attributes:
        env: the environment of Ray.
        already: true if this machine was a node of the mesh before.
    """

    env: MatchedEnvironment | UnsetType = UNSET
    already: bool | UnsetType = UNSET


class Init(Struct, frozen=True, kw_only=True):
    """``init``: the mesh exists.

    Attributes:
        token: the token with which other machines join; None if the mesh existed already.
        mesh: the name of the mesh.
        node: this node.
        ray_address: the address of the head's Ray; None with ``--no-ray`` and ``--hub-only``.
        dashboard: the address of Ray's dashboard; None with ``--no-ray`` and ``--hub-only``.
        port: the UDP and TCP port, which must be reachable from the other machines.
        endpoints: the addresses in the token.
        open_commands: the commands that open the port in this host's firewall; empty if nothing drops it.
        already: the mesh existed already; no token was created.
        local: without root: addresses on this machine's loopback, by name.
    """

    local: Mapping[str, str] | UnsetType = UNSET
    token: str | None
    mesh: str
    node: SummaryNode
    ray_address: str | None
    dashboard: str | None
    port: int
    endpoints: tuple[str, ...]
    open_commands: tuple[str, ...]
    already: bool


class Down(Struct, frozen=True):
    """``down``: nothing of the node runs; it stays enrolled.

    Attributes:
        node: its name.
        was_running: part of it was running.
    """

    node: str
    was_running: bool


class Leave(Struct, frozen=True):
    """``leave``: the node's state on this machine is deleted.

    Attributes:
        node: its name.
        unenrolled: the coordinator has removed the node; false if it did not answer and still lists the node.
        local: true with ``--local``.
    """

    node: str
    unenrolled: bool
    local: Literal[True] | UnsetType = UNSET


class Doctor(Struct, frozen=True, kw_only=True):
    """``doctor``.

    Attributes:
        healthy: no check failed.
        node: this machine's name in the mesh; None if it has none, or this user may not read it.
        checks: every check, after those that it depends on.
        repaired: the repairs of ``--fix``, in sentences.
        bundle: with ``--bundle``: the file.
    """

    healthy: bool
    node: str | None = field(name="self")
    checks: tuple[Check, ...]
    repaired: tuple[str, ...]
    bundle: str | UnsetType = UNSET


class PingAnswer(Struct, frozen=True):
    """``ping``.

    Attributes:
        node: the node that was asked for.
        sent: the number of probes.
        received: the number of answered probes.
        rtts_ms: the round trip of each probe in order, milliseconds; None: no answer.
        path: the path of packets to the node.
        others: the paths that are not in use.
    """

    node: str
    sent: int
    received: int
    rtts_ms: tuple[float | None, ...]
    path: PathStatus
    others: tuple[OtherPath, ...]


class TokenCreate(Struct, frozen=True, kw_only=True):
    """``token create``.

    Attributes:
        token: the token to paste; a secret.
        id: the token's id, for ``token revoke``.
        uses: how many nodes may join with it; 0 is any number.
        expires: unix seconds; None: never.
        roles: the roles besides worker that a node may get with it.
        name: the name of the node that joins with it; None: the node chooses its name.
        replace: that node replaces the one of the same name.
        line: with ``--line``: the whole command for the other machine.
    """

    line: str | UnsetType = UNSET
    token: str
    id: str
    uses: int
    expires: float | None
    roles: tuple[str, ...]
    name: str | None
    replace: bool


class TokenEntry(TokenForm, frozen=True):
    """One token, never its secret.

    Attributes:
        id: the token's id.
        uses: how many nodes may join with it; 0 is any number.
        used: how many have joined.
        expires: unix seconds; None: never.
        ephemeral: its nodes are removed when they disconnect.
        created: unix seconds.
        revoked: it was revoked.
        roles: the roles besides worker that a node may get with it.
        name: the name of the node that joins with it; None: the node chooses its name.
        replace: that node replaces the one of the same name.
    """


class TokenList(Struct, frozen=True):
    """``token list``.

    Attributes:
        tokens: all tokens of the coordinator.
    """

    tokens: tuple[TokenEntry, ...]


class TokenRevoke(Struct, frozen=True):
    """``token revoke``.

    Attributes:
        id: the token's id.
        revoked: always true.
    """

    id: str
    revoked: bool


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
    """

    node: str
    done: str
    ray_node_id: str | None
    deadline_s: int


class PeerAdd(Struct, frozen=True):
    """``peer add``.

    Attributes:
        name: the device's name in the mesh.
        ip: its overlay address.
        config: the file that was written; ``-``: standard output.
        text: the file's text with ``--config -``; else empty.
    """

    name: str
    ip: str
    config: str
    text: str


class Environment(Struct, frozen=True):
    """``env``.

    Attributes:
        env: the variables with which a driver finds the cluster.
        programs: the folder with `ray` and its `python`; empty: not known.
    """

    env: Mapping[str, str]
    programs: str


class ForwardAnswer(Struct, frozen=True):
    """``forward``, printed once connections are accepted; the command then runs until it is interrupted.

    Attributes:
        address: HOST:PORT on this machine.
        host: always 127.0.0.1.
        port: the port on this machine.
        node: the node that it leads to; ``head``: the one that runs the Ray head.
        node_port: the port of that node.
    """

    address: str
    host: str
    port: int
    node: str
    node_port: int


class Dashboard(Struct, frozen=True):
    """``dashboard``.

    Attributes:
        url: the URL of Ray's dashboard.
        token: the token that it requires; empty if Ray requires none.
        ssh: the command by which another machine reaches it through this one.
        ports: the ports of the head's Ray, by name.
    """

    url: str
    token: str
    ssh: str
    ports: Mapping[str, int]


class EnvLock(Struct, frozen=True):
    """``env lock``: the packages that nodes install to match the head.

    Attributes:
        ray: the head's version; empty: it runs no Ray.
        python: the version of the interpreter of the head's Ray.
        requirements: the recorded requirements, one each.
        left_out: packages that no other machine could install.
    """

    ray: str
    python: str
    requirements: tuple[str, ...]
    left_out: tuple[str, ...]


class FileText(Struct, frozen=True):
    """``render``, ``completion`` and ``logs``: text of a file.

    Attributes:
        kind: the requested kind.
        text: the text of the file.
    """

    kind: str
    text: str


#: Command, as typed after `meshray` → its answer.
BY_COMMAND: Mapping[str, type[Struct]] = {
    "init": Init,
    "join": Join,
    "up": Summary,
    "down": Down,
    "leave": Leave,
    "status": Status,
    "doctor": Doctor,
    "ping": PingAnswer,
    "forward": ForwardAnswer,
    "token create": TokenCreate,
    "token list": TokenList,
    "token revoke": TokenRevoke,
    "web invite": WebInvite,
    "web list": WebList,
    "web revoke": WebRevoke,
    "web open": WebOpen,
    "node add": Join,
    "node list": NodeList,
    "node rm": NodeRm,
    "node rotate-key": NodeRotateKey,
    "node rename": NodeRename,
    "node drain": NodeDrain,
    "secrets rotate": Rotation,
    "peer add": PeerAdd,
    "env": Environment,
    "env lock": EnvLock,
    "dashboard": Dashboard,
    "completion": FileText,
    "render wireguard": FileText,
    "render systemd": FileText,
    "render slurm": FileText,
    "render prometheus": FileText,
    "render alerts": FileText,
    "render grafana": FileText,
    "logs": FileText,
}
