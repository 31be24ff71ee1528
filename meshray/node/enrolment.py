"""Who this node is: what it was told when it enrolled and what the user chose. Kept in node.json.

>>> Enrolment.load(home).name
'gpu-1'
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from meshray.errors import MeshrayError, UsageError
from meshray.home import Home
from meshray.linux.files import make_folder, write_atomically
from meshray.model import wire
from meshray.model.address import Endpoint
from meshray.model.endpoints import MAX_ENDPOINTS
from meshray.model.epochs import SharedSecrets, epochs_from_json
from meshray.model.keys import MeshSecret, PrivateKey
from meshray.model.meshmap import MeshMap
from meshray.model.node import STATIC
from meshray.model.path import Mode, parse_mode
from meshray.model.ray_ports import of_node, take_ports
from meshray.protocol.codec import WireError, decode_object
from meshray.protocol.fields import FIRST_EPOCH, LONGEST_TICKET, MAX_EPOCH
from meshray.raynode.tokens import epoch_of
from meshray.raynode.user_environment import UserEnvironment

#: Ray runs from an environment that is built to match the head's (`meshray.environment`).
MATCH = "match"
#: Of ``--open``: every port.
OPEN_ALL = "all"
_LONGEST = 4096
#: Addresses of the coordinator that a node keeps; more than one node has, so that older ones stay for a while.
MOST_COORDINATORS = 2 * MAX_ENDPOINTS


def parse_open(items: Iterable[str]) -> tuple[str, ...]:
    """``--open PORT|all``, each once. Raises UsageError.

    >>> parse_open(["22", "8443", "22"])
    ('22', '8443')
    """
    found = []
    for item in items:
        if item != OPEN_ALL and not (item.isascii() and item.isdecimal() and len(item) <= 5 and 0 < int(item) < 65536):
            raise UsageError(
                "bad_open", f"--open {item[:40]!r}: neither a port nor {OPEN_ALL}", hint="--open 22, or --open all"
            )
        found.append(str(int(item)) if item != OPEN_ALL else item)
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Enrolment:
    """This node's own side of its membership. Holds secrets; its file has mode 0600.

    Attributes:
        coordinators: where the coordinator may be reached, the one that answered last first; at most
            `MOST_COORDINATORS`. On the coordinator's own machine the loopback.
        fingerprint: SHA-256 of the coordinator's certificate, hexadecimal.
        listen_port: UDP port of this node's WireGuard; 0 lets the kernel choose.
        mesh_port: port of hub and coordinator.
        with_ray: Ray runs on this node.
        ray: the `ray` program that was found when the node enrolled; empty without Ray.
        env: `MATCH`, or empty: Ray runs from what is installed.
        ray_args: what the user passed after ``--``.
        user_uid: as whom Ray runs.
        observed: the address from which this node enrolled, as the coordinator saw it; empty where not told.
        transport: how the tunnel to the hub may travel; see `meshray.agent.paths.transport`.
        ticket: by which a coordinator that has forgotten this node knows it again; empty: none was given.
        rootless: it lives in namespaces of its own (`meshray.runtime.rootless`).
        trust_user_environment: root runs meshray from files that others can change, as the user asked.
        open: what else members of the mesh reach on this machine, as ``--open`` said it: ports, or ``all``.
        unguarded: Ray starts here although its ports cannot be closed to others than the mesh.
        environment: what Ray is started with besides what meshray sets.
        taken_out: the coordinator removed this node; the agent must not start again.
        mesh_secret, ray_token: of the newest epoch.
        secret_epoch: the number of that epoch.
        older_mesh_secrets, older_ray_tokens: of other epochs that are still in use, see `meshray.model.epochs`.
    """

    mesh_id: str
    node_id: str
    name: str
    credential: str = field(repr=False)
    coordinators: tuple[Endpoint, ...]
    fingerprint: str
    mesh_secret: MeshSecret
    ray_token: str = field(repr=False)
    mesh_port: int
    listen_port: int
    user_uid: int
    hosts_coordinator: bool = False
    ephemeral: bool = False
    with_ray: bool = True
    ray: str = ""
    ray_args: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    taken_out: bool = False
    transport: Mode = "auto"
    observed: str = ""
    ticket: str = field(default="", repr=False)
    rootless: bool = False
    env: str = ""
    trust_user_environment: bool = False
    secret_epoch: int = FIRST_EPOCH
    older_mesh_secrets: Mapping[int, MeshSecret] = field(default_factory=dict, repr=False)
    older_ray_tokens: Mapping[int, str] = field(default_factory=dict, repr=False)
    open: tuple[str, ...] = ()
    unguarded: bool = False
    environment: UserEnvironment = field(default_factory=UserEnvironment)

    @property
    def ray_ports(self) -> Mapping[str, int]:
        """The ports of Ray that this node has chosen for itself, by name; see `meshray.model.ray_ports`."""
        return of_node(take_ports(self.ray_args)[0])

    @property
    def open_ports(self) -> tuple[int, ...]:
        """The ports of `open`."""
        return tuple(int(item) for item in self.open if item != OPEN_ALL)

    @property
    def open_all(self) -> bool:
        """Whether members reach every port of this machine."""
        return OPEN_ALL in self.open

    @classmethod
    def load(cls, home: Home) -> Enrolment:
        """Reads node.json.

        Raises:
            MeshrayError: ``not_enrolled``, or ``state_damaged`` (the file is kept).
        """
        text = _read(
            home.enrolment, "not_enrolled", "this machine is in no mesh", "meshray init, or meshray join TOKEN"
        )
        try:
            value = decode_object(text)
            return cls(
                mesh_id=wire.text(value, "mesh_id", 64),
                node_id=wire.text(value, "node_id", 64),
                name=wire.text(value, "name", 63),
                credential=wire.text(value, "credential", 128),
                coordinators=tuple(Endpoint.parse(item) for item in wire.texts(value, "coordinators")),
                fingerprint=_sha256(wire.text(value, "fingerprint", 64)),
                mesh_secret=MeshSecret.parse(wire.text(value, "mesh_secret", 44)),
                ray_token=wire.text(value, "ray_token", 256),
                mesh_port=wire.number(value, "mesh_port", 1, 65535),
                listen_port=wire.number(value, "listen_port", 0, 65535),
                user_uid=wire.number(value, "person_uid", 0, 2**32),
                hosts_coordinator=wire.flag(value, "hosts_coordinator"),
                ephemeral=wire.flag(value, "ephemeral"),
                with_ray=wire.flag(value, "with_ray"),
                ray=wire.text(value, "ray", _LONGEST),
                ray_args=_ray_args(value),
                labels=wire.text_map(value, "labels"),
                taken_out=wire.flag(value, "taken_out"),
                transport=parse_mode(wire.text(value, "transport", 8, "auto")),
                observed=wire.text(value, "observed", 45, ""),
                ticket=wire.text(value, "ticket", LONGEST_TICKET, ""),
                rootless=wire.flag(value, "rootless"),
                env=wire.text(value, "env", len(MATCH), ""),
                trust_user_environment=wire.flag(value, "trust_user_environment"),
                secret_epoch=wire.number(value, "secret_epoch", FIRST_EPOCH, MAX_EPOCH, FIRST_EPOCH),
                older_mesh_secrets={
                    epoch: MeshSecret.parse(secret)
                    for epoch, secret in epochs_from_json(value, "older_mesh_secrets").items()
                },
                older_ray_tokens=epochs_from_json(value, "older_ray_tokens"),
                open=parse_open(wire.texts(value, "open")),
                unguarded=wire.flag(value, "unguarded"),
                environment=UserEnvironment.from_json(value),
            )
        except (WireError, UsageError) as error:
            raise damaged(home.enrolment, error) from None

    @property
    def mesh_secrets(self) -> Mapping[int, MeshSecret]:
        """The mesh secrets that this node holds, by epoch."""
        return {**self.older_mesh_secrets, self.secret_epoch: self.mesh_secret}

    @property
    def ray_tokens(self) -> Mapping[int, str]:
        """Ray's tokens that this node holds, by epoch."""
        return {**self.older_ray_tokens, self.secret_epoch: self.ray_token}

    def sharing(self, shared: SharedSecrets, mesh_map: MeshMap) -> Enrolment:
        """Return the enrolment with what the coordinator says that this node is to hold.

        What it does not name is dropped, unless it is newer than what the coordinator knows (its database was put back
        from an older copy), or the map shows that a static peer or the head's Ray still uses it.
        """
        head, is_hub = mesh_map.head, any(node.id == self.node_id for node in mesh_map.hubs)
        static = {node.secret_epoch for node in mesh_map.with_role(STATIC) if is_hub}
        running = epoch_of(head.ray_instance) if head is not None and head.ray_instance else None
        mesh = {key: held for key, held in self.mesh_secrets.items() if key >= shared.oldest or key in static}
        mesh |= shared.mesh
        ray = {key: held for key, held in self.ray_tokens.items() if key > shared.newest or key == running}
        ray |= shared.ray
        newest = max(mesh)
        return replace(
            self,
            mesh_secret=mesh.pop(newest),
            ray_token=ray.pop(newest),
            secret_epoch=newest,
            older_mesh_secrets=mesh,
            older_ray_tokens=ray,
        )

    def knowing(self, endpoints: Iterable[Endpoint]) -> Enrolment:
        """Return the enrolment with these endpoints of the coordinator behind the first one, older ones last."""
        if self.hosts_coordinator:
            return self
        known = dict.fromkeys((*self.coordinators[:1], *endpoints, *self.coordinators))
        return replace(self, coordinators=tuple(known)[:MOST_COORDINATORS])

    def preferring(self, endpoint: Endpoint) -> Enrolment:
        """Return the enrolment with this endpoint of the coordinator as the first that is tried."""
        if self.hosts_coordinator:
            return self
        known = dict.fromkeys((endpoint, *self.coordinators))
        return replace(self, coordinators=tuple(known)[:MOST_COORDINATORS])

    def save(self, home: Home) -> None:
        """Writes node.json, atomically, mode 0600."""
        make_folder(home.state)
        value = {
            "mesh_id": self.mesh_id,
            "node_id": self.node_id,
            "name": self.name,
            "credential": self.credential,
            "coordinators": [str(endpoint) for endpoint in self.coordinators],
            "fingerprint": self.fingerprint,
            "mesh_secret": self.mesh_secret.reveal(),
            "ray_token": self.ray_token,
            "mesh_port": self.mesh_port,
            "listen_port": self.listen_port,
            "person_uid": self.user_uid,
            "hosts_coordinator": self.hosts_coordinator,
            "ephemeral": self.ephemeral,
            "with_ray": self.with_ray,
            "ray": self.ray,
            "ray_args": list(self.ray_args),
            "labels": dict(self.labels),
            "taken_out": self.taken_out,
            "transport": self.transport,
            "observed": self.observed,
            "ticket": self.ticket,
            "rootless": self.rootless,
            "env": self.env,
            "trust_user_environment": self.trust_user_environment,
            "secret_epoch": self.secret_epoch,
            "older_mesh_secrets": {str(key): secret.reveal() for key, secret in self.older_mesh_secrets.items()},
            "older_ray_tokens": {str(key): token for key, token in self.older_ray_tokens.items()},
            "open": list(self.open),
            "unguarded": self.unguarded,
            **self.environment.to_json(),
        }
        write_atomically(home.enrolment, json.dumps(value, indent=1))


