"""The parts of the pages as HTML: each is an element with an id, and a change sends only the elements that differ.

    MeshView ──Renderer──► Fragments ──difference──► {element id, or id/column of a row: HTML}, cells of the matrix

Parts of nodes and paths that did not change are taken from the renderer's memory, so that a change in a mesh of 200
nodes renders a few rows.

>>> renderer = Renderer(templates)
>>> before = renderer.fragments(Topic("map"), view, now)
>>> difference(before, renderer.fragments(Topic("map"), later, now)).elements
{'r-5d41402abc4b2a76/7': '<td …'}
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from jinja2 import Environment
from markupsafe import Markup

from meshray.web.chart import chart
from meshray.web.edges import Edge
from meshray.web.filters import FILTERS, edge_label, path_text, ports_of, state_counts, used_by_all
from meshray.web.map_layout import Plan, plan
from meshray.web.matrix import Matrix, MatrixBuilder
from meshray.web.view import MeshView, NodeView

#: Rendered parts that are kept: about twice what the page of a mesh of 500 nodes has.
_MOST_KEPT = 15_000
#: From this number of lines on, lines are drawn translucent.
_MANY_LINES = 60
#: The number of selected nodes whose plans are kept.
_MOST_PLANS = 32
#: Ray's resources in the table of nodes, with the headings of their columns.
_RESOURCES = (("CPU", "CPU"), ("GPU", "GPU"), ("Memory", "memory"), ("Store", "object_store_memory"))
_RAY_WORDS = {True: "Ray runs here.", False: "Ray does not run here.", None: "Ray's state is not known."}


@dataclass(frozen=True)
class Topic:
    """The content of one open page: the map with a selected node, the matrix, or one node. Nodes are given by name."""

    page: Literal["map", "matrix", "node"]
    node: str = ""


@dataclass(frozen=True)
class Fragment:
    """One element of a page.

    Attributes:
        opening, closing: the element without its children.
        children: the elements in it that change one by one, in order: by their ids, or for the cells of a row by the
            row's id, a slash and the column.
    """

    opening: str
    children: Mapping[str, str | Fragment] = field(default_factory=dict)
    closing: str = ""

    @property
    def html(self) -> Markup:
        """The whole element."""
        children = (child if isinstance(child, str) else child.html for child in self.children.values())
        return Markup(self.opening + "".join(children) + self.closing)  # noqa: S704 - made by templates


Fragments = Mapping[str, Fragment | Matrix]


@dataclass(frozen=True)
class Difference:
    """The changes: elements by id, and cells of the matrix as (row, column, class, text)."""

    elements: Mapping[str, str]
    cells: tuple[tuple[int, int, str, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.elements or self.cells)


def difference(old: Fragments, new: Fragments) -> Difference:
    """Return the changes that turn a page with the old fragments into one with the new ones."""
    elements: dict[str, str] = {}
    cells: list[tuple[int, int, str, str]] = []
    for key, after in new.items():
        before = old.get(key)
        if isinstance(after, Matrix) and isinstance(before, Matrix) and before.names == after.names:
            cells += after.changes(before)
        elif isinstance(after, Fragment) and isinstance(before, Fragment):
            elements.update(_changes(key, before, after))
        else:
            elements[key] = str(after.html)
    return Difference(elements, tuple(cells))


def _changes(key: str, before: Fragment, after: Fragment) -> Iterator[tuple[str, str]]:
    """Yield the elements of a fragment that differ."""
    if before is after:
        return
    if not _is_same_frame(before, after):
        yield key, str(after.html)
        return
    for child, new in after.children.items():
        old = before.children[child]
        if isinstance(new, Fragment) and isinstance(old, Fragment):
            yield from _changes(child, old, new)
        elif new != old:
            yield child, str(new)


def whole(fragments: Fragments) -> Difference:
    """Return all elements, for a page whose state is not known."""
    return Difference({key: str(fragment.html) for key, fragment in fragments.items()})


def _is_same_frame(before: Fragment, after: Fragment) -> bool:
    return (
        before.opening == after.opening
        and before.closing == after.closing
        and before.children.keys() == after.children.keys()
        and all(map(operator.eq, before.children, after.children))
    )


class Renderer:
    """Render views. The templates escape every value.

    Args:
        templates: the environment of the page's templates, which escapes every value.
    """

    def __init__(self, templates: Environment) -> None:
        self._environment = templates.overlay()
        self._environment.filters = {**templates.filters, **FILTERS}
        # The macros are attributes of the template's module.
        self._parts: Any = self._environment.get_template("parts.html").module
        self._kept: dict[tuple[object, ...], tuple[object, str]] = {}
        self._rows: dict[str, tuple[NodeView, Fragment]] = {}
        self._plans: dict[str, tuple[object, Plan]] = {}
        self._matrix = MatrixBuilder()

    def fragments(self, topic: Topic, view: MeshView, now: float) -> Fragments:
        """Return the elements of this topic's page that change; none for a node that does not exist.

        Args:
            now: unix seconds, for durations.
        """
        if len(self._kept) > _MOST_KEPT:
            self._kept.clear()
            self._rows.clear()
        if topic.page == "matrix":
            return {"matrix": self._matrix.build(view)}
        if topic.page == "node":
            node = view.named(topic.node)
            return dict(self._node(node, view, now)) if node is not None else {}
        return dict(self._map(topic.node, view, now))

    def page(self, template: str, values: Mapping[str, object]) -> str:
        """Return a whole page."""
        return self._environment.get_template(template).render(dict(values))

    def _keep(self, key: tuple[object, ...], state: object, make: Callable[..., object], *arguments: object) -> str:
        """Return the cached part for an equal state, or render it."""
        kept = self._kept.get(key)
        if kept is None or kept[0] != state:
            kept = self._kept[key] = state, str(make(*arguments))
        return kept[1]

    # ---- the map

    def _map(self, selected_name: str, view: MeshView, now: float) -> Iterator[tuple[str, Fragment]]:
        parts, selected = self._parts, view.named(selected_name)
        key, nodes = selected.id if selected is not None else "", list(view.nodes.values())
        words, used = state_counts(nodes), used_by_all(nodes)
        state: object = view.shape, view.totals, words, used
        yield "summary", Fragment(self._keep(("summary",), state, self._summary, view, words, used))
        problems = view.problems, view.has_status, view.notices
        yield "problems", Fragment(self._keep(("problems",), problems, parts.problems, *problems))
        yield "selection", Fragment(self._keep(("selection", key), selected, parts.selection, selected, view))
        drawing = self._plan(view, key)
        yield "map", self._drawing(drawing, view, key)
        numbers = drawing.is_dense, drawing.hidden, drawing.hidden_bundles, bool(drawing.fans), drawing.near
        yield "map-note", Fragment(self._keep(("note", key), numbers, parts.map_note, drawing))
        rows = {f"r-{node.id}": self._row(node, now) for node in nodes}
        yield "rows", Fragment('<tbody id="rows" role="rowgroup">', rows, "</tbody>")

    def _row(self, node: NodeView, now: float) -> Fragment:
        known = self._rows.get(node.id)
        if known is not None and known[0] is node:
            return known[1]
        parts, ray, rate = self._parts, node.ray, node.rate
        states: list[tuple[object, Callable[..., object], tuple[object, ...]]] = [
            ((node.name, node.role, node.ip), parts.cell_name, (node,)),
            (node.site, parts.cell_site, (node.site,)),
            ((node.state, node.since), parts.cell_state, (node, now)),
        ]
        for label, name in _RESOURCES:
            whole, used = ray.resources.get(name), (ray.used or {}).get(name)
            states.append(((whole, used), parts.cell_resource, (label, name, whole, used)))
        states.append((node.paths, parts.cell_paths, (node.paths,)))
        for label, value in (("In", rate.rx_bytes_s if rate else None), ("Out", rate.tx_bytes_s if rate else None)):
            states.append((value, parts.cell_rate, (label, value)))
        cells = {
            f"r-{node.id}/{column}": self._keep(("cell", node.id, column), state, make, *values)
            for column, (state, make, values) in enumerate(states)
        }
        frame = node.name, node.ip, node.site, node.state, node.role
        row = Fragment(self._keep(("row", node.id), frame, parts.row, node), cells, "</tr>")
        self._rows[node.id] = node, row
        return row

    def _summary(self, view: MeshView, words: object, used: object) -> object:
        return self._parts.summary(view, view.counts, words, used)

    def _plan(self, view: MeshView, selected: str) -> Plan:
        known, state = self._plans.get(selected), (view.shape, view.sites)
        if known is None or known[0] != state:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            known = self._plans[selected] = state, plan(view, selected)
        return known[1]

    def _drawing(self, drawing: Plan, view: MeshView, selected: str) -> Fragment:
        parts, nodes = self._parts, view.nodes
        children: dict[str, str] = {}
        labels: dict[str, str] = {}
        for bundle in drawing.bundles:
            key: tuple[object, ...] = ("bundle", selected, bundle.one, bundle.other)
            state: object = bundle, drawing.groups
            children[f"b-{bundle.one}-{bundle.other}"] = self._keep(key, state, parts.bundle, bundle, drawing.groups)
            key = ("bundle label", selected, bundle.one, bundle.other)
            labels[f"t-{bundle.one}-{bundle.other}"] = self._keep(key, bundle, parts.bundle_label, bundle)
        for fan in drawing.fans:
            name, key = nodes[selected].name, ("fan", selected, fan.group)
            state = fan, name, drawing.groups
            children[f"f-{fan.group}"] = self._keep(key, state, parts.fan, fan, name, drawing.groups)
        for line in drawing.lines:
            # The plan is of an earlier view if only numbers changed since.
            edge = view.edge(line.edge.a, line.edge.b) or line.edge
            current = replace(line, edge=edge)
            words = f"{nodes[edge.a].name} – {nodes[edge.b].name}: {path_text(edge)}"
            is_selected = selected in (edge.a, edge.b)
            children[f"e-{edge.a}-{edge.b}"] = self._keep(
                ("edge", selected, edge.a, edge.b),
                (words, current.start, current.end, current.bend, current.label, edge.category),
                parts.line,
                *(current, words, is_selected),
            )
            if line.label is not None:
                key, text = ("label", selected, edge.a, edge.b), edge_label(edge)
                labels[f"l-{edge.a}-{edge.b}"] = self._keep(
                    key, (text, line.label, edge.category), parts.label, current, text
                )
        for node_id, spot in drawing.nodes.items():
            node, is_selected = nodes[node_id], node_id == selected
            state = spot, drawing.is_dense, node.name, node.ip, node.state, node.site, node.role, node.paths
            key = ("dot", is_selected, drawing.is_dense, node_id)
            children[f"n-{node_id}"] = self._keep(key, state, parts.dot, node, spot, drawing.is_dense, is_selected)
        # Later elements are painted above earlier ones.
        return Fragment(self._frame(drawing, view, selected), {**children, **labels}, "</g></svg>")

    def _frame(self, drawing: Plan, view: MeshView, selected: str) -> str:
        words = f"Map of {len(view.nodes)} nodes in {len(view.sites)} sites. The table of nodes has the same data."
        is_many = len(drawing.lines) > _MANY_LINES
        state = drawing.groups, drawing.width, drawing.height, words, is_many, drawing.is_dense
        return self._keep(("map", selected), state, self._parts.map_frame, drawing, words, is_many)

    # ---- one node

    def _node(self, node: NodeView, view: MeshView, now: float) -> Iterator[tuple[str, Fragment]]:
        parts = self._parts
        yield "node-head", Fragment(self._keep(("head", node.id), node, parts.node_head, node, now))
        yield "node-problems", Fragment(str(parts.node_problems(node, f"meshray doctor {node.name}")))
        yield "node-ray", Fragment(str(parts.node_ray(node, _RAY_WORDS[node.ray.alive], ports_of(node))))
        yield "node-traffic", Fragment(str(parts.node_traffic(node, chart(view.rates(node.id), now))))
        peers = sorted(view.edges_of(node.id).items(), key=lambda item: view.nodes[item[0]].name)
        rows = {f"p-{peer}": self._path_row(node.id, edge, view.nodes[peer]) for peer, edge in peers}
        yield "path-rows", Fragment('<tbody id="path-rows" role="rowgroup">', rows, "</tbody>")

    def _path_row(self, node_id: str, edge: Edge, peer: NodeView) -> str:
        state = edge, peer.name, peer.ip, peer.site
        return self._keep(("path", node_id, peer.id), state, self._parts.path_row, edge, peer)
