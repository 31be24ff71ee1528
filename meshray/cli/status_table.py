"""`meshray status` for people: one row a node that fits into 80 columns, and what is wrong below. Pure.

NODE       STATUS      IP         PATH        RTT  CPU  GPU  MEMORY    SINCE
vm (this)  ready head  10.99.0.1  -           -    1/4  0/0  3/16 GiB  2 h
laptop     no answer   10.99.0.2  was direct  -    2?   1?   -         24 s

A question mark: what a node that does not answer offered last.
`--wide` adds what WireGuard knows of each path, and the ports of Ray that were chosen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from meshray.cli.tables import Object, Paint, child, children, chosen_ports, columns, duration, gib, number, plain
from meshray.model.path import PathKind, Transport

#: Of a terminal's lines, and what a name keeps of it at least.
_WIDTH, _SHORTEST_NAME = 80, 10
#: What is shown of the use, and whether since when a node is as it is: from the most to what fits.
_FORMS = (
    (frozenset({"CPU", "GPU", "memory"}), True),
    (frozenset({"CPU", "GPU"}), True),
    (frozenset[str](), True),
    (frozenset[str](), False),
)
_PATH_HEAD = ("LOSS", "HANDSHAKE", "MTU", "RECEIVED", "SENT", "ENDPOINT", "RAY PORTS")
_COLOURS = {"ready": "green", "up": "green", "no answer": "red", "offline": "red", "no Ray": "red"}


def status_text(status: Object, *, now: float, wide: bool = False, clock: str = "", paint: Paint = plain) -> str:
    """The mesh, every node, what the cluster offers, and what is wrong.

    Args:
        now: unix seconds, for how long each node has been as it is.
    """
    reachable = child(status, "coordinator").get("reachable")
    link = "coordinator reachable" if reachable else paint("coordinator UNREACHABLE, using the cached map", "red")
    lines = [
        f"{clock}{'  ' if clock else ''}mesh {status.get('mesh')}, revision {status.get('revision')}, {link}",
        "",
        _table(status, now, wide, paint),
        "",
        _totals(child(status, "totals")),
    ]
    lines += _said_at_join(status)
    problems = list(_problem_lines(status, paint))
    if problems:
        lines += ["", *problems, "meshray doctor says more"]
    return "\n".join(lines)


def _table(status: Object, now: float, wide: bool, paint: Paint) -> str:
    nodes, me = children(status, "nodes"), status.get("self")
    head = ["NODE", "STATUS", "IP", "PATH", "RTT", "CPU", "GPU", "MEMORY"]
    for usage, has_since in _FORMS:
        rows = [[*head, *(["SINCE"] if has_since else []), *(_PATH_HEAD if wide else [])]]
        for node in nodes:
            since = [_since(node.get("since"), now)] if has_since else []
            rows.append(
                [*_row(node, usage), *since, *([*_path_cells(child(node, "path")), _ports(node)] if wide else [])]
            )
        widths = [max(map(len, column)) for column in zip(*(row[1:] for row in rows), strict=True)]
        room = 1000 if wide else _WIDTH - sum(widths) - 2 * len(widths)
        if room >= _SHORTEST_NAME:
            break
    for row, node in zip(rows[1:], nodes, strict=True):
        row[0] = _name(row[0], room, is_me=node.get("name") == me)
    colours = [_colour(node) for node in nodes]
    return columns(rows, lambda row, column: colours[row - 1] if row and column == 1 else "", paint)


def _row(node: Object, usage: Collection[str]) -> list[str]:
    path, ray = child(node, "path"), child(node, "ray")
    offered, used, word = child(ray, "resources"), child(ray, "used"), status_word(node)[0]
    memory = f"{gib(used.get('memory'), 0).removesuffix(' GiB')}/" if "memory" in usage and "memory" in used else ""
    return [
        str(node.get("name")),
        word + (" head" if node.get("role") == "head" else ""),
        str(node.get("ip")),
        ("was " if word == "no answer" else "") + _path(path),
        _milliseconds(path.get("rtt_ms")) if word != "no answer" else "-",
        *(_amount(ray, name, with_use=name in usage) for name in ("CPU", "GPU")),
        memory + _memory(offered.get("memory")),
    ]


def _amount(ray: Object, name: str, *, with_use: bool) -> str:
    used, last_known = child(ray, "used"), child(ray, "last_known")
    if name in last_known:
        return number(last_known[name], "{:g}?")
    prefix = f"{number(used.get(name), '{:g}')}/" if with_use and name in used else ""
    return prefix + number(child(ray, "resources").get(name), "{:g}")


def _milliseconds(value: object) -> str:
    if not isinstance(value, (int, float)):
        return "-"
    return f"{value / 1000:.1f} s" if value >= 1000 else f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


def _memory(value: object) -> str:
    return f"{value / 2**40:.1f} TiB" if isinstance(value, (int, float)) and value >= 2**40 else gib(value, decimals=0)


def _colour(node: Object) -> str:
    colour = status_word(node)[1]
    return "yellow" if colour == "green" and child(node, "path").get("transport") == Transport.WSS else colour


def _since(since: object, now: float) -> str:
    return duration(max(0.0, now - since)) if isinstance(since, (int, float)) else "-"


def _path_cells(path: Object) -> list[str]:
    return [
        number(path.get("loss"), "{:.0%}"),
        number(path.get("handshake_age_s"), "{:.0f} s ago"),
        number(path.get("mtu"), "{:d}"),
        _bytes(path.get("rx_bytes")),
        _bytes(path.get("tx_bytes")),
        str(path.get("endpoint") or "-"),
    ]


def _ports(node: Object) -> str:
    """The ports of a node's Ray that are not the default."""
    ports = child(child(node, "ray"), "ports")
    return chosen_ports(ports) or ("default" if ports else "-")


