"""The enrolment of this node: the coordinator's answer and the user's options, stored in node.json.

>>> Enrolment.load(home).name
'gpu-1'
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, structs

from meshray.errors import MeshrayError, UsageError
from meshray.home import Home
from meshray.linux.files import make_folder, write_atomically
from meshray.model.address import Endpoint
from meshray.model.endpoints import MAX_ENDPOINTS
from meshray.model.epochs import SharedSecrets, by_epoch
from meshray.model.keys import MeshSecret, PrivateKey
from meshray.model.meshmap import MeshMap
from meshray.model.node import STATIC
from meshray.model.path import Mode, parse_mode
from meshray.model.ray_ports import of_node, take_ports
from meshray.protocol.codec import WireError, decode, to_json
from meshray.protocol.connection import MOST_EPOCHS, RayTokens
from meshray.protocol.fields import (
    FIRST_EPOCH,
    LONGEST_RAY_TOKEN,
    Epoch,
    Items,
    Key,
    MeshName,
    Text64,
    TextMap,
    TicketText,
)
from meshray.raynode.tokens import epoch_of
from meshray.raynode.user_environment import UserEnvironment, UserEnvironmentForm

#: Ray runs from an environment that matches the head's (`meshray.environment`).
MATCH = "match"
#: The value of ``--open`` for all ports.
OPEN_ALL = "all"
_LONGEST = 4096
#: The number of coordinator addresses that a node keeps. It exceeds the endpoints of one node, so that older addresses
#: are kept for a while.
MOST_COORDINATORS = 2 * MAX_ENDPOINTS


def parse_open(items: Iterable[str]) -> tuple[str, ...]:
    """Parse the values of ``--open PORT|all`` and remove duplicates. Raises UsageError.

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
    """This node's side of its membership. It contains secrets; its file has mode 0600.

    Attributes:
        coordinators: endpoints of the coordinator, the one that answered last first; at most `MOST_COORDINATORS`. On
            the coordinator's own machine the loopback.
        fingerprint: SHA-256 of the coordinator's certificate, hexadecimal.
        listen_port: UDP port of this node's WireGuard; 0 lets the kernel choose.
        mesh_port: port of hub and coordinator.
        with_ray: Ray runs on this node.
        external: another program starts this node's Ray (``--ray external``); ``with_ray`` is set as well.
        ray: the path of the `ray` program at the enrolment; empty without Ray, and if another program starts it.
        env: `MATCH`, or empty if Ray runs from the installed environment.
        ray_args: the arguments after ``--``.
        user_uid: the user who runs Ray.
        observed: the source address of the enrolment, as the coordinator observed it; may be empty.
        transport: the allowed transports to the hub; see `meshray.agent.paths.hub_transport`.
        ticket: identifies this node to a coordinator with a restored database; may be empty.
        rootless: whether the node runs in its own namespaces (`meshray.runtime.rootless`).
        trust_user_environment: whether root may run meshray from files that others can change.
        open: the values of ``--open``: more ports of this machine that members may reach, or ``all``.
        exposed: the values of ``--expose``: ports of Ray that are open to this machine's other networks.
        no_remote: whether this node refuses orders of the mesh's administrator (``--no-remote``).
        unguarded: whether Ray may start although its ports cannot be closed to others.
        environment: the user's environment variables for Ray.
        taken_out: the coordinator removed this node; the agent must not start again.
        mesh_secret, ray_token: the secrets of the newest epoch.
        secret_epoch: the number of the newest epoch.
        older_mesh_secrets, older_ray_tokens: the secrets of older epochs in use; see `meshray.model.epochs`.
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
    exposed: tuple[int, ...] = ()
    unguarded: bool = False
    no_remote: bool = False
    environment: UserEnvironment = field(default_factory=UserEnvironment)
    external: bool = False

    @property
    def ray_ports(self) -> Mapping[str, int]:
        """The ports of Ray that the user chose for this node, by name; see `meshray.model.ray_ports`."""
        return of_node(take_ports(self.ray_args)[0])

    @property
    def open_ports(self) -> tuple[int, ...]:
        """The ports of `open`."""
        return tuple(int(item) for item in self.open if item != OPEN_ALL)

    @property
    def open_all(self) -> bool:
        """Whether members may reach every port of this machine."""
        return OPEN_ALL in self.open

    @classmethod
    def load(cls, home: Home) -> Enrolment:
        """Read node.json.

        Raises:
            MeshrayError: ``not_enrolled``, or ``state_damaged`` (the file is kept).
        """
        text = _read(
            home.enrolment, "not_enrolled", "this machine is not in a mesh", "meshray init, or meshray join TOKEN"
        )
        try:
            kept = decode(text, _File)
            take_ports(kept.ray_args)  # later readers rely on this check
            values = structs.asdict(kept) | {
                "coordinators": tuple(map(Endpoint.parse, kept.coordinators)),
                "mesh_secret": MeshSecret.parse(kept.mesh_secret),
                "transport": parse_mode(kept.transport),
                "older_mesh_secrets": {
                    epoch: MeshSecret.parse(secret) for epoch, secret in by_epoch(kept.older_mesh_secrets).items()
                },
                "older_ray_tokens": by_epoch(kept.older_ray_tokens),
                "open": parse_open(kept.open),
                "environment": UserEnvironment.of(kept),
            }
            return cls(**{item.name: values[item.name] for item in fields(cls)})
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

    def with_secrets(self, shared: SharedSecrets, mesh_map: MeshMap) -> Enrolment:
        """Return the enrolment with the secrets that the coordinator sent.

        Other secrets are dropped, unless they are newer than the coordinator's (its database was restored from an older
        copy), or a static peer or the head's Ray still uses them according to the map.
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

    def with_coordinators(self, endpoints: Iterable[Endpoint]) -> Enrolment:
        """Return the enrolment with these endpoints of the coordinator after the preferred one, older ones last."""
        if self.hosts_coordinator:
            return self
        # The address of a name comes second, and stays there.
        first = self.coordinators[: 2 if self.coordinators[:1] and self.coordinators[0].ip is None else 1]
        known = dict.fromkeys((*first, *endpoints, *self.coordinators))
        return replace(self, coordinators=tuple(known)[:MOST_COORDINATORS])

    def with_preferred_coordinator(self, endpoint: Endpoint, resolved: Endpoint | None = None) -> Enrolment:
        """Return the enrolment with this endpoint of the coordinator as the first one.

        Args:
            resolved: the address of its name, which is used while no name server answers.
        """
        if self.hosts_coordinator:
            return self
        known = dict.fromkeys((endpoint, *([resolved] if resolved is not None else []), *self.coordinators))
        return replace(self, coordinators=tuple(known)[:MOST_COORDINATORS])

    def save(self, home: Home) -> None:
        """Write node.json atomically with mode 0600."""
        make_folder(home.state)
        values = vars(self) | {
            "coordinators": tuple(map(str, self.coordinators)),
            "mesh_secret": self.mesh_secret.reveal(),
            "labels": dict(self.labels),
            "older_mesh_secrets": {str(key): secret.reveal() for key, secret in self.older_mesh_secrets.items()},
            "older_ray_tokens": {str(key): token for key, token in self.older_ray_tokens.items()},
            **structs.asdict(self.environment.form()),
        }
        kept = _File(**values)
        write_atomically(home.enrolment, json.dumps(to_json(kept), indent=1))


