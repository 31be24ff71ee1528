"""The view of the mesh: paths of both ends, states, and what is computed again."""

from __future__ import annotations

from msgspec.structs import replace as changed

from meshray.coordinator.observations import Rate
from meshray.model.path import PathKind, Transport
from meshray.protocol.status import RayStatus
from meshray.web.edges import PathCounts, Severity

from .fakes import FakeMesh, a_path


def three() -> FakeMesh:
    mesh = FakeMesh.of({"home": 1, "office": 1, "cafe": 1})
    mesh.connect("home-1", "office-1", rtt_ms=12.0)
    return mesh


def test_a_path_is_known_from_both_ends_and_pairs_without_a_report_have_none() -> None:
    mesh = three()
    view, home, office = mesh.view(), mesh.id("home-1"), mesh.id("office-1")
    edge = view.edge(home, office)
    assert edge is not None
    assert view.edge(office, home) is edge
    assert (edge.kind, edge.transport, edge.rtt_ms) == (PathKind.DIRECT, Transport.UDP, 12.0)
    assert view.edge(home, mesh.id("cafe-1")) is None
    assert view.nodes[home].paths == PathCounts(direct=1)


def test_the_worse_end_counts() -> None:
    mesh = three()
    relayed = a_path(kind="hub", transport="wss", rtt_ms=40.0, loss=0.1, reason="UDP is blocked")
    mesh.report("office-1", "home-1", relayed)
    edge = mesh.view().edge(mesh.id("home-1"), mesh.id("office-1"))
    assert edge is not None
    assert (edge.kind, edge.transport, edge.rtt_ms) == (PathKind.HUB, Transport.WSS, 40.0)
    assert (edge.loss, edge.reason, edge.severity) == (0.1, "UDP is blocked", Severity.LOSSY)


def test_a_report_about_an_unknown_node_or_the_node_itself_is_ignored() -> None:
    mesh = three()
    home = mesh.observations.reports[mesh.id("home-1")]
    paths = {**home.paths, "ffffffffffffffff": a_path(), mesh.id("home-1"): a_path()}
    mesh.put("home-1", changed(home, paths=paths))
    assert [edge.kind for edge in mesh.view().edges()] == [PathKind.DIRECT]


def test_reports_of_a_node_that_is_offline_do_not_count() -> None:
    mesh = three()
    mesh.report("office-1", "home-1", None)
    before = mesh.view()
    mesh.change("home-1", online=False)
    after = mesh.view(before)
    assert list(after.edges()) == []
    assert after.nodes[mesh.id("home-1")].state == "offline"


def test_a_later_view_equals_one_built_from_nothing() -> None:
    mesh = FakeMesh.of({"a": 6, "b": 5})
    mesh.connect_all()
    view = mesh.view()
    mesh.connect("a-1", "b-2", kind="none", transport=None, rtt_ms=None)
    view = mesh.view(view)
    mesh.remove("a-3")
    view = mesh.view(view)
    added = mesh.add("c-1")
    mesh.report("b-4", "c-1", a_path(rtt_ms=3.0))
    view = mesh.view(view)
    mesh.change("b-5", online=False)
    view = mesh.view(view)
    whole = mesh.view()
    edges = {node: dict(paths) for node, paths in whole.paths.items() if paths}
    assert {node: dict(paths) for node, paths in view.paths.items() if paths} == edges
    assert {edge[:2]: edge for edge in view.edges()} == {edge[:2]: edge for edge in whole.edges()}
    assert view.nodes == whole.nodes
    assert view.nodes[added.id].paths == PathCounts(direct=1)


def test_unchanged_parts_are_reused() -> None:
    mesh = FakeMesh.of({"a": 4})
    mesh.connect_all()
    before = mesh.view()
    mesh.connect("a-1", "a-2", rtt_ms=77.0)
    after = mesh.view(before)
    for name in ("a-3", "a-4"):
        assert after.nodes[mesh.id(name)] is before.nodes[mesh.id(name)]
        assert after.paths[mesh.id(name)] is before.paths[mesh.id(name)]
    # Only a number changed: no line of the map moves.
    assert after.shape == before.shape
    mesh.connect("a-1", "a-2", kind="hub")
    assert mesh.view(after).shape > after.shape