def status_word(node: Object) -> tuple[str, str]:
    """Return how a node is, in one or two words, and the colour for it."""
    ray = child(node, "ray")
    alive = ray.get("alive")
    if node.get("down"):
        word = "down"
    elif node.get("silent"):
        word = "no answer"
    elif not node.get("online"):
        word = "offline"
    elif node.get("drained"):
        word = "draining" if alive is True else "drained"
    else:
        word = "ready" if alive is True else "no Ray" if alive is False else "up"
    return word, _COLOURS.get(word, "yellow")


def _name(name: str, room: int, *, is_me: bool = False) -> str:
    mark = " (this)" if is_me else ""
    room = max(_SHORTEST_NAME, room) - len(mark)
    return (name if len(name) <= room else f"{name[: room - 1]}…") + mark


def _path(path: Object) -> str:
    kind, transport = str(path.get("kind") or PathKind.NONE), path.get("transport")
    if kind in (PathKind.SELF, PathKind.NONE):
        return "-"
    return kind if transport in (None, Transport.UDP) else f"{kind}/{transport}"


def _bytes(value: object) -> str:
    if not isinstance(value, (int, float)):
        return "-"
    amount = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def _totals(totals: Object) -> str:
    return (
        f"cluster: {number(totals.get('CPU'), '{:g}')} CPU, {number(totals.get('GPU'), '{:g}')} GPU, "
        f"{gib(totals.get('memory'))} memory, {gib(totals.get('object_store_memory'))} object store"
    )


def _said_at_join(status: Object) -> Iterator[str]:
    notices = status.get("notices")
    if isinstance(notices, (list, tuple)) and notices:
        yield ""
        yield from (f"notice: {text}" for text in notices)
    for key, words in (
        ("open", "members reach on this machine besides Ray (--open)"),
        ("environment", "variables that Ray has besides the session's (--env)"),
    ):
        items = status.get(key)
        if isinstance(items, (list, tuple)) and items:
            yield f"{words}: {', '.join(map(str, items))}"
    if status.get("unguarded"):
        yield "Ray runs here even where its ports cannot be closed to other networks (--unguarded)"


def _problem_lines(status: Object, paint: Paint) -> Iterator[str]:
    """Each problem, and below it the command that fixes it. An older agent sends sentences only."""
    health = children(status, "health")
    mark = paint("problem:", "red")
    if not health:
        problems = status.get("problems")
        yield from (f"{mark} {text}" for text in (problems if isinstance(problems, (list, tuple)) else ()))
    for problem in health:
        yield f"{mark} {problem.get('text')}"
        if problem.get("fix"):
            yield f"    fix: {problem['fix']}"


def nodes_text(nodes: list[Object], *, wide: bool = False) -> str:
    """One line a node, as the coordinator has it."""
    more = ("EPHEMERAL", "DRAINED", "LABELS") if wide else ()
    rows = [["NODE", "IP", "ROLES", "ONLINE", "RAY", "PYTHON", *more]]
    for node in nodes:
        versions, labels, roles = child(node, "versions"), child(node, "labels"), node.get("roles")
        row = [
            str(node.get("name")) if wide else _name(str(node.get("name")), 24),
            str(node.get("ip")),
            ",".join(map(str, roles)) if isinstance(roles, (list, tuple)) else str(node.get("role", "")),
            _online(node),
            str(versions.get("ray") or "-"),
            str(versions.get("python") or "-"),
        ]
        if wide:
            row += [
                "yes" if node.get("ephemeral") else "no",
                "yes" if node.get("drained") else "no",
                ",".join(f"{key}={value}" for key, value in labels.items()) or "-",
            ]
        rows.append(row)
    return columns(rows)


def _online(node: Object) -> str:
    if node.get("silent"):
        return "silent"
    word = "yes" if node.get("online") else "down" if node.get("down") else "no"
    return f"{word}, drained" if node.get("drained") else word
