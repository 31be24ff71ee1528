"""The results of commands: frozen values that `output` shows to users and `envelope` to scripts.

>>> TokenCreated("meshray1_…", "1f2e3d4c", uses=1, expires=None).to_json()["id"]
'1f2e3d4c'
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshray.protocol.answers import Join, NodeEntry, TokenEntry
    from meshray.protocol.api import Restored
    from meshray.protocol.control import OtherPath
    from meshray.protocol.doctor import Check
    from meshray.protocol.status import PathStatus, Status

#: Exit code for "works but unhealthy" (status, doctor, ping without an answer).
UNHEALTHY = 3


class Result:
    """A command's answer."""

    @property
    def exit_code(self) -> int:
        """0, unless the answer itself reports a fault."""
        return 0

    def to_json(self) -> dict[str, object]:
        """Return the fields of ``--json``, without the envelope."""
        raise NotImplementedError


@dataclass(frozen=True)
class InitResult(Result):
    """``init``: the mesh exists.

    Attributes:
        ray_address, dashboard: None with ``--no-ray`` and ``--hub-only``.
        port: the UDP and TCP port, which must be reachable from the other machines.
        endpoints: the addresses in the token.
        local: without root: the dashboard and Ray Client on this machine's loopback.
        open_commands: the commands that open the port in this host's firewall; empty if nothing drops it.
        already: the mesh existed already; no token was created. join_line, head_line: the commands for other machines,
            and for that of the Ray head; empty without a token.
        rootless: the node runs without root, as this user.
    """

    token: str | None
    mesh: str
    name: str
    ip: str
    ray_address: str | None
    dashboard: str | None
    port: int
    endpoints: tuple[str, ...]
    open_commands: tuple[str, ...] = ()
    hub_only: bool = False
    local: Mapping[str, str] = field(default_factory=dict)
    already: bool = False
    join_line: str = ""
    head_line: str = ""
    rootless: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the fields of ``init --json``."""
        return {
            **({"local": dict(self.local)} if self.local else {}),
            "token": self.token,
            "mesh": self.mesh,
            "node": {"name": self.name, "ip": self.ip},
            "ray_address": self.ray_address,
            "dashboard": self.dashboard,
            "port": self.port,
            "endpoints": list(self.endpoints),
            "open_commands": list(self.open_commands),
            "already": self.already,
        }


@dataclass(frozen=True)
class JoinResult(Result):
    """``join`` and ``up``: the node is up.

    Attributes:
        summary: the agent's report of a node that is up, with the command's own results.
        answer: the same as received; a newer meshray may have added fields.
        udp_port: the head's UDP port, if it does not answer and the tunnel uses TCP although UDP was allowed; else 0.
    """

    summary: Join
    answer: Mapping[str, object]
    fresh: bool = True
    udp_port: int = 0

    @classmethod
    def read(cls, answer: Mapping[str, object], *, fresh: bool = True, udp_port: int = 0) -> JoinResult:
        """Return the result with this answer, which may come from meshray in a container or on another machine."""
        from meshray.protocol.answers import Join
        from meshray.protocol.codec import convert

        return cls(convert(answer, Join), answer, fresh, udp_port)

    def to_json(self) -> dict[str, object]:
        """Return the fields of ``join --json``."""
        return dict(self.answer)


@dataclass(frozen=True)
class Stopped(Result):
    """``down``: nothing of the node runs; it stays enrolled."""

    node: str
    was_running: bool

    def to_json(self) -> dict[str, object]:
        """Return the fields of ``down --json``."""
        return {"node": self.node, "was_running": self.was_running}


@dataclass(frozen=True)
class Left(Result):
    """``leave``: the node's state on this machine is deleted.

    Attributes:
        unenrolled: the coordinator has removed the node; False if it did not answer and still lists the node.
        local: only this machine's state was removed; the node is another machine and stays in the mesh.
    """

    node: str
    unenrolled: bool
    local: bool = False

    def to_json(self) -> dict[str, object]:
        """Return the fields of ``leave --json``."""
        return {"node": self.node, "unenrolled": self.unenrolled, **({"local": True} if self.local else {})}


@dataclass(frozen=True)
class StatusResult(Result):
    """``status``: the mesh, according to this machine's agent.

    Attributes:
        answer: the agent's own; a newer agent may have added fields.
        wide: users also see WireGuard's data on each path.
        clock: the time of day, for users who watch it.
    """

    status: Status
    answer: Mapping[str, object]
    wide: bool = False
    clock: str = ""

    @property
    def exit_code(self) -> int:
        """3 if the agent reports a problem or the coordinator is away."""
        return 0 if self.status.coordinator.reachable and not self.status.problems else UNHEALTHY

    def to_json(self) -> dict[str, object]:
        """Return the fields of ``status --json``."""
        return dict(self.answer)


@dataclass(frozen=True)
class DoctorResult(Result):
    """``doctor``: every check.

    Attributes:
        node: this machine's name in the mesh; empty if it has none, or this user may not read it.
        repaired: the repairs of ``--fix``, in sentences.
        bundle: the archive that ``--bundle`` wrote; None: not requested.
        show_all: users also see the checks that are fine.
    """

    checks: tuple[Check, ...]
    node: str = ""
    repaired: tuple[str, ...] = ()
    bundle: str | None = None
    show_all: bool = False

    @property
    def healthy(self) -> bool:
        """Whether no check failed."""
        return all(check.status != "fail" for check in self.checks)

    @property
    def exit_code(self) -> int:
        """3 if a check failed."""
        return 0 if self.healthy else UNHEALTHY

    def to_json(self) -> dict[str, object]:
        """Return the fields of ``doctor --json``."""
        answer: dict[str, object] = {
            "healthy": self.healthy,
            "self": self.node or None,
            "checks": [_json(check) for check in self.checks],
            "repaired": list(self.repaired),
        }
        return answer if self.bundle is None else {**answer, "bundle": self.bundle}


@dataclass(frozen=True)
class PingResult(Result):
    """``ping``: the round trips.

    Attributes:
        rtts_ms: one entry for each probe in order; None if no answer came.
        path: the path object of ``status``.
        others: the paths that are not in use.
    """

    node: str
    rtts_ms: tuple[float | None, ...]
    path: PathStatus
    others: tuple[OtherPath, ...] = ()

    @property
    def received(self) -> int:
        """The number of answered probes."""
        return sum(rtt is not None for rtt in self.rtts_ms)

    @property
    def exit_code(self) -> int:
        """3 if no answer came."""
        return 0 if self.received else UNHEALTHY

    def to_json(self) -> dict[str, object]:
        """Return the fields of ``ping --json``."""
        return {
            "node": self.node,
            "sent": len(self.rtts_ms),
            "received": self.received,
            "rtts_ms": list(self.rtts_ms),
            "path": _json(self.path),
            "others": [_json(path) for path in self.others],
        }


@dataclass(frozen=True)
class TokenCreated(Result):
    """``token create``: ``uses`` 0 is unlimited, ``expires`` is unix time, None is never.

    Attributes:
        name: the name of the node that will join with it; empty: the node chooses its name.
        replace: it replaces the node that has this name.
        line: with ``--line``: the whole command for the other machine.
    """

    token: str
    id: str
    uses: int
    expires: float | None
    roles: tuple[str, ...] = ()
    name: str = ""
    replace: bool = False
    line: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the fields of ``token create --json``."""
        return {
            **({"line": self.line} if self.line else {}),
            "token": self.token,
            "id": self.id,
            "uses": self.uses,
            "expires": self.expires,
            "roles": list(self.roles),
            "name": self.name or None,
            "replace": self.replace,
        }


