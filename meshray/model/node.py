"""A node as every other node knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from meshray.model import wire
from meshray.model.address import Endpoint, NodeName
from meshray.model.attestation import Attestation, optional_attestation
from meshray.model.keys import PublicKey
from meshray.model.printable import printable
from meshray.model.ray_ports import ports_from_json
from meshray.protocol.fields import FIRST_EPOCH, MAX_EPOCH, MAX_ITEM_CHARACTERS

#: Runs the Ray head.
HEAD = "head"
#: Can be reached from outside and forwards for pairs that have no direct path.
HUB = "hub"
#: Runs the coordinator.
COORDINATOR = "coordinator"
#: Runs a Ray worker.
WORKER = "worker"
#: A device that has only wg-quick: no agent, no Ray.
STATIC = "static"
ROLES = frozenset({HEAD, HUB, COORDINATOR, WORKER, STATIC})
#: What the coordinator's node finds of a node over the overlay: it does not answer; it will not come back as it was.
SILENT, GONE = "silent", "gone"
#: What can be wrong with a node that others must know. Two machines use its identity, as the coordinator sees it; the
#: detail is the two addresses.
ONE_IDENTITY = "one_identity"
#: The map says what the node's identity, or the lock of the mesh, did not sign (`meshray.model.lock`).
NODE_IDENTITY = "node_identity"
#: It is a hub and does not forward between nodes, as it reports itself; the detail is why.
HUB_FORWARDS = "hub_forwards"
#: Characters of a fault's detail.
LONGEST_DETAIL = 200


@dataclass(frozen=True)
class Versions:
    """What a node runs. Empty text means: not there (``ray``), or not known."""

    meshray: str = ""
    ray: str = ""
    python: str = ""

    def to_json(self) -> dict[str, str]:
        """The JSON form."""
        return {"meshray": self.meshray, "ray": self.ray, "python": self.python}

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Versions:
        """The inverse of `to_json`; values are cut at 64 characters and lose what is not printable. Raises
        WireError."""
        names = ("meshray", "ray", "python")
        return cls(*(printable(wire.text(value, name, MAX_ITEM_CHARACTERS, ""))[:64] for name in names))


@dataclass(frozen=True)
class Node:
    """One enrolled machine, container or job step.

    Attributes:
        id: stable for as long as the node is enrolled, through renames and address changes.
        endpoints: where its WireGuard may be reached: given by a user first, then those of its interfaces.
        seen: where a hub's WireGuard sees it: the mapped address and port of the very socket that is used.
        hubs: ids of the hubs that this node can use now.
        online: whether its agent is connected to the coordinator.
        ephemeral: the coordinator removes it by itself some time after it went away.
        drained: Ray's tasks have left it and shall not come back until a user says so: its agent starts no Ray.
        down: a user took it down (`meshray down`): that it is not there is meant.
        ended: its agent's connection was closed by its machine without a goodbye: the process was killed.
        silence: SILENT or GONE where the node does not answer over the overlay, as the coordinator's node sees it.
        labels: what the user gave with ``--label``; passed on to Ray.
        ray_instance: changes with every start of this node's Ray head, empty while it is down.
            A worker whose head has another instance than the one it joined starts its Ray again.
        faults: what is wrong with it that others must know: detail by code (`ONE_IDENTITY`, `HUB_FORWARDS`).
        secret_epoch: the newest epoch of the mesh secret that it holds; of a static peer, the epoch of its file.
        attestation: its identity's signature of its key; None: its meshray has none yet.
        ray_ports: those of its Ray that it chose for itself, by name, as it reports them.
    """

    id: str
    name: NodeName
    ip: IPv4Address
    public_key: PublicKey
    roles: frozenset[str]
    endpoints: tuple[Endpoint, ...] = ()
    seen: Endpoint | None = None
    hubs: tuple[str, ...] = ()
    online: bool = False
    ephemeral: bool = False
    drained: bool = False
    down: bool = False
    ended: bool = False
    silence: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    versions: Versions = Versions()
    ray_instance: str = ""
    faults: Mapping[str, str] = field(default_factory=dict)
    secret_epoch: int = FIRST_EPOCH
    attestation: Attestation | None = None
    ray_ports: Mapping[str, int] = field(default_factory=dict)

    @property
    def role(self) -> str:
        """The one word for ``status``: what matters most to a user."""
        return next((role for role in (HEAD, HUB, STATIC) if role in self.roles), WORKER)

    def to_json(self) -> dict[str, object]:
        """The form on the wire and in the cache."""
        return {
            "id": self.id,
            "name": self.name,
            "ip": str(self.ip),
            "public_key": str(self.public_key),
            "roles": sorted(self.roles),
            "endpoints": [str(endpoint) for endpoint in self.endpoints],
            "seen": str(self.seen) if self.seen else "",
            "hubs": list(self.hubs),
            "online": self.online,
            "ephemeral": self.ephemeral,
            "drained": self.drained,
            "down": self.down,
            "ended": self.ended,
            "silence": self.silence,
            "labels": dict(self.labels),
            "versions": self.versions.to_json(),
            "ray_instance": self.ray_instance,
            # Hardly any node has one, and the map of a large mesh is large enough.
            **({"faults": dict(self.faults)} if self.faults else {}),
            **({"secret_epoch": self.secret_epoch} if self.secret_epoch != FIRST_EPOCH else {}),
            **({"attestation": self.attestation.to_json()} if self.attestation is not None else {}),
            **({"ray_ports": dict(self.ray_ports)} if self.ray_ports else {}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Node:
        """The inverse of `to_json`; see `meshray.model.wire` for the errors."""
        return cls(
            id=wire.text(value, "id", 64),
            name=NodeName.parse(wire.text(value, "name", 63)),
            ip=wire.address(value, "ip"),
            public_key=PublicKey.parse(wire.text(value, "public_key", 44)),
            roles=frozenset(wire.texts(value, "roles")) & ROLES,
            endpoints=Endpoint.parse_readable(wire.texts(value, "endpoints")),
            seen=next(iter(Endpoint.parse_readable([wire.text(value, "seen", 300, "")])), None),
            hubs=wire.texts(value, "hubs"),
            online=wire.flag(value, "online"),
            ephemeral=wire.flag(value, "ephemeral"),
            drained=wire.flag(value, "drained"),
            down=wire.flag(value, "down"),
            ended=wire.flag(value, "ended"),
            silence=wire.text(value, "silence", 16, ""),
            labels=wire.printable_map(value, "labels"),
            versions=Versions.from_json(wire.mapping(value, "versions")),
            ray_instance=wire.text(value, "ray_instance", 64),
            faults=wire.printable_map(value, "faults"),
            secret_epoch=wire.number(value, "secret_epoch", FIRST_EPOCH, MAX_EPOCH, FIRST_EPOCH),
            attestation=optional_attestation(value),
            ray_ports=ports_from_json(value, "ray_ports", mesh_wide=False),
        )
