"""`meshray status` for users: one row per node that fits into 80 columns, and the problems below. Pure.

NODE       STATUS      IP         PATH        RTT  CPU  GPU  MEMORY    SINCE
vm (this)  ready head  10.99.0.1  -           -    1/4  0/0  3/16 GiB  2 h
laptop     no answer   10.99.0.2  was direct  -    2?   1?   -         24 s

A question mark marks the last known resources of a node that does not answer. `--wide` adds WireGuard's data on each
path, and the chosen ports of Ray.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from meshray.cli.tables import Paint, chosen_ports, columns, duration, gib, number, plain
from meshray.model.path import PathKind, Transport

if TYPE_CHECKING:
    from meshray.protocol.node_answers import NodeEntry
    from meshray.protocol.status import NodeStatus, PathStatus, RayStatus, Status, Totals

#: The width of a terminal's lines, and the minimum width of a name.
_WIDTH, _SHORTEST_NAME = 80, 10
#: The levels of detail of resource use and of the SINCE column, from the most to what fits.
_FORMS = (
    (frozenset({"CPU", "GPU", "memory"}), True),
    (frozenset({"CPU", "GPU"}), True),
    (frozenset[str](), True),
    (frozenset[str](), False),
)
_PATH_HEAD = ("LOSS", "HANDSHAKE", "MTU", "RECEIVED", "SENT", "ENDPOINT", "RAY PORTS")
_COLOURS = {"ready": "green", "up": "green", "no answer": "red", "offline": "red", "no Ray": "red"}


def status_text(status: Status, *, now: float, wide: bool = False, clock: str = "", paint: Paint = plain) -> str:
    """Return the mesh, every node, the resources of the cluster, and the problems.

    Args:
        now: unix seconds, for the duration of each node's state.
    """
    reachable = status.coordinator.reachable
    unreachable = paint("coordinator UNREACHABLE, using the cached map", "red")
    coordinator = "coordinator reachable" if reachable else unreachable
    lines = [
        f"{clock}{'  ' if clock else ''}mesh {status.mesh}, revision {status.revision}, {coordinator}",
        "",
        _table(status, now, wide, paint),
        "",
        _totals(status.totals),
    ]
    lines += _chosen_at_join(status)
    problems = list(_problem_lines(status, paint))
    if problems:
        lines += ["", *problems, "meshray doctor finds the cause"]
    return "\n".join(lines)


def _table(status: Status, now: float, wide: bool, paint: Paint) -> str:
    head = ["NODE", "STATUS", "IP", "PATH", "RTT", "CPU", "GPU", "MEMORY"]
    for usage, has_since in _FORMS:
        rows = [[*head, *(["SINCE"] if has_since else []), *(_PATH_HEAD if wide else [])]]
        for node in status.nodes:
            since = [_since(node.since, now)] if has_since else []
            rows.append([*_row(node, usage), *since, *([*_path_cells(node.path), _ports(node)] if wide else [])])
        widths = [max(map(len, column)) for column in zip(*(row[1:] for row in rows), strict=True)]
        room = 1000 if wide else _WIDTH - sum(widths) - 2 * len(widths)
        if room >= _SHORTEST_NAME:
            break
    for row, node in zip(rows[1:], status.nodes, strict=True):
        row[0] = _name(row[0], room, is_me=node.name == status.node)
    colours = [_colour(node) for node in status.nodes]
    return columns(rows, lambda row, column: colours[row - 1] if row and column == 1 else "", paint)


def _row(node: NodeStatus, usage: Collection[str]) -> list[str]:
    ray, used, word = node.ray, node.ray.used or {}, status_word(node)[0]
    memory = f"{gib(used['memory'], 0).removesuffix(' GiB')}/" if "memory" in usage and "memory" in used else ""
    return [
        node.name,
        word + (" head" if node.role == "head" else ""),
        node.ip,
        ("was " if word == "no answer" else "") + _path(node.path),
        _milliseconds(node.path.rtt_ms) if word != "no answer" else "-",
        *(_amount(ray, name, with_use=name in usage) for name in ("CPU", "GPU")),
        memory + _memory(ray.resources.get("memory")),
    ]


def _amount(ray: RayStatus, name: str, *, with_use: bool) -> str:
    used, last_known = ray.used or {}, ray.last_known or {}
    if name in last_known:
        return number(last_known[name], "{:g}?")
    prefix = f"{number(used[name], '{:g}')}/" if with_use and name in used else ""
    return prefix + number(ray.resources.get(name), "{:g}")


def _milliseconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / 1000:.1f} s" if value >= 1000 else f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


def _memory(value: float | None) -> str:
    return f"{value / 2**40:.1f} TiB" if value is not None and value >= 2**40 else gib(value, decimals=0)


def _colour(node: NodeStatus) -> str:
    colour = status_word(node)[1]
    return "yellow" if colour == "green" and node.path.transport == Transport.WSS else colour


def _since(since: float | None, now: float) -> str:
    return duration(max(0.0, now - since)) if since is not None else "-"


def _path_cells(path: PathStatus) -> list[str]:
    return [
        number(path.loss, "{:.0%}"),
        number(path.handshake_age_s, "{:.0f} s ago"),
        number(path.mtu, "{:d}"),
        _bytes(path.rx_bytes),
        _bytes(path.tx_bytes),
        path.endpoint or "-",
    ]


def _ports(node: NodeStatus) -> str:
    """Return the ports of a node's Ray that differ from the defaults."""
    return chosen_ports(node.ray.ports) or ("default" if node.ray.ports else "-")


