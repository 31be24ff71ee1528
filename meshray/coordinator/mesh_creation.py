"""Create a mesh: store, certificate, the first node and a first token. All of it, or nothing.

>>> answer, token = create_mesh(home, mesh_name="lab", network=network, node_name=name, public_key=key, port=51888,
...                             endpoints=endpoints, advertised=(), versions=versions, labels={}, now=time.time())
>>> print(token.encode())
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv4Address
from pathlib import Path

from meshray.coordinator.certificate import fingerprint, make_certificate
from meshray.coordinator.records import PutEpoch, SecretEpoch, Settings, TokenRecord
from meshray.coordinator.registry import Registry
from meshray.coordinator.store import create_store
from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.linux.files import make_folder, write_atomically
from meshray.model.address import Endpoint, NodeName, OverlayNetwork
from meshray.model.attestation import Attestation
from meshray.model.enrol import EnrolAnswer
from meshray.model.keys import PublicKey, SigningKey
from meshray.model.meshmap import MeshInfo
from meshray.model.node import COORDINATOR, HEAD, HUB, Node, Versions
from meshray.model.token import Token, hash_secret, new_secret, new_token_id
from meshray.protocol.fields import DEFAULT_PATIENCE_S, FIRST_EPOCH

#: The token that `meshray init` prints enrols any number of nodes for one day, seconds.
FIRST_TOKEN_TTL_S = 86400.0


def create_mesh(
    home: Home,
    *,
    mesh_name: str,
    network: OverlayNetwork,
    node_name: NodeName,
    public_key: PublicKey,
    port: int,
    endpoints: tuple[Endpoint, ...],
    advertised: tuple[Endpoint, ...],
    versions: Versions,
    labels: Mapping[str, str],
    now: float,
    hub_only: bool = False,
    patience_s: int = DEFAULT_PATIENCE_S,
    lock: SigningKey | None = None,
    ray_ports: Mapping[str, int] | None = None,
    attest: Callable[[str], Attestation] | None = None,
) -> tuple[EnrolAnswer, Token]:
    """Create the mesh and enrol this machine as its coordinator, hub and head.

    Args:
        port: UDP for WireGuard, TCP for the coordinator.
        endpoints: the endpoints at which others may reach this machine, for the token and the map.
        advertised: those of them that come from the user.
        now: unix seconds.
        hub_only: this machine is not the head; another one becomes the head with ``join --head``.
        patience_s: how long Ray waits for a node that does not answer, seconds.
        ray_ports: the ports of the head's Ray that the user chose, by name.
        lock: signs the first token; only its public half is stored.
        attest: returns the signature of ``public_key`` by this machine's identity, given the mesh's id.

    Raises:
        MeshrayError: mesh_exists; nothing was changed.
        OSError: the files cannot be written; nothing remains.
    """
    if home.database.exists():
        raise MeshrayError(
            "mesh_exists",
            f"this machine already runs a mesh ({home.database})",
            hint="meshray up starts it; meshray leave ends it",
        )
    make_folder(home.state)
    public_lock = lock.public() if lock is not None else None
    mesh = MeshInfo(secrets.token_hex(8), mesh_name, network, patience_s, public_lock, ray_ports or {})
    settings = Settings(mesh, port)
    epoch = SecretEpoch.make(FIRST_EPOCH, now)
    node = Node(
        id=secrets.token_hex(8),
        name=node_name,
        ip=IPv4Address(0),  # The registry allocates the address.
        public_key=public_key,
        roles=frozenset({HUB, COORDINATOR} if hub_only else {HEAD, HUB, COORDINATOR}),
        endpoints=endpoints,
        labels=dict(labels),
        versions=versions,
        attestation=attest(settings.mesh.id) if attest is not None else None,
    )
    credential, secret = new_secret(), new_secret()
    # The head of a mesh that has none yet joins with the line that `init` prints.
    roles = frozenset({HEAD} if hub_only else ())
    record = TokenRecord(
        new_token_id(), hash_secret(secret), 0, 0, now + FIRST_TOKEN_TTL_S, ephemeral=False, created=now, roles=roles
    )
    certificate, key = make_certificate()
    empty = Registry(settings.mesh)
    registry, node_rows, _ = empty.enrol_first(node, hash_secret(credential), now, advertised)
    registry, token_rows, _ = registry.add_token(record)
    with _removed_on_failure(home.certificate, home.certificate_key):
        write_atomically(home.certificate_key, key)
        write_atomically(home.certificate, certificate)
        # The store comes last: a store that exists is a mesh that exists.
        create_store(home, settings, (PutEpoch(epoch), *node_rows, *token_rows))
    token = Token(settings.mesh.id, endpoints, fingerprint(certificate), record.id, secret)
    if lock is not None:
        token = token.signed(lock, roles, epoch=0)
    answer = EnrolAnswer(node.id, credential, epoch.mesh_secret, epoch.ray_token, registry.map)
    return answer, token


@contextlib.contextmanager
def _removed_on_failure(*files: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        raise
