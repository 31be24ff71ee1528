"""A small mesh for tests: a head that is the hub, and two workers."""

from dataclasses import replace
from ipaddress import IPv4Address

from meshray.model.address import Endpoint, NodeName, OverlayNetwork
from meshray.model.keys import MeshSecret, PrivateKey
from meshray.model.meshmap import MeshInfo, MeshMap
from meshray.model.node import COORDINATOR, HEAD, HUB, WORKER, Node, Versions
from meshray.node.enrolment import Enrolment

KEYS = [PrivateKey.generate() for _ in range(3)]
SECRET = MeshSecret.generate()
HUB_ENDPOINT = Endpoint("203.0.113.10", 51888)


def node(number: int, name: str, **changes: object) -> Node:
    made = Node(
        id=f"n{number}",
        name=NodeName(name),
        ip=IPv4Address(f"10.99.0.{number + 1}"),
        public_key=KEYS[number].public(),
        roles=frozenset({WORKER}),
        online=True,
        versions=Versions("0.1.0", "2.60.0", "3.11.7"),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


HEAD_NODE = node(0, "head", roles=frozenset({HEAD, HUB, COORDINATOR}), endpoints=(HUB_ENDPOINT,))
WORKER_A, WORKER_B = node(1, "gpu-a"), node(2, "gpu-b")
MAP = MeshMap(
    MeshInfo("m1", "lab", OverlayNetwork.parse("10.99.0.0/16")), 5, {n.id: n for n in (HEAD_NODE, WORKER_A, WORKER_B)}
)


def enrolment(me: Node) -> Enrolment:
    return Enrolment(
        mesh_id="m1",
        node_id=me.id,
        name=me.name,
        credential="credential-part",
        coordinators=(HUB_ENDPOINT,),
        fingerprint="00" * 32,
        mesh_secret=SECRET,
        ray_token="ray-part",
        mesh_port=51888,
        listen_port=51888,
        user_uid=0,
        ray_args=("--num-cpus=2",),
        labels={"site": "attic"},
    )