@dataclass(frozen=True)
class TokenList(Result):
    """``token list``: the coordinator's entries, never their secrets. ``now`` is unix time."""

    tokens: tuple[TokenEntry, ...]
    now: float = 0.0

    def to_json(self) -> dict[str, object]:
        """Return the fields of ``token list --json``."""
        from meshray.protocol.codec import to_json

        return {"tokens": [to_json(token) for token in self.tokens]}


@dataclass(frozen=True)
class TokenRevoked(Result):
    """``token revoke``."""

    id: str

    def to_json(self) -> dict[str, object]:
        """Return the fields of ``token revoke --json``."""
        return {"id": self.id, "revoked": True}


@dataclass(frozen=True)
class NodeList(Result):
    """``node list``: the coordinator's entries."""

    nodes: tuple[NodeEntry, ...]
    restored: Restored | None = None
    wide: bool = False

    def to_json(self) -> dict[str, object]:
        """Return the fields of ``node list --json``; ``restored`` describes the last restore of an older database."""
        from meshray.protocol.codec import to_json

        restored = None if self.restored is None else to_json(self.restored)
        return {"nodes": [to_json(node) for node in self.nodes], "restored": restored}


@dataclass(frozen=True)
class NodeChanged(Result):
    """``node rename``, ``node drain``, ``node rotate-key``: the node, and what was done, as a past participle."""

    node: str
    done: str
    details: Mapping[str, object]

    def to_json(self) -> dict[str, object]:
        """Return the fields of these commands with ``--json``."""
        return {"node": self.node, "done": self.done, **self.details}


