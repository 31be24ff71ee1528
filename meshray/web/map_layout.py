"""The layout of the map: where sites, nodes and paths are drawn (pure). The unit is one CSS pixel of an unscaled map.

A small mesh shows every path as a separate line:

    ╭ site ────╮     12 ms     ╭ site ─╮
    │  ●───●   │───────────────│   ●   │
    ╰──────────╯               ╰───────╯

From `DENSE_FROM` nodes on, the paths between two sites are one line with their numbers. Then only the paths that need
attention, and those of the selected node, are separate lines; a selected node with many paths has one line to each
other site for those that need no attention.

>>> plan(view).nodes["n1"]
Spot(x=120.0, y=80.0)
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from meshray.web.edges import Category, Edge, PathCounts, Severity
from meshray.web.view import MeshView

#: From this number of nodes on, paths are drawn together.
DENSE_FROM = 41
#: The number of drawn lines that a reader can still distinguish.
MAX_LINES, MAX_BUNDLES, MAX_LABELS = 40, 45, 36
#: The number of paths of a selected node of which each is a separate line, in a mesh with bundles.
MAX_OWN = 24
#: More groups than this: sites of one node each are drawn as one group.
MAX_SINGLES = 12
#: More groups than this are arranged in rows instead of a ring.
_LARGEST_RING = 9
_MARGIN = 16.0
#: The room of a group's title: its name, which may be cut, and its number of nodes.
_TITLE_WIDTH = 132.0
#: A line bends around a node that is nearer than this.
_CLEARANCE = 24.0


@dataclass(frozen=True)
class Spot:
    """A point."""

    x: float
    y: float


@dataclass(frozen=True)
class Group:
    """The rectangle of a site, or of all sites of one node each."""

    name: str
    nodes: tuple[str, ...]
    x: float = 0.0
    y: float = 0.0
    width: float = 0.0
    height: float = 0.0
    is_mixed: bool = False

    @property
    def middle(self) -> Spot:
        """Its centre."""
        return Spot(self.x + self.width / 2, self.y + self.height / 2)


@dataclass(frozen=True)
class Line:
    """A path from one spot to another.

    Attributes:
        bend: the control point of a quadratic curve around other nodes; the middle of a straight line.
        label: the place of the text; None without one.
    """

    edge: Edge
    start: Spot
    end: Spot
    bend: Spot
    label: Spot | None = None


@dataclass(frozen=True)
class Bundle:
    """All paths between two groups."""

    one: int
    other: int
    start: Spot
    end: Spot
    counts: PathCounts
    label: Spot


@dataclass(frozen=True)
class Fan:
    """Paths of the selected node to the nodes of another group, as one line to the group's rectangle."""

    group: int
    start: Spot
    end: Spot
    counts: PathCounts


@dataclass(frozen=True)
class Plan:
    """The whole map.

    Attributes:
        fans: empty, unless the selected node has many paths. near: the number of its other paths to its own group,
            which are not drawn.
        hidden: the number of paths that need attention and are not drawn.
        hidden_bundles: the number of connections between groups that are not drawn.
    """

    width: float
    height: float
    is_dense: bool
    groups: tuple[Group, ...]
    nodes: Mapping[str, Spot]
    lines: tuple[Line, ...]
    bundles: tuple[Bundle, ...] = ()
    fans: tuple[Fan, ...] = ()
    near: int = 0
    hidden: int = 0
    hidden_bundles: int = 0


def plan(view: MeshView, selected: str = "") -> Plan:
    """Return where to draw each part of this view.

    Args:
        selected: the id of the node whose paths are drawn.
    """
    is_dense = len(view.nodes) >= DENSE_FROM
    style = _DENSE if is_dense else _ROOMY
    groups, spots = _placed(_groups(view), style)
    width = max((group.x + group.width for group in groups), default=0.0) + _MARGIN
    height = max((group.y + group.height for group in groups), default=0.0) + _MARGIN
    edges, together, hidden = _drawn(view, selected, is_dense)
    fans, near = _fans(view, selected, together, groups, spots)
    bundles, hidden_bundles = _bundles(view, groups) if is_dense else ((), 0)
    lines = [Line(edge, spots[edge.a], spots[edge.b], _bend(edge, spots, is_dense=is_dense)) for edge in edges]
    return Plan(
        width,
        height,
        is_dense,
        groups,
        spots,
        tuple(_labelled(lines, spots, style)),
        bundles,
        fans,
        near,
        hidden,
        hidden_bundles,
    )


