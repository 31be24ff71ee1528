"""The HTML of the pages: differences, hostile texts, the map of small and large meshes."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import pytest
from msgspec.structs import replace as changed

import meshray.web
from meshray.coordinator.observations import Rate
from meshray.protocol.status import RayStatus
from meshray.web.edges import Severity
from meshray.web.fragments import Fragments, Renderer, Topic, difference, whole
from meshray.web.map_layout import DENSE_FROM, MAX_LINES, MAX_OWN, plan

from .fakes import FakeMesh, a_path

NOW = 1_700_100_000.0
HOSTILE = '"><script>alert(1)</script>\x1b[2J\u202e&'
#: The column of the table of nodes with the numbers of paths.
PATHS_COLUMN = 7
ALL = (Topic("map"), Topic("map", "a-1"), Topic("matrix"), Topic("node", "a-1"))


def renderer() -> Renderer:
    folder = Path(meshray.web.__file__).parent / "templates"
    return Renderer(
        jinja2.Environment(
            loader=jinja2.FileSystemLoader(folder),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
    )


def html_of(fragments: Fragments) -> str:
    return "".join(whole(fragments).elements.values())


class Ids(HTMLParser):
    """Collect the ids, the names of elements and the attributes of a text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        self.ids += [value for name, value in attrs if name == "id" and value]


@pytest.mark.parametrize("topic", ALL, ids=str)
@pytest.mark.parametrize("size", [3, DENSE_FROM])
def test_ids_are_unique_and_each_part_can_be_replaced(topic: Topic, size: int) -> None:
    mesh = FakeMesh.of({"a": size - 1, "b": 1})
    mesh.connect_all()
    fragments = renderer().fragments(topic, mesh.view(), NOW)
    found = Ids(html_of(fragments)).ids
    assert len(found) == len(set(found))
    assert set(fragments) <= set(found)
    for fragment in fragments.values():
        assert set(getattr(fragment, "children", ())) <= set(found)


@pytest.mark.parametrize("topic", ALL, ids=str)
def test_hostile_texts_are_escaped(topic: Topic) -> None:
    mesh = FakeMesh.of({"a": 2})
    mesh.connect("a-1", "a-2", kind="hub", reason=HOSTILE)
    report = mesh.observations.reports[mesh.id("a-1")]
    mesh.put("a-1", changed(report, site=HOSTILE))
    mesh.change("a-1", labels={HOSTILE: HOSTILE}, faults={"one_identity": HOSTILE})
    mesh.problem(HOSTILE, "a-1", HOSTILE)
    mesh.problem(HOSTILE, HOSTILE, HOSTILE)
    assert mesh.status is not None
    ray = RayStatus(alive=True, resources={HOSTILE: 1.0}, used={HOSTILE: 1.0}, ports={HOSTILE: 8000})
    mesh.status = changed(
        mesh.status, nodes=(changed(mesh.status.nodes[0], ray=ray), mesh.status.nodes[1]), notices=(HOSTILE,)
    )
    text = html_of(renderer().fragments(topic, mesh.view(), NOW))
    parsed = Ids(text)
    assert "script" not in parsed.tags
    assert not {name for name in parsed.attributes if name.startswith("on") or name == "style"}
    assert not re.search("[\x1b\u202e]", text)


def test_a_change_of_a_path_sends_its_line_its_rows_and_no_more() -> None:
    mesh, render = FakeMesh.of({"a": 3, "b": 3}), renderer()
    mesh.connect_all()
    before = mesh.view()
    old = render.fragments(Topic("map"), before, NOW)
    mesh.connect("a-1", "b-1", rtt_ms=43.2)
    middle = mesh.view(before)
    new = render.fragments(Topic("map"), middle, NOW)
    pair = f"{mesh.id('a-1')}-{mesh.id('b-1')}"
    assert set(difference(old, new).elements) <= {f"e-{pair}", f"l-{pair}"}
    assert "43.2 ms" in "".join(difference(old, new).elements.values())
    mesh.connect("a-1", "b-1", kind="hub")
    newest = render.fragments(Topic("map"), mesh.view(middle), NOW)
    sent = difference(new, newest).elements
    # Of the table, only the cells with the numbers of paths of both nodes.
    rows = {key for key in sent if key.startswith("r-")}
    assert rows == {f"r-{mesh.id('a-1')}/{PATHS_COLUMN}", f"r-{mesh.id('b-1')}/{PATHS_COLUMN}"}
    assert "summary" in sent
    assert "hub" in sent.get(f"e-{pair}", sent.get("map", ""))


def test_a_node_that_joins_or_leaves_changes_the_whole_table() -> None:
    mesh, render = FakeMesh.of({"a": 3}), renderer()
    old = render.fragments(Topic("map"), mesh.view(), NOW)
    mesh.add("new-1")
    sent = difference(old, render.fragments(Topic("map"), mesh.view(), NOW)).elements
    assert {"rows", "map", "summary"} <= set(sent)
    assert "new-1" in sent["rows"]


def test_the_matrix_sends_cells() -> None:
    mesh, render = FakeMesh.of({"a": 3}), renderer()
    mesh.connect_all()
    before = mesh.view()
    old = render.fragments(Topic("matrix"), before, NOW)
    mesh.connect("a-1", "a-3", kind="hub", transport="wss", rtt_ms=57.0)
    sent = difference(old, render.fragments(Topic("matrix"), mesh.view(before), NOW))
    assert sent.elements == {}
    assert set(sent.cells) == {(0, 2, "w", "57"), (2, 0, "w", "57")}


def test_without_a_change_nothing_is_sent() -> None:
    mesh, render = FakeMesh.of({"a": 3}), renderer()
    mesh.connect_all()
    view = mesh.view()
    for topic in ALL:
        assert not difference(render.fragments(topic, view, NOW), render.fragments(topic, mesh.view(view), NOW))


