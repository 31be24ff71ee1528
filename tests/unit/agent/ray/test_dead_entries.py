from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

from meshray.agent.ray.dead_entries import find_dead_entries
from meshray.model.node import GONE, SILENT, Node
from meshray.raynode.dashboard_client import LiveNode
from tests.unit.agent.sample import HEAD_NODE, MAP, WORKER_A, WORKER_B


def row(node: Node, started: float = 100.0, key: str = "") -> LiveNode:
    return LiveNode(node.ip, started, {"CPU": 1.0}, node.name, key or f"id-{node.id}")


ALL = [row(HEAD_NODE), row(WORKER_A), row(WORKER_B)]


def changed(node: Node, **fields: object) -> dict[str, Node]:
    return {**MAP.nodes, node.id: replace(node, **fields)}  # type: ignore[arg-type]


def test_nothing_is_taken_out_of_a_table_that_the_map_agrees_with() -> None:
    assert find_dead_entries(ALL, MAP) == []


def test_a_node_that_is_only_silent_keeps_its_entry() -> None:
    assert find_dead_entries(ALL, replace(MAP, nodes=changed(WORKER_A, silence=SILENT))) == []


def test_a_missing_node_is_removed_at_once() -> None:
    (found,) = find_dead_entries(ALL, replace(MAP, nodes=changed(WORKER_A, silence=GONE)))
    assert (found.id, found.immediate) == (row(WORKER_A).id, True)


def test_a_node_may_announce_that_it_leaves_or_goes_down() -> None:
    left = replace(MAP, nodes={key: node for key, node in MAP.nodes.items() if key != WORKER_A.id})
    down = replace(MAP, nodes=changed(WORKER_A, down=True))
    for mesh_map in (left, down):
        (found,) = find_dead_entries(ALL, mesh_map)
        assert (found.id, found.immediate) == (row(WORKER_A).id, False)


def test_of_two_raylets_at_one_address_the_older_is_the_ghost() -> None:
    again = row(WORKER_A, started=200.0, key="again")
    assert [found.id for found in find_dead_entries([*ALL, again], MAP)] == [row(WORKER_A).id]


def test_the_heads_entry_and_foreign_addresses_are_never_touched() -> None:
    foreign = LiveNode(IPv4Address("192.0.2.9"), 1.0, {}, "", "foreign")
    without_id = LiveNode(IPv4Address("10.99.7.7"), 1.0, {})
    head_again = row(HEAD_NODE, started=1.0, key="older head")
    assert find_dead_entries([*ALL, foreign, without_id, head_again], MAP) == []
