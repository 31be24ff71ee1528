"""A mesh of any size for the page: its map, its agents' reports, and the status of the coordinator's own agent.

>>> mesh = FakeMesh.of(sites={"home": 2, "office": 1})
>>> mesh.connect("home-1", "office-1", kind="hub", rtt_ms=12.0)
>>> mesh.view().edge(mesh.id("home-1"), mesh.id("office-1")).kind
<PathKind.HUB: 'hub'>
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from itertools import combinations

import msgspec

from meshray.coordinator.observations import Rate
from meshray.model.address import NodeName, OverlayNetwork
from meshray.model.keys import PrivateKey
from meshray.model.meshmap import MeshInfo, MeshMap
from meshray.model.node import COORDINATOR, HEAD, HUB, WORKER, Node, Versions
from meshray.model.problem import Problem
from meshray.protocol.connection import PathReport, ReportedPath
from meshray.protocol.status import NodeStatus, RayStatus, Status, Totals
from meshray.web.view import MeshView, build

GIB = float(2**30)


def a_path(**fields: object) -> ReportedPath:
    """Return a direct path of 10 ms, or one with these fields."""
    normal = {"kind": "direct", "transport": "udp", "rtt_ms": 10.0, "loss": 0.0, "mtu": 1420}
    return msgspec.convert({**normal, **fields}, ReportedPath)


def _report(site: str = "") -> PathReport:
    return PathReport(site, 1_700_000_000.0, (8000,), 1000, 2000)


class FakeObservations:
    def __init__(self) -> None:
        self.revision = 0
        self.reports: dict[str, PathReport] = {}
        self.history: dict[str, tuple[Rate, ...]] = {}

    def report(self, node_id: str) -> PathReport | None:
        return self.reports.get(node_id)

    def rate(self, node_id: str) -> Rate | None:
        history = self.history.get(node_id, ())
        return history[-1] if history else None

    def rates(self, node_id: str) -> Sequence[Rate]:
        return self.history.get(node_id, ())


@dataclass
class FakeMesh:
    """The parts from which a view is built; `own_status` makes it a source of `meshray.web.live`."""

    map: MeshMap
    observations: FakeObservations
    status: Status | None

    @classmethod
    def of(cls, sites: Mapping[str, int], now: float = 1_700_100_000.0) -> FakeMesh:
        nodes, entries, observations = {}, [], FakeObservations()
        number = 0
        for site, count in sites.items():
            for place in range(1, count + 1):
                number += 1
                name, node_id = f"{site}-{place}", f"{number:016x}"
                roles = {HEAD, HUB, COORDINATOR} if number == 1 else {WORKER}
                ip = IPv4Address("10.99.0.0") + number
                nodes[node_id] = Node(
                    node_id,
                    NodeName(name),
                    ip,
                    PrivateKey.generate().public(),
                    frozenset(roles),
                    online=True,
                    versions=Versions("0.1.0", "2.60.0", "3.11.7"),
                )
                observations.reports[node_id] = _report(site)
                ray = RayStatus(
                    alive=True,
                    resources={"CPU": 8.0, "GPU": 1.0, "memory": 32 * GIB, "object_store_memory": 9 * GIB},
                    used={"CPU": 2.0, "GPU": 0.0, "memory": 4 * GIB},
                )
                role = "head" if number == 1 else "worker"
                entries.append(NodeStatus(name, str(ip), role, online=True, ray=ray, since=now - 3600))
        mesh_map = MeshMap(MeshInfo("m1", "lab", OverlayNetwork.parse("10.99.0.0/16")), 1, nodes)
        totals = Totals(8.0 * number, 1.0 * number, 32 * GIB * number, 9 * GIB * number)
        status = Status(mesh="lab", revision=1, node=entries[0].name, nodes=tuple(entries), totals=totals)
        return cls(mesh_map, observations, status)

    def id(self, name: str) -> str:
        """Return the id of the node of this name."""
        return next(node.id for node in self.map.nodes.values() if node.name == name)

    def connect(self, one: str, other: str, **path: object) -> None:
        """Let both nodes report this path to the other; without fields a direct one of 10 ms."""
        for here, there in ((one, other), (other, one)):
            self.report(here, there, a_path(**path))

    def report(self, here: str, there: str, path: ReportedPath | None) -> None:
        """Let one node report its path to another; None: it reports none."""
        before = self.observations.reports[self.id(here)]
        paths = {key: value for key, value in before.paths.items() if key != self.id(there)}
        if path is not None:
            paths[self.id(there)] = path
        self.put(here, msgspec.structs.replace(before, paths=paths))

    def put(self, name: str, report: PathReport) -> None:
        self.observations.reports[self.id(name)] = report
        self.observations.revision += 1

    def change(self, name: str, **fields: object) -> None:
        """Change a node of the map."""
        node = replace(self.map.nodes[self.id(name)], **fields)  # type: ignore[arg-type]
        self.map = replace(self.map, revision=self.map.revision + 1, nodes={**self.map.nodes, node.id: node})

    def add(self, name: str) -> Node:
        """Let a node join."""
        number = 1 + max(int(node_id, 16) for node_id in self.map.nodes)
        node = Node(
            f"{number:016x}",
            NodeName(name),
            IPv4Address("10.99.0.0") + number,
            PrivateKey.generate().public(),
            frozenset({WORKER}),
            online=True,
        )
        self.map = replace(self.map, revision=self.map.revision + 1, nodes={**self.map.nodes, node.id: node})
        self.observations.reports[node.id] = _report()
        return node

    def remove(self, name: str) -> None:
        """Remove a node."""
        gone = self.id(name)
        nodes = {key: node for key, node in self.map.nodes.items() if key != gone}
        self.map = replace(self.map, revision=self.map.revision + 1, nodes=nodes)
        self.observations.reports.pop(gone, None)

    def problem(self, text: str, node: str | None = None, fix: str = "", code: str = "") -> None:
        assert self.status is not None
        health = (*self.status.health, Problem(code, text, node, fix))
        self.status = Status(
            mesh="lab",
            node=self.status.node,
            nodes=self.status.nodes,
            totals=self.status.totals,
            health=health,
        )

    def connect_all(self, seed: int = 1) -> None:
        """Connect every pair: most directly, some through the hub, a few with loss or without a path."""
        chance = random.Random(seed)
        names = [str(node.name) for node in self.map.nodes.values()]
        paths: dict[str, dict[str, ReportedPath]] = {self.id(name): {} for name in names}
        ids = {name: self.id(name) for name in names}
        for one, other in combinations(names, 2):
            path = self.random_path(chance, one, other)
            paths[ids[one]][ids[other]] = paths[ids[other]][ids[one]] = path
        for name in names:
            before = self.observations.reports[ids[name]]
            self.observations.reports[ids[name]] = msgspec.structs.replace(before, paths=paths[ids[name]])
        self.observations.revision += 1

    @staticmethod
    def random_path(chance: random.Random, one: str, other: str) -> ReportedPath:
        near = one.rpartition("-")[0] == other.rpartition("-")[0]
        rtt = chance.uniform(0.2, 2) if near else chance.uniform(8, 90)
        draw = chance.random()
        if draw < 0.0015:
            return a_path(kind="none", transport=None, rtt_ms=None, loss=1.0, reason="no handshake for 3 min")
        if draw < 0.004:
            return a_path(rtt_ms=rtt, loss=chance.uniform(0.05, 0.3))
        if draw < (0.0 if near else 0.05):
            wss = chance.random() < 0.3
            transport = "wss" if wss else "udp"
            return a_path(kind="hub", transport=transport, rtt_ms=rtt * 2, reason="both NATs are symmetric")
        return a_path(rtt_ms=rtt)

    def view(self, previous: MeshView | None = None) -> MeshView:
        return build(self.map, self.observations, self.status, previous)

    async def own_status(self) -> Status | None:
        return self.status