@dataclass(frozen=True)
class SecretsRotated(Result):
    """``secrets rotate``: the coordinator's report on the mesh's secrets."""

    rotation: Mapping[str, object]

    def to_json(self) -> dict[str, object]:
        """Return the fields of ``secrets rotate --json``; it contains no secret."""
        return dict(self.rotation)


@dataclass(frozen=True)
class NodeRemoved(Result):
    """``node rm``.

    Attributes:
        rotation: as in ``secrets rotate``; empty from a coordinator of an older meshray.
    """

    node: str
    rotation: Mapping[str, object]

    def to_json(self) -> dict[str, object]:
        """Return the fields of ``node rm --json``."""
        return {"node": self.node, "done": "removed", "secrets": dict(self.rotation)}


@dataclass(frozen=True)
class PeerAdded(Result):
    """``peer add``: the device's file. ``text`` is set only if it goes to stdout."""

    name: str
    ip: str
    config: str
    text: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the fields of ``peer add --json``."""
        return {"name": self.name, "ip": self.ip, "config": self.config, "text": self.text}


@dataclass(frozen=True)
class EnvResult(Result):
    """``env``: the environment with which a driver finds the cluster.

    Attributes:
        programs: the folder with `ray` and its `python`, for PATH; empty: not known.
        leads: that folder comes first on PATH.
    """

    env: Mapping[str, str]
    programs: str = ""
    leads: bool = False

    def to_json(self) -> dict[str, object]:
        """Return the fields of ``env --json``."""
        return {"env": dict(self.env), "programs": self.programs}


@dataclass(frozen=True)
class Dashboard(Result):
    """``dashboard``.

    Attributes:
        token: the token that it requires; empty if Ray requires none.
        ssh: the command by which another machine reaches it through this one.
        ports: the ports of the head's Ray, by name; see `meshray.model.ray_ports.RayPorts`.
    """

    url: str
    token: str
    ssh: str
    ports: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Return the fields of ``dashboard --json``."""
        return {"url": self.url, "token": self.token, "ssh": self.ssh, "ports": dict(self.ports)}


@dataclass(frozen=True)
class Locked(Result):
    """``env lock``: the packages that nodes install to match the head.

    Attributes:
        ray, python: the head's versions; empty: it runs no Ray.
        requirements: the recorded requirements, one each.
        left_out: packages that no other machine could install.
    """

    ray: str
    python: str
    requirements: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return the fields of ``env lock --json``."""
        return {
            "ray": self.ray,
            "python": self.python,
            "requirements": list(self.requirements),
            "left_out": list(self.left_out),
        }


@dataclass(frozen=True)
class FileText(Result):
    """``render`` and ``logs``: the text of a file."""

    kind: str
    text: str

    def to_json(self) -> dict[str, object]:
        """Return the fields of ``render --json`` and ``logs --json``."""
        return {"kind": self.kind, "text": self.text}


def _json(message: object) -> dict[str, object]:
    """Return a message of the agent as JSON. Its codec is imported only if there is one."""
    from meshray.protocol.codec import to_json

    return to_json(message)