class _File(UserEnvironmentForm, kw_only=True):
    """The form of node.json, with the names of `Enrolment`. It contains secrets."""

    mesh_id: Text64
    node_id: Text64
    name: MeshName
    credential: Annotated[str, Meta(max_length=128)]
    coordinators: Items = ()
    fingerprint: Annotated[Text64, Meta(pattern="^[0-9a-fA-F]{64}$")]
    mesh_secret: Key
    ray_token: Annotated[str, Meta(max_length=LONGEST_RAY_TOKEN)]
    mesh_port: Annotated[int, Meta(ge=1, le=65535)]
    listen_port: Annotated[int, Meta(ge=0, le=65535)]
    user_uid: Annotated[int, Meta(ge=0, le=2**32)] = msgspec.field(name="person_uid")
    hosts_coordinator: bool = False
    ephemeral: bool = False
    with_ray: bool = False
    ray: Annotated[str, Meta(max_length=_LONGEST)]
    ray_args: Items = ()
    labels: TextMap = msgspec.field(default_factory=dict)
    taken_out: bool = False
    transport: Annotated[str, Meta(max_length=8)] = "auto"
    observed: Annotated[str, Meta(max_length=45)] = ""
    ticket: TicketText = ""
    rootless: bool = False
    env: Annotated[str, Meta(max_length=len(MATCH))] = ""
    trust_user_environment: bool = False
    secret_epoch: Epoch = FIRST_EPOCH
    older_mesh_secrets: Annotated[dict[str, Key], Meta(max_length=MOST_EPOCHS)] = msgspec.field(default_factory=dict)
    older_ray_tokens: RayTokens = msgspec.field(default_factory=dict)
    open: Items = ()
    exposed: tuple[Annotated[int, Meta(ge=1, le=65535)], ...] = ()
    unguarded: bool = False
    no_remote: bool = False
    external: bool = False


def load_private_key(home: Home) -> PrivateKey:
    """Return this node's WireGuard key.

    Raises:
        MeshrayError: ``state_damaged`` (the file is kept).
    """
    return read_private_key(home.private_key)


def read_private_key(path: Path) -> PrivateKey:
    """Return the WireGuard key in a file of this node; see `load_private_key`."""
    missing = f"this node's key {path} is missing"
    text = _read(path, "state_damaged", missing, "restore it from a backup, or: meshray leave")
    try:
        return PrivateKey.parse(text.strip())
    except UsageError as error:
        raise damaged(path, error) from None


def save_private_key(home: Home, key: PrivateKey, *, pending: bool = False) -> None:
    """Write private.key, or the pending key, atomically with mode 0600."""
    make_folder(home.state)
    write_atomically(home.pending_key if pending else home.private_key, key.reveal() + "\n")


def damaged(path: Path, error: MeshrayError) -> MeshrayError:
    """Return the error for a state file that cannot be parsed. The file is kept."""
    return MeshrayError(
        "state_damaged",
        f"{path} is damaged: {error.message}",
        hint="restore the file from a backup, or remove this node: meshray leave",
    )


def _read(path: Path, code: str, missing: str, hint: str) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        raise MeshrayError(code, missing, hint=hint) from None
    except PermissionError:
        raise MeshrayError("not_root", f"{path} may be read by root only", hint="run it with sudo") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise MeshrayError(
            "state_damaged",
            f"{path} cannot be read: {reason}",
            hint="MESHRAY_HOME must name a folder that only meshray uses",
        ) from None
