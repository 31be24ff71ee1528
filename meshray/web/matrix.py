"""The matrix of all pairs: one cell per pair, with the round trip in milliseconds in the colour of the path.

A mesh of 200 nodes has 40,000 cells, so they are written without a template, and cells of nodes without a new path are
kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from meshray.model.path import PathKind, Transport
from meshray.protocol.connection import PathReport
from meshray.web.edges import Edge, is_lossy
from meshray.web.filters import node_address
from meshray.web.map_layout import DENSE_FROM
from meshray.web.view import MeshView

#: The class and the text of a cell; the classes are those of style.css.
Cell = tuple[str, str]
_NOT_IN_USE: Cell = ("", "·")
_SELF: Cell = ("s", "")
_EMPTY: Mapping[int, Cell] = {}


@dataclass(frozen=True)
class Matrix:
    """The matrix of one view.

    Attributes:
        names: the names of the nodes, in order.
        rows: the cells of each node by the place of the peer.
    """

    names: tuple[str, ...]
    rows: tuple[Mapping[int, Cell], ...] = field(repr=False)

    @property
    def html(self) -> Markup:
        """The whole element."""
        heads = "".join(f'<th scope="col"><span>{_link(name)}</span></th>' for name in self.names)
        body = "".join(
            f'<tr><th scope="row">{_link(name)}</th>{"".join(self._cells(place))}</tr>'
            for place, name in enumerate(self.names)
        )
        classes = "matrix large" if len(self.names) >= DENSE_FROM else "matrix"
        return Markup(  # noqa: S704 - the names are escaped, the cells contain numbers
            f'<table id="matrix" class="{classes}"><caption class="visually-hidden">The path of every pair of nodes: '
            "the round trip time in milliseconds</caption>"
            f'<thead><tr><td class="s"></td>{heads}</tr></thead><tbody>{body}</tbody></table>'
        )

    def changes(self, before: Matrix) -> Iterator[tuple[int, int, str, str]]:
        """Yield the cells that differ from a matrix of the same nodes: row, column, class, text."""
        for row, (new, old) in enumerate(zip(self.rows, before.rows, strict=True)):
            if new is old:
                continue
            for column in new.keys() | old.keys():
                cell = new.get(column, _NOT_IN_USE)
                if cell != old.get(column, _NOT_IN_USE):
                    yield row, column, *cell

    def _cells(self, row: int) -> Iterator[str]:
        cells = self.rows[row]
        for column in range(len(self.names)):
            kind, text = _SELF if column == row else cells.get(column, _NOT_IN_USE)
            yield f'<td class="{kind}">{text}' if kind else f"<td>{text}"


class MatrixBuilder:
    """Make matrices of successive views of a mesh."""

    def __init__(self) -> None:
        self._ids: tuple[str, ...] = ()
        self._reports: dict[str, PathReport | None] = {}
        self._rows: dict[str, dict[int, Cell]] = {}

    def build(self, view: MeshView) -> Matrix:
        """Return the matrix of this view."""
        ids = tuple(view.nodes)
        if ids != self._ids:
            self._ids, self._reports, self._rows = ids, {}, {}
        place = {node_id: index for index, node_id in enumerate(ids)}
        own: dict[str, dict[int, Cell]] = {}

        def put(node_id: str, column: int, cell: Cell) -> None:
            # An earlier matrix keeps its own rows.
            row = own.get(node_id)
            if row is None:
                row = self._rows[node_id] = own[node_id] = dict(self._rows.get(node_id, _EMPTY))
            row[column] = cell

        for node_id in ids:
            report, column = view.report(node_id), place[node_id]
            if node_id in self._reports and report is self._reports[node_id]:
                continue
            self._reports[node_id] = report
            row = self._rows.get(node_id, _EMPTY)
            for peer in {*view.paths.get(node_id, ()), *(ids[index] for index in row)}:
                edge = view.edge(node_id, peer)
                cell = cell_of(edge) if edge is not None else _NOT_IN_USE
                if cell != row.get(place[peer], _NOT_IN_USE):
                    put(node_id, place[peer], cell)
                    put(peer, column, cell)
        return Matrix(
            tuple(node.name for node in view.nodes.values()), tuple(self._rows.get(node_id, _EMPTY) for node_id in ids)
        )


def cell_of(edge: Edge) -> Cell:
    """Return the class and the text of this path's cell."""
    if edge.kind is PathKind.NONE:
        return "n", "✕"
    kind = "d" if edge.kind is PathKind.DIRECT else "w" if edge.transport is Transport.WSS else "h"
    rtt = edge.rtt_ms
    text = "?" if rtt is None else "<1" if rtt < 0.95 else f"{rtt:.0f}"
    return f"{kind} l" if is_lossy(edge.loss) else kind, text


def _link(name: str) -> str:
    return f'<a href="{node_address(name)}">{escape(name)}</a>'