def test_the_table_has_the_values_to_sort_by() -> None:
    mesh = FakeMesh.of({"a": 2})
    mesh.observations.history[mesh.id("a-2")] = (Rate(NOW - 30, 1_500_000.0, 250.0),)
    rows = html_of(renderer().fragments(Topic("map"), mesh.view(), NOW))
    assert 'data-label="In" data-value="1500000.0">1.5 MB/s' in rows
    assert 'data-label="CPU" data-value="8.0">2 / 8' in rows


def test_a_large_mesh_draws_connections_of_sites_and_the_worst_paths() -> None:
    mesh = FakeMesh.of({"a": 30, "b": 20, **{f"single-{number}": 1 for number in range(20)}})
    mesh.connect_all()
    for number in range(1, 31):
        for other in (1, 2):
            mesh.connect(f"a-{number}", f"b-{other}", kind="none", transport=None, rtt_ms=None, loss=1.0)
    view = mesh.view()
    drawing = plan(view)
    assert drawing.is_dense
    assert len(drawing.lines) == MAX_LINES
    assert drawing.hidden > 0
    assert all(line.edge.severity > 1 for line in drawing.lines)
    assert [len(group.nodes) for group in drawing.groups] == [30, 20, 20]
    assert len(drawing.bundles) == 3
    own = plan(view, mesh.id("a-1"))
    paths = view.paths[mesh.id("a-1")]
    # Each path is shown in one of three ways; those that need attention are lines of their own.
    assert len(own.lines) + sum(fan.counts.total for fan in own.fans) + own.near == len(paths) > MAX_OWN
    assert len(own.fans) == 2
    worst = [peer for peer, category in paths.items() if category.severity >= Severity.RELAYED]
    assert {line.edge.a for line in own.lines} | {line.edge.b for line in own.lines} == {mesh.id("a-1"), *worst}
    assert set(drawing.nodes) == set(view.nodes)


def test_a_selected_node_with_few_paths_has_a_line_for_each_and_a_relayed_one_few_lines() -> None:
    mesh = FakeMesh.of({"a": 30, "b": 30})
    for number in range(1, MAX_OWN + 1):
        mesh.connect("a-1", f"b-{number}")
    few = plan(mesh.view(), mesh.id("a-1"))
    assert (len(few.lines), few.fans, few.near) == (MAX_OWN, (), 0)
    for site in ("a", "b"):
        for number in range(2, 31):
            mesh.connect("a-1", f"{site}-{number}", kind="hub")
    mesh.connect("a-1", "b-7", kind="none", transport=None, rtt_ms=None)
    view = mesh.view()
    drawing = plan(view, mesh.id("a-1"))
    assert [line.edge for line in drawing.lines] == [view.edge(mesh.id("a-1"), mesh.id("b-7"))]
    assert [(fan.counts.hub, fan.counts.direct) for fan in drawing.fans] == [(28, 1)]
    assert drawing.near == 29
    text = html_of(renderer().fragments(Topic("map", "a-1"), view, NOW))
    assert "<title>a-1 – b: 1 direct, 28 via hub</title>" in text
    assert "29 in its own site are not drawn" in text


@pytest.mark.parametrize("sizes", [[1], [2], [7], [1, 1, 1], [3, 2, 1], [5, 4, 8, 3], [1] * 12, [13], [40]], ids=str)
def test_sites_and_nodes_of_a_small_mesh_do_not_overlap(sizes: list[int]) -> None:
    mesh = FakeMesh.of({f"site{place}": size for place, size in enumerate(sizes)})
    mesh.connect_all()
    drawing = plan(mesh.view())
    assert not drawing.is_dense
    assert len(drawing.lines) == sum(sizes) * (sum(sizes) - 1) // 2
    spots = list(drawing.nodes.values())
    for place, one in enumerate(spots):
        assert 0 < one.x < drawing.width
        assert 0 < one.y < drawing.height
        for other in spots[place + 1 :]:
            assert abs(one.x - other.x) >= 40 or abs(one.y - other.y) >= 40
    for place, group in enumerate(drawing.groups):
        for second in drawing.groups[place + 1 :]:
            assert (
                group.x + group.width < second.x
                or second.x + second.width < group.x
                or group.y + group.height < second.y
                or second.y + second.height < group.y
            )


def test_a_line_of_a_small_mesh_has_its_round_trip_and_its_reason() -> None:
    mesh = FakeMesh.of({"a": 1, "b": 1})
    mesh.connect("a-1", "b-1", kind="hub", rtt_ms=31.0, reason="both NATs are symmetric")
    text = html_of(renderer().fragments(Topic("map"), mesh.view(), NOW))
    assert "<title>a-1 – b-1: hub, UDP, RTT 31.0 ms, loss 0 %, both NATs are symmetric</title>" in text
    assert ">31.0 ms</text>" in text


def test_a_node_page_has_traffic_ports_and_paths() -> None:
    mesh = FakeMesh.of({"a": 2})
    mesh.connect("a-1", "a-2", reason="")
    mesh.observations.history[mesh.id("a-1")] = tuple(Rate(NOW - 3600 + 30 * n, 1e6 * n, 5e5) for n in range(120))
    text = html_of(renderer().fragments(Topic("node", "a-1"), mesh.view(), NOW))
    assert 'role="img" aria-label="Bandwidth of the last 60 min: received 119 MB/s now' in text
    assert 'href="/serve/a-1/8000/"' in text
    assert f'id="p-{mesh.id("a-2")}"' in text
    assert a_path().mtu == 1420
    assert ">1420</td>" in text