def status_word(node: NodeStatus) -> tuple[str, str]:
    """Return a node's state in one or two words, and its colour."""
    alive = node.ray.alive
    if node.down:
        word = "down"
    elif node.silent:
        word = "no answer"
    elif not node.online:
        word = "offline"
    elif node.drained:
        word = "draining" if alive is True else "drained"
    else:
        word = "ready" if alive is True else "no Ray" if alive is False else "up"
    return word, _COLOURS.get(word, "yellow")


def _name(name: str, room: int, *, is_me: bool = False) -> str:
    mark = " (this)" if is_me else ""
    room = max(_SHORTEST_NAME, room) - len(mark)
    return (name if len(name) <= room else f"{name[: room - 1]}…") + mark


def _path(path: PathStatus) -> str:
    if path.kind in (PathKind.SELF, PathKind.NONE):
        return "-"
    return str(path.kind) if path.transport in (None, Transport.UDP) else f"{path.kind}/{path.transport}"


def _bytes(value: int) -> str:
    amount = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def _totals(totals: Totals) -> str:
    return (
        f"cluster: {number(totals.cpu, '{:g}')} CPU, {number(totals.gpu, '{:g}')} GPU, "
        f"{gib(totals.memory)} memory, {gib(totals.object_store_memory)} object store"
    )


def _chosen_at_join(status: Status) -> Iterator[str]:
    if status.notices:
        yield ""
        yield from (f"notice: {text}" for text in status.notices)
    for items, words in (
        (status.open, "members reach on this machine besides Ray (--open)"),
        (status.exposed, "ports of Ray that this machine's other networks reach (--expose)"),
        (status.environment, "variables that Ray has besides the session's (--env)"),
    ):
        if items:
            yield f"{words}: {', '.join(map(str, items))}"
    if status.unguarded:
        yield "Ray runs here even where its ports cannot be closed to other networks (--unguarded)"
    if status.no_remote:
        yield "this node refuses remote orders except drain (--no-remote)"
    if refusing := [node.name for node in status.nodes if node.no_remote and node.name != status.node]:
        yield f"nodes that refuse remote orders except drain (--no-remote): {', '.join(refusing)}"


def _problem_lines(status: Status, paint: Paint) -> Iterator[str]:
    """Yield each problem, and below it the command that fixes it. An older agent sends sentences only."""
    mark = paint("problem:", "red")
    if not status.health:
        yield from (f"{mark} {text}" for text in status.problems)
    for problem in status.health:
        yield f"{mark} {problem.text}"
        if problem.fix:
            yield f"    fix: {problem.fix}"


def nodes_text(nodes: Iterable[NodeEntry], *, wide: bool = False) -> str:
    """Return one line per node, from the coordinator's list."""
    more = ("EPHEMERAL", "DRAINED", "LABELS") if wide else ()
    rows = [["NODE", "IP", "ROLES", "ONLINE", "RAY", "PYTHON", *more]]
    for node in nodes:
        row = [
            node.name if wide else _name(node.name, 24),
            node.ip,
            ",".join(node.roles),
            _online(node),
            node.versions.ray or "-",
            node.versions.python or "-",
        ]
        if wide:
            row += [
                "yes" if node.ephemeral else "no",
                "yes" if node.drained else "no",
                ",".join(f"{key}={value}" for key, value in node.labels.items()) or "-",
            ]
        rows.append(row)
    return columns(rows)


def _online(node: NodeEntry) -> str:
    if node.silence:
        return "silent"
    word = "yes" if node.online else "down" if node.down else "no"
    return f"{word}, drained" if node.drained else word