def _drawn(view: MeshView, selected: str, is_dense: bool) -> tuple[list[Edge], list[str], int]:
    """Return the paths that are separate lines, the most important ones last.

    Also return the peers of the selected node whose paths are drawn together, and how many paths that need attention
    are left out.
    """
    if not is_dense:
        return sorted(view.edges(), key=lambda edge: (edge.severity, edge.a, edge.b)), [], 0
    paths = view.paths.get(selected, {})
    own = sorted(paths, key=lambda peer: (paths[peer].severity, peer))
    together: list[str] = []
    if len(own) > MAX_OWN:
        # Relayed paths are drawn as well, unless they are many.
        least = Severity.RELAYED if _number(paths, Severity.RELAYED) <= MAX_OWN else Severity.LOSSY
        alone = max(0, len(own) - min(MAX_OWN, _number(paths, least)))
        together, own = own[:alone], own[alone:]
    # A relayed path of another pair works; the lines between sites have the number of those.
    others = [
        (node.id, peer, category.severity)
        for node in view.nodes.values()
        if node.paths.none or node.paths.lossy
        for peer, category in view.paths.get(node.id, {}).items()
        if node.id < peer and category.severity >= Severity.LOSSY and selected not in (node.id, peer)
    ]
    others.sort(key=lambda path: (-path[2], path[0], path[1]))
    room = 0 if selected else MAX_LINES
    pairs = [*((one, other) for one, other, _ in reversed(others[:room])), *((selected, peer) for peer in own)]
    edges = [edge for one, other in pairs if (edge := view.edge(one, other)) is not None]
    return edges, together, len(others[room:])


def _number(paths: Mapping[str, Category], least: Severity) -> int:
    """Return how many paths need at least this attention."""
    return sum(category.severity >= least for category in paths.values())


def _fans(
    view: MeshView, selected: str, peers: Sequence[str], groups: Sequence[Group], spots: Mapping[str, Spot]
) -> tuple[tuple[Fan, ...], int]:
    """Return the lines from the selected node that represent its paths to these peers; and the number of near peers."""
    group_of = {node: index for index, group in enumerate(groups) for node in group.nodes}
    paths: defaultdict[int, list[Category]] = defaultdict(list)
    for peer in peers:
        paths[group_of[peer]].append(view.paths[selected][peer])
    near = len(paths.pop(group_of[selected], ())) if peers else 0
    fans = (
        Fan(index, spots[selected], _edge_of(groups[index], spots[selected]), PathCounts.of(found))
        for index, found in sorted(paths.items())
    )
    return tuple(fans), near


#: The size of the text on the line between two groups.
_BUNDLE_LABEL = Spot(124, 28)

# ---- groups and nodes


@dataclass(frozen=True)
class _Style:
    """The sizes of one kind of map: of the cell of a node, of a group's title, and between groups."""

    cell_width: float
    cell_height: float
    title: float
    padding: float
    gap: float
    label_width: float
    label_height: float = 20.0


_ROOMY = _Style(cell_width=120, cell_height=80, title=30, padding=8, gap=62, label_width=72)
_DENSE = _Style(cell_width=22, cell_height=22, title=30, padding=10, gap=64, label_width=70)


def _groups(view: MeshView) -> list[Group]:
    sites = [Group(site.name, site.nodes) for site in view.sites]
    if len(sites) <= MAX_SINGLES:
        return sites
    singles = [group for group in sites if len(group.nodes) == 1]
    if len(singles) < 2:
        return sites
    mixed = Group("", tuple(node for group in singles for node in group.nodes), is_mixed=True)
    return [*(group for group in sites if len(group.nodes) > 1), mixed]


def _placed(groups: Sequence[Group], style: _Style) -> tuple[tuple[Group, ...], dict[str, Spot]]:
    """Return the groups with their rectangles, and the spots of their nodes."""
    inside = [_inside(group, style) for group in groups]
    sized = [
        replace(group, width=width, height=height) for group, (width, height, _) in zip(groups, inside, strict=True)
    ]
    ring = style is _ROOMY and 2 < len(sized) <= _LARGEST_RING
    placed = _in_ring(sized, style.gap) if ring else _in_rows(sized, style.gap)
    spots = {
        node: Spot(round(group.x + spot.x, 1), round(group.y + spot.y, 1))
        for group, (_, _, places) in zip(placed, inside, strict=True)
        for node, spot in zip(group.nodes, places, strict=True)
    }
    return tuple(placed), spots


