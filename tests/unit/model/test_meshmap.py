"""The map is sent whole once, then as changes."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray.errors import UsageError
from meshray.model import meshmap
from meshray.model.address import Endpoint, NodeName, OverlayNetwork
from meshray.model.keys import PrivateKey
from meshray.model.meshmap import MapChange, MeshInfo, MeshMap
from meshray.model.node import HEAD, HUB, WORKER, Node, Versions
from meshray.model.ray_ports import RayPorts
from meshray.protocol.codec import WireError, convert, decode_object, to_json
from meshray.protocol.forms import ChangeForm, MapForm
from tests.unit.model.map_changes import diff

MESH = MeshInfo("m1", "lab", OverlayNetwork.parse("10.99.0.0/16"))
FIRST = IPv4Address("10.99.0.1")
KEYS = [PrivateKey.generate().public() for _ in range(6)]


def node(number: int, **changes: object) -> Node:
    made = Node(
        id=f"n{number}",
        name=NodeName(f"node-{number}"),
        ip=IPv4Address(f"10.99.0.{number + 1}"),
        public_key=KEYS[number],
        roles=frozenset({HEAD, HUB}) if number == 0 else frozenset({WORKER}),
        endpoints=(Endpoint("203.0.113.10", 51888),) if number == 0 else (),
        labels={"site": "attic"},
        versions=Versions("0.1.0", "2.60.0", "3.11.7"),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def maps(revision: int) -> st.SearchStrategy[MeshMap]:
    members = st.dictionaries(st.integers(0, 5), st.booleans())
    return members.map(
        lambda chosen: MeshMap(MESH, revision, {f"n{n}": node(n, online=online) for n, online in chosen.items()})
    )


@given(maps(7), maps(8))
def test_the_difference_leads_from_one_to_the_other(old: MeshMap, new: MeshMap) -> None:
    change = MapChange.of(convert(decode_object(json_of(diff(old, new))), ChangeForm))
    assert old.apply(change) == new


def entries() -> st.SearchStrategy[Node | None]:
    """Yield nodes that may have the id, name, address or key of another one, or an address outside of the overlay."""
    parts = st.tuples(*[st.integers(0, 3)] * 3, st.sampled_from(["10.99.0.1", "10.99.0.2", "10.99.0.3", "10.98.0.1"]))
    return st.none() | parts.map(
        lambda made: replace(
            node(made[0]), name=NodeName(f"node-{made[1]}"), public_key=KEYS[made[2]], ip=IPv4Address(made[3])
        )
    )


@given(maps(7), st.lists(st.dictionaries(st.sampled_from(["n0", "n1", "n2", "n3"]), entries(), max_size=3), max_size=4))
def test_a_changed_map_is_valid_exactly_if_the_same_map_sent_whole_is(
    current: MeshMap, changes: list[dict[str, Node | None]]
) -> None:
    for changed in changes:
        nodes = {key: each for key, each in {**current.nodes, **changed}.items() if each is not None}
        whole = replace(current, revision=current.revision + 1, nodes=nodes)
        change = MapChange(current.revision, whole.revision, changed)
        try:
            expected = MeshMap.of(convert(decode_object(json_of(whole)), MapForm))
        except WireError:
            with pytest.raises(WireError):
                current.apply(change)
            continue
        current = current.apply(change)
        assert current == expected


def test_a_change_of_a_large_map_looks_at_the_changed_nodes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        replace(node(0), id=f"n{n}", name=NodeName(f"w{n}"), ip=FIRST + n, public_key=PrivateKey.generate().public())
        for n in range(300)
    ]
    old = MeshMap.of(MeshMap(MESH, 1, {each.id: each for each in nodes}).form())
    looked, unique = list[Node | None](), meshmap._unique
    monkeypatch.setattr(meshmap, "_unique", lambda each: looked.append(each) or unique(each))  # type: ignore[func-returns-value]
    new = old.apply(MapChange(1, 2, {"n7": None}, fields={"n9": {"online": True}}))
    assert {each.id for each in looked if each is not None} == {"n7", "n9"}
    assert len(new.nodes) == 299 and new.nodes["n9"].online
    assert replace(new.nodes["n9"], online=False) == old.nodes["n9"]
    with pytest.raises(WireError, match="the same address"):
        new.apply(MapChange(2, 3, {"n8": replace(nodes[8], ip=nodes[9].ip)}))


def test_the_encoded_map_is_that_of_its_form() -> None:
    mesh_map = MeshMap(MESH, 1, {f"n{n}": node(n) for n in range(6)}, "mark")
    assert decode_object(mesh_map.encoded()) == decode_object(json_of(mesh_map))


@given(maps(7))
def test_a_map_survives_the_wire(mesh_map: MeshMap) -> None:
    assert MeshMap.of(convert(decode_object(json_of(mesh_map)), MapForm)) == mesh_map


def test_a_change_of_one_node_costs_that_node_only() -> None:
    old = MeshMap(MESH, 1, {f"n{n}": node(n) for n in range(6)})
    new = replace(old, revision=2, nodes={**old.nodes, "n3": node(3, online=True)})
    assert set(diff(old, new).nodes) == {"n3"}


def test_a_change_for_another_revision_is_refused() -> None:
    with pytest.raises(WireError):
        MeshMap(MESH, 3, {}).apply(MapChange(2, 4, {}))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["mesh", "revision", "nodes", "id", "name", "network", "ip", "roles"]), inner
            )
        ),
        max_leaves=20,
    )
)
def test_no_json_breaks_the_decoder(value: object) -> None:
    if isinstance(value, dict):
        with pytest.raises((WireError, UsageError, ValueError)):
            MeshMap.of(convert(value, MapForm))


def json_of(value: MapChange | MeshMap) -> str:
    import json

    return json.dumps(to_json(value.form()))


def test_chosen_ports_of_ray_travel_with_the_map_and_an_older_map_means_the_defaults() -> None:
    nodes = {"n0": node(0), "n1": node(1, ray_ports={"metrics_export": 8500})}
    mesh_map = MeshMap(replace(MESH, ray_ports={"gcs": 6380, "dashboard": 8266}), 3, nodes)
    seen = MeshMap.of(convert(decode_object(json_of(mesh_map)), MapForm))
    assert seen == mesh_map
    assert (str(seen.gcs), str(seen.dashboard)) == ("10.99.0.1:6380", "10.99.0.1:8266")
    assert seen.ports_of(seen.nodes["n1"]) == RayPorts(gcs=6380, dashboard=8266, metrics_export=8500)
    assert seen.ports_of(seen.nodes["n0"]).metrics_export == RayPorts().metrics_export
    old = MeshMap(MESH, 3, {"n0": node(0)})
    assert "ray_ports" not in json_of(old)
    assert MeshMap.of(convert(decode_object(json_of(old)), MapForm)).ports_of(old.head) == RayPorts()
    assert MeshMap(MESH, 3, {}).gcs is None


def test_a_node_cannot_choose_the_ports_of_the_head() -> None:
    value = {**to_json(node(1).form()), "ray_ports": {"gcs": 6380, "metrics_export": 8500}}
    assert Node.from_json(value).ray_ports == {"metrics_export": 8500}