def test_a_round_trip_changes_if_it_differs_by_more_than_a_tenth() -> None:
    mesh = three()
    shown = []
    view = mesh.view()
    for rtt_ms in (12.0, 13.0, 11.0, 13.3, 14.0, 12.2):
        mesh.connect("home-1", "office-1", rtt_ms=rtt_ms)
        view = mesh.view(view)
        edge = view.edge(mesh.id("home-1"), mesh.id("office-1"))
        assert edge is not None
        shown.append(edge.rtt_ms)
    assert shown == [12.0, 12.0, 12.0, 13.3, 13.3, 13.3]
    mesh.connect("home-1", "office-1", rtt_ms=13.3, loss=0.01)
    edge = mesh.view(view).edge(mesh.id("home-1"), mesh.id("office-1"))
    assert edge is not None
    assert edge.loss == 0.01


def test_news_is_what_is_more_than_numbers() -> None:
    mesh = three()
    view = mesh.view()

    def is_news() -> bool:
        nonlocal view
        before, view = view, mesh.view(view)
        return view.news > before.news

    mesh.connect("home-1", "office-1", rtt_ms=80.0, loss=0.01)
    mesh.observations.history[mesh.id("home-1")] = (Rate(0.0, 5.0, 5.0),)
    assert not is_news()
    mesh.connect("home-1", "office-1", kind="hub")
    assert is_news()
    mesh.problem("the hub does not forward")
    assert is_news()
    mesh.change("cafe-1", silence="silent")
    assert is_news()
    assert mesh.status is not None
    entries = tuple(changed(node, ray=RayStatus(alive=node.name != "office-1")) for node in mesh.status.nodes)
    mesh.status = changed(mesh.status, nodes=entries)
    assert is_news()
    mesh.status = None
    assert is_news()
    assert not is_news()


def test_states_are_those_of_status() -> None:
    mesh = three()
    assert mesh.status is not None
    entries = tuple(changed(node, ray=RayStatus(alive=node.name != "cafe-1")) for node in mesh.status.nodes)
    mesh.status = changed(mesh.status, nodes=entries)
    mesh.change("office-1", drained=True)
    assert [node.state for node in mesh.view().nodes.values()] == ["ready", "draining", "no Ray"]
    mesh.change("home-1", down=True)
    mesh.change("office-1", silence="silent")
    mesh.status = None
    assert [node.state for node in mesh.view().nodes.values()] == ["down", "no answer", "up"]


def test_the_page_has_no_words_of_its_own_for_states() -> None:
    """A node has the same state on the page and in the terminal."""
    from meshray.cli.status_table import status_word
    from meshray.protocol.status import NodeStatus

    for fields in ({"down": True}, {"silent": True}, {"online": False}, {"drained": True}, {}):
        for alive in (True, False, None):
            mesh = FakeMesh.of({"a": 1})
            entry = NodeStatus(**{"name": "a-1", "online": True, "ray": RayStatus(alive=alive), **fields})  # type: ignore[arg-type]
            assert mesh.status is not None
            mesh.status = changed(mesh.status, nodes=(entry,))
            of_map = {"silence" if name == "silent" else name: value for name, value in fields.items()}
            mesh.change("a-1", **({"silence": "silent"} if "silence" in of_map else of_map))
            assert [node.state for node in mesh.view().nodes.values()] == [status_word(entry)[0]], fields


def test_problems_belong_to_their_node() -> None:
    mesh = three()
    mesh.problem("Ray does not run there", "cafe-1", "on cafe-1: meshray doctor")
    mesh.problem("the hub does not forward")
    view = mesh.view()
    assert [problem.text for problem in view.problems] == ["Ray does not run there", "the hub does not forward"]
    assert [problem.fix for problem in view.nodes[mesh.id("cafe-1")].problems] == ["on cafe-1: meshray doctor"]
    assert view.nodes[mesh.id("home-1")].problems == ()
