"""A small mesh, and machines that join it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address

from meshray.coordinator.records import TokenRecord
from meshray.coordinator.registry import Registry
from meshray.model.address import Endpoint, NodeName, OverlayNetwork
from meshray.model.enrol import EnrolRequest
from meshray.model.keys import PublicKey
from meshray.model.meshmap import MeshInfo
from meshray.model.node import COORDINATOR, HEAD, HUB, Node, Versions
from meshray.model.token import hash_secret

MESH = MeshInfo("00112233aabbccdd", "lab", OverlayNetwork.parse("10.99.0.0/16"))
VERSIONS = Versions("0.1.0", "2.60.0", "3.11.7")
SECRET = "the token's secret"
NOW = 1_000_000.0
ENDPOINT = Endpoint("192.0.2.1", 51888)


def key(number: int) -> PublicKey:
    return PublicKey(number.to_bytes(32, "big"))


def token(
    token_id: str = "t1",
    *,
    uses: int = 0,
    expires: float | None = None,
    ephemeral: bool = False,
    roles: Iterable[str] = (),
    name: str = "",
) -> TokenRecord:
    bound_to = NodeName(name) if name else None
    return TokenRecord(
        token_id, hash_secret(SECRET), uses, 0, expires, ephemeral, NOW, roles=frozenset(roles), name=bound_to
    )


def new_mesh(*tokens: TokenRecord, network: str = "10.99.0.0/16") -> Registry:
    head = Node(
        "head-id",
        NodeName("head"),
        IPv4Address(0),
        key(0),
        frozenset({HEAD, HUB, COORDINATOR}),
        endpoints=(ENDPOINT,),
        versions=VERSIONS,
    )
    mesh = replace(MESH, network=OverlayNetwork.parse(network))
    registry, _, _ = Registry(mesh).enrol_first(head, "head-credential", NOW, head.endpoints)
    for record in tokens or (token(),):
        registry, _, _ = registry.add_token(record)
    return registry


def request(
    number: int,
    *,
    token_id: str = "t1",
    secret: str = SECRET,
    name: str = "worker",
    exact: bool = False,
    ephemeral: bool = False,
    mesh_id: str = MESH.id,
    versions: Versions = VERSIONS,
    with_ray: bool = True,
) -> EnrolRequest:
    return EnrolRequest(
        mesh_id, token_id, secret, NodeName(name), exact, key(number), versions, with_ray, ephemeral, {"zone": "a"}
    )


def online(registry: Registry, node_id: str) -> Registry:
    """Return the registry in which the node's agent is connected and has the map."""
    registry, _, _ = registry.connected(node_id)
    return registry.map_received(node_id)[0]


def accept_all(mine: Versions, head: Versions) -> None:
    """Accept every pair of versions."""


def enrol(registry: Registry, asked: EnrolRequest, now: float = NOW) -> Registry:
    number = int.from_bytes(asked.public_key.raw, "big")
    registry, _, _ = registry.enrol(
        asked, node_id=f"id-{number}", credential_hash=f"credential-{number}-{now}", compare=accept_all, now=now
    )
    return registry
