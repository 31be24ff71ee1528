"""The answers of the commands with ``--json``; docs/reference.md contains them. A field that may be absent is `UNSET`.

The answers of `join`, `up`, `status` and the doctor's checks come from the agent: see `meshray.protocol.control`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import UNSET, Struct, UnsetType, field

from meshray.model.path import PathKind, Transport
from meshray.model.ray_ports import RayPorts
from meshray.protocol.api import TokenForm
from meshray.protocol.audit import AUDIT_EXAMPLE
from meshray.protocol.control import OtherPath, Readiness, Summary, SummaryNode, SummaryPath, SummaryRay
from meshray.protocol.doctor import CHECK_EXAMPLE, Check
from meshray.protocol.node_answers import NODE_EXAMPLES, ROTATION_EXAMPLE
from meshray.protocol.status import PATH_EXAMPLE, STATUS_EXAMPLE, PathStatus
from meshray.protocol.web_answers import WEB_EXAMPLES


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
        env_file: with ``--ray external``: the file that the program which starts Ray reads.
    """

    local: Mapping[str, str] | UnsetType = UNSET
    env_file: str | UnsetType = UNSET
    token: str | None
    mesh: str
    node: SummaryNode
    ray_address: str | None
    dashboard: str | None
    port: int
    endpoints: tuple[str, ...]
    open_commands: tuple[str, ...]
    already: bool


class BackupAnswer(Struct, frozen=True):
    """``backup``.

    Attributes:
        file: the new file.
        size: its size, bytes.
        mesh: the name of the mesh.
        node: the name of the head.
        created: when the state was read, unix seconds.
    """

    file: str
    size: int
    mesh: str
    node: str
    created: float


class RestoreAnswer(Struct, frozen=True):
    """``restore``: this machine is the head.

    Attributes:
        mesh: the name of the mesh.
        node: the head, with its name and address as before.
        ray_address: the address of the head's Ray; None if it runs none.
        created: when the backup was made, unix seconds.
        endpoints: the addresses of this machine for the other nodes.
        nodes: the names of the other nodes, which connect to this machine.
    """

    mesh: str
    node: SummaryNode
    ray_address: str | None
    created: float
    endpoints: tuple[str, ...]
    nodes: tuple[str, ...]


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


_JOIN = Join(
    mesh="lab",
    node=SummaryNode("gpu-1", "10.99.0.2"),
    path=SummaryPath(PathKind.DIRECT, Transport.UDP),
    ray=SummaryRay(alive=True, nodes=2),
    ray_address="10.99.0.1:6379",
    dashboard="http://10.99.0.1:8265",
)

#: Command, as typed after `meshray` → an example of its answer, whose type describes the answer.
EXAMPLES: Mapping[str, Struct] = {
    **NODE_EXAMPLES,
    **WEB_EXAMPLES,
    "init": Init(
        token="meshray1_…",  # noqa: S106 - no token
        mesh="lab",
        node=SummaryNode("lab", "10.99.0.1"),
        ray_address="10.99.0.1:6379",
        dashboard="http://10.99.0.1:8265",
        port=51888,
        endpoints=("203.0.113.7:51888",),
        open_commands=("ufw allow 51888/udp", "ufw allow 51888/tcp"),
        already=False,
    ),
    "join": _JOIN,
    "up": Summary(_JOIN.mesh, _JOIN.node, _JOIN.path, _JOIN.ray, _JOIN.ray_address, _JOIN.dashboard),
    "down": Down("gpu-1", was_running=True),
    "leave": Leave("gpu-1", unenrolled=True),
    "status": STATUS_EXAMPLE,
    "ready": Readiness(ready=False, reason="Ray is not ALIVE: starting"),
    "doctor": Doctor(healthy=False, node=None, checks=(CHECK_EXAMPLE,), repaired=()),
    "ping": PingAnswer(
        "head", 3, 2, (12.6, None, 12.4), PATH_EXAMPLE, (OtherPath(PathKind.HUB, to="hub-1", rtt_ms=18.9),)
    ),
    "forward": ForwardAnswer("127.0.0.1:8350", "127.0.0.1", 8350, "gpu-1", 8350),
    "token create": TokenCreate(
        token="meshray1_…",  # noqa: S106 - no token
        id="1f2e3d4c",
        uses=1,
        expires=1767225600.0,
        roles=(),
        name="gpu-1",
        replace=True,
    ),
    "token list": TokenList(
        (
            TokenEntry(
                "1f2e3d4c",
                uses=1,
                used=0,
                expires=1767225600.0,
                ephemeral=False,
                created=1767139200.0,
                revoked=False,
                name="gpu-1",
                replace=True,
            ),
        )
    ),
    "audit": AUDIT_EXAMPLE,
    "backup": BackupAnswer("lab.backup", 48213, "lab", "head", 1767225600.0),
    "restore": RestoreAnswer(
        "lab",
        SummaryNode("head", "10.99.0.1"),
        "10.99.0.1:6379",
        1767225600.0,
        endpoints=("203.0.113.9:51888",),
        nodes=("gpu-1", "gpu-2"),
    ),
    "token revoke": TokenRevoke("1f2e3d4c", revoked=True),
    "node add": _JOIN,
    "secrets rotate": ROTATION_EXAMPLE,
    "peer add": PeerAdd("phone", "10.99.0.9", "phone.conf", ""),
    "env": Environment({"RAY_ADDRESS": "10.99.0.1:6379", "RAY_AUTH_MODE": "token"}, "/home/ada/ray/bin"),
    "env lock": EnvLock("2.60.0", "3.11.7", ("numpy==2.1.0", "torch==2.9.1"), ("-e /home/ada/models",)),
    "dashboard": Dashboard(
        "http://10.99.0.1:8265", "0f2c…", "ssh -N -L 8265:10.99.0.1:8265 ada@gpu-1", RayPorts().to_json(head=True)
    ),
    "completion": FileText("completion bash", "…"),
    "render wireguard": FileText("wireguard", "# Made by meshray.\n[Interface]\n…"),
    "render systemd": FileText("systemd", "[Unit]\n…"),
    "render slurm": FileText("slurm", "#!/bin/bash\n…"),
    "render prometheus": FileText("prometheus", "global:\n…"),
    "render alerts": FileText("alerts", "groups:\n…"),
    "render grafana": FileText("grafana", "{\n…"),
    "render kubernetes": FileText("kubernetes", "# Ray workers of a meshray mesh, …"),
    "render kuberay": FileText("kuberay", "# A RayCluster of KubeRay …"),
    "render ansible": FileText("ansible", "---\n…"),
    "render cloud-init": FileText("cloud-init", "#cloud-config\n…"),
    "logs": FileText("agent", "2026-01-01 12:00:00,000 INFO connected to the coordinator\n"),
}