def _inside(group: Group, style: _Style) -> tuple[float, float, list[Spot]]:
    """Return the size of a group and the places of its nodes in it."""
    count, padding = len(group.nodes), style.padding
    if style is _ROOMY and 3 <= count <= 12:
        return _circle(count, style)
    is_roomy = style is _ROOMY
    across = count if count <= 2 else math.ceil(math.sqrt(count * (1.2 if is_roomy else 1.8)))
    rows = math.ceil(count / across)
    # Nodes side by side need room for the text of the path between them.
    pitch = style.cell_width + (40 if is_roomy and across > 1 else 0)
    places = [
        Spot(
            padding + style.cell_width / 2 + index % across * pitch,
            style.title + style.cell_height * (index // across + (0.36 if is_roomy else 0.5)),
        )
        for index in range(count)
    ]
    width = 2 * padding + pitch * (across - 1) + style.cell_width
    return max(width, _TITLE_WIDTH), style.title + padding + style.cell_height * rows, places


def _circle(count: int, style: _Style) -> tuple[float, float, list[Spot]]:
    radius_x = max(100.0, style.cell_width * count / math.tau * 1.15)
    radius_y = max(76.0, style.cell_height * count / math.tau * 1.35)
    width, height = 2 * (radius_x + style.padding) + style.cell_width, 2 * radius_y + style.cell_height
    middle_y = style.title + radius_y + style.cell_height * 0.36
    places = []
    for index in range(count):
        angle = math.tau * index / count - math.pi / 2
        places.append(Spot(width / 2 + radius_x * math.cos(angle), middle_y + radius_y * math.sin(angle)))
    return width, style.title + style.padding + height, places


def _in_ring(groups: Sequence[Group], gap: float) -> list[Group]:
    """Arrange the groups on an ellipse, as narrow as their sizes permit."""
    radius = 60.0
    while True:
        placed = []
        for index, group in enumerate(groups):
            angle = math.tau * index / len(groups) - math.pi / 2
            x, y = radius * 1.25 * math.cos(angle), radius * 0.85 * math.sin(angle)
            placed.append(replace(group, x=x - group.width / 2, y=y - group.height / 2))
        if not any(_overlap(one, other, gap) for one, other in combinations(placed, 2)):
            break
        radius *= 1.08
    left, top = min(group.x for group in placed), min(group.y for group in placed)
    return [replace(group, x=group.x - left + _MARGIN, y=group.y - top + _MARGIN) for group in placed]


def _overlap(one: Group, other: Group, gap: float) -> bool:
    return (
        one.x < other.x + other.width + gap
        and other.x < one.x + one.width + gap
        and one.y < other.y + other.height + gap * 0.6
        and other.y < one.y + one.height + gap * 0.6
    )


def _in_rows(groups: Sequence[Group], gap: float) -> list[Group]:
    """Arrange the groups in rows of about the same width."""
    area = sum((group.width + gap) * (group.height + gap) for group in groups)
    widest = max((group.width for group in groups), default=0.0)
    limit = max(widest, math.sqrt(area * 1.25)) if len(groups) > 2 else math.inf
    placed: list[Group] = []
    x, y, lowest = _MARGIN, _MARGIN, 0.0
    for group in groups:
        if x > _MARGIN and x + group.width > limit + _MARGIN:
            x, y = _MARGIN, y + lowest + gap
            lowest = 0.0
        placed.append(replace(group, x=x, y=y))
        x, lowest = x + group.width + gap, max(lowest, group.height)
    return placed


# ---- lines


def _labelled(lines: Sequence[Line], spots: Mapping[str, Spot], style: _Style) -> Iterable[Line]:
    """Give lines the place of a text where it covers neither a node nor another text."""
    if len(lines) > MAX_LABELS:
        wanted = {id(line) for line in lines if line.edge.severity > Severity.FINE}
        wanted = wanted if len(wanted) <= MAX_LABELS else set()
    else:
        wanted = set(map(id, lines))
    taken = [(spot, style.cell_width * 0.6, 40.0 if style is _ROOMY else 14.0) for spot in spots.values()]
    placed: dict[int, Spot] = {}
    for line in sorted(lines, key=lambda line: -line.edge.severity):
        if id(line) not in wanted:
            continue
        for part in (0.5, 0.42, 0.58, 0.34, 0.66, 0.27, 0.73):
            spot = _on_curve(line, part)
            if not any(_covers(spot, style, *other) for other in taken):
                taken.append((spot, style.label_width, style.label_height))
                placed[id(line)] = spot
                break
    return [replace(line, label=placed.get(id(line))) for line in lines]


def _covers(spot: Spot, style: _Style, other: Spot, width: float, height: float) -> bool:
    return (
        abs(spot.x - other.x) < (style.label_width + width) / 2
        and abs(spot.y - other.y) < (style.label_height + height) / 2
    )


def _between(start: Spot, end: Spot, part: float) -> Spot:
    return Spot(round(start.x + (end.x - start.x) * part, 1), round(start.y + (end.y - start.y) * part, 1))


def _bend(edge: Edge, spots: Mapping[str, Spot], *, is_dense: bool) -> Spot:
    """Return the control point of a path's curve: it bends away from nodes on its straight line."""
    start, end = spots[edge.a], spots[edge.b]
    middle, length = _between(start, end, 0.5), math.dist((start.x, start.y), (end.x, end.y))
    if is_dense or not length:
        return middle
    across = Spot(-(end.y - start.y) / length, (end.x - start.x) / length)
    nearest, side = _CLEARANCE, 0.0
    for node_id, spot in spots.items():
        if node_id in (edge.a, edge.b):
            continue
        x, y = spot.x - start.x, spot.y - start.y
        along = (x * (end.x - start.x) + y * (end.y - start.y)) / length
        beside = x * across.x + y * across.y
        if 0 < along < length and abs(beside) < nearest:
            nearest, side = abs(beside), -1.0 if beside > 0 else 1.0
    amount = side * (70 + length * 0.08)
    return Spot(round(middle.x + across.x * amount, 1), round(middle.y + across.y * amount, 1))


def _on_curve(line: Line, part: float) -> Spot:
    near, far = _between(line.start, line.bend, part), _between(line.bend, line.end, part)
    return _between(near, far, part)


def _bundles(view: MeshView, groups: Sequence[Group]) -> tuple[tuple[Bundle, ...], int]:
    """Return the connections between groups that are drawn, the most important ones last; and the number of others."""
    group_of = {node: index for index, group in enumerate(groups) for node in group.nodes}
    paths: defaultdict[tuple[int, int], Counter[Category]] = defaultdict(Counter)
    for node_id, peers in view.paths.items():
        one = group_of[node_id]
        # A mesh of 200 nodes has 40,000 ends of paths, so the counting is left to Counter.
        ends = zip(map(group_of.__getitem__, peers), peers.values(), strict=True)
        for (other, category), number in Counter(ends).items():
            if one < other:  # The other end has it once more.
                paths[one, other][category] += number
    counted = {pair: PathCounts.of_numbers(numbers) for pair, numbers in paths.items()}
    order = sorted(counted, key=lambda pair: (counted[pair].none + counted[pair].lossy, counted[pair].total, pair))
    drawn = order[-MAX_BUNDLES:]
    bundles: list[Bundle] = []
    taken: list[Spot] = []
    for pair in drawn:
        start, end = (groups[index].middle for index in pair)
        start, end = _edge_of(groups[pair[0]], end), _edge_of(groups[pair[1]], start)
        places = [_between(start, end, part) for part in (0.5, 0.38, 0.62, 0.28, 0.72)]
        free = (spot for spot in places if not any(_is_near(spot, other) for other in taken))
        label = next(free, places[0])
        taken.append(label)
        bundles.append(Bundle(*pair, start, end, counted[pair], label))
    return tuple(bundles), len(order) - len(drawn)


def _is_near(one: Spot, other: Spot) -> bool:
    return abs(one.x - other.x) < _BUNDLE_LABEL.x and abs(one.y - other.y) < _BUNDLE_LABEL.y


def _edge_of(group: Group, towards: Spot) -> Spot:
    """Return where the line from the middle of a group to a spot leaves the group."""
    middle = group.middle
    x, y = towards.x - middle.x, towards.y - middle.y
    part = min(
        group.width / 2 / abs(x) if x else math.inf,
        group.height / 2 / abs(y) if y else math.inf,
        1.0,
    )
    return Spot(round(middle.x + x * part, 1), round(middle.y + y * part, 1))