def load_private_key(home: Home) -> PrivateKey:
    """This node's WireGuard key.

    Raises:
        MeshrayError: ``state_damaged`` (the file is kept).
    """
    return read_private_key(home.private_key)


def read_private_key(path: Path) -> PrivateKey:
    """The same from any file of this node, raising the same."""
    missing = f"this node's key {path} is missing"
    text = _read(path, "state_damaged", missing, "restore it from a backup, or: meshray leave")
    try:
        return PrivateKey.parse(text.strip())
    except UsageError as error:
        raise damaged(path, error) from None


def save_private_key(home: Home, key: PrivateKey, *, pending: bool = False) -> None:
    """Writes private.key, or the one that is to follow it, atomically, mode 0600."""
    make_folder(home.state)
    write_atomically(home.pending_key if pending else home.private_key, key.reveal() + "\n")


def damaged(path: Path, error: MeshrayError) -> MeshrayError:
    """The loud error for a file of ours that cannot be read; the file is kept as it is."""
    return MeshrayError(
        "state_damaged",
        f"{path} is damaged: {error.message}",
        hint="restore the file from a backup, or remove this node: meshray leave",
    )


def _ray_args(value: Mapping[str, object]) -> tuple[str, ...]:
    args = wire.texts(value, "ray_args")
    take_ports(args)  # whoever reads them later may rely on it
    return args


def _sha256(text: str) -> str:
    if not re.fullmatch("[0-9a-fA-F]{64}", text):
        raise WireError("fingerprint: must be 64 hexadecimal digits")
    return text


def _read(path: Path, code: str, missing: str, hint: str) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        raise MeshrayError(code, missing, hint=hint) from None
    except PermissionError:
        raise MeshrayError("not_root", f"{path} may be read by root only", hint="run it with sudo") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise MeshrayError(
            "state_damaged", f"{path} cannot be read: {reason}", hint="MESHRAY_HOME must name a folder of meshray's own"
        ) from None
