"""Answers as aligned text. Pure; plain characters, so that it reads the same in a log, a mail and a terminal.

>>> print(columns([("NODE", "IP"), ("gpu-1", "10.99.0.2")]))
NODE   IP
gpu-1  10.99.0.2
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

Object = Mapping[str, object]


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows with their columns aligned, two blanks between them."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def status_text(status: Object) -> str:
    """The mesh, every node, what the cluster offers, and what is wrong."""
    coordinator = child(status, "coordinator")
    link = "coordinator reachable" if coordinator.get("reachable") else "coordinator UNREACHABLE, using the cached map"
    lines = [f"mesh {status.get('mesh')}, revision {status.get('revision')}, {link}", ""]
    me = status.get("self")
    rows: list[tuple[str, ...]] = [
        ("NODE", "IP", "ROLE", "ONLINE", "PATH", "RTT", "LOSS", "HANDSHAKE", "RAY", "CPU", "GPU")
    ]
    rows += [_node_row(node, me) for node in children(status, "nodes")]
    lines += [columns(rows), "", _totals_text(child(status, "totals"))]
    problems = status.get("problems")
    if isinstance(problems, (list, tuple)) and problems:
        lines += ["", *(f"problem: {problem}" for problem in problems), "meshray doctor says more"]
    return "\n".join(lines)


def _node_row(node: Object, me: object) -> tuple[str, ...]:
    path, ray = child(node, "path"), child(node, "ray")
    resources = child(ray, "resources")
    return (
        f"{node.get('name')}{' (this)' if node.get('name') == me else ''}",
        str(node.get("ip")),
        str(node.get("role")),
        _online_word(node),
        _path_kind(path),
        number(path.get("rtt_ms"), "{:.1f} ms"),
        number(path.get("loss"), "{:.0%}"),
        number(path.get("handshake_age_s"), "{:.0f} s ago"),
        _ray_word(ray.get("alive"), node.get("drained")),
        number(resources.get("CPU"), "{:g}"),
        number(resources.get("GPU"), "{:g}"),
    )


def _online_word(node: Object) -> str:
    return "yes" if node.get("online") else "down" if node.get("down") else "no"


def _ray_word(alive: object, drained: object) -> str:
    if drained:
        return "draining" if alive is True else "drained"
    return "ALIVE" if alive is True else "no" if alive is False else "-"


def _path_kind(path: Object) -> str:
    kind, transport = path.get("kind"), path.get("transport")
    return f"{kind}/{transport}" if transport else str(kind or "none")


def _totals_text(totals: Object) -> str:
    return (
        f"cluster: {number(totals.get('CPU'), '{:g}')} CPU, {number(totals.get('GPU'), '{:g}')} GPU, "
        f"{gib(totals.get('memory'))} memory, {gib(totals.get('object_store_memory'))} object store"
    )


def way_text(way: Mapping[str, object]) -> str:
    """A way that packets could take, and do not."""
    to, rtt, reason = way.get("to"), way.get("rtt_ms"), way.get("reason")
    line = f"not in use: {way.get('kind')}"
    if to:
        line += f" by {to}" + (
            f", {rtt:.1f} ms to there" if isinstance(rtt, (int, float)) else ", which does not answer"
        )
    return f"{line}: {reason}" if reason else line


def path_text(path: Object) -> str:
    """One path in a line."""
    endpoint = f" to {path.get('endpoint')}" if path.get("endpoint") else ""
    details = [
        f"{label} {number(path.get(key), form)}"
        for label, key, form in (("mtu", "mtu", "{:d}"), ("handshake", "handshake_age_s", "{:.0f} s ago"))
        if path.get(key) is not None
    ]
    return _path_kind(path) + endpoint + "".join(f", {detail}" for detail in details)


def tokens_text(tokens: Iterable[Object], now: float) -> str:
    """One line a token; never a secret."""
    rows = [("TOKEN", "USED", "EXPIRES", "EPHEMERAL", "STATE")]
    for token in tokens:
        uses, used = token.get("uses"), token.get("used")
        expires = token.get("expires")
        rows.append(
            (
                str(token.get("id")),
                f"{used} of {uses or 'any number'}",
                "never" if not isinstance(expires, (int, float)) else age(expires - now),
                "yes" if token.get("ephemeral") else "no",
                _token_state(token, now),
            )
        )
    return columns(rows)


def _token_state(token: Object, now: float) -> str:
    uses, used, expires = token.get("uses"), token.get("used"), token.get("expires")
    if token.get("revoked"):
        return "revoked"
    if isinstance(expires, (int, float)) and expires <= now:
        return "expired"
    if isinstance(uses, int) and isinstance(used, int) and 0 < uses <= used:
        return "used up"
    return "valid"


def nodes_text(nodes: Iterable[Object]) -> str:
    """One line a node, as the coordinator has it."""
    rows = [("NODE", "IP", "ROLES", "ONLINE", "EPHEMERAL", "DRAINED", "RAY", "PYTHON", "LABELS")]
    for node in nodes:
        versions, labels, roles = child(node, "versions"), child(node, "labels"), node.get("roles")
        rows.append(
            (
                str(node.get("name")),
                str(node.get("ip")),
                ",".join(map(str, roles)) if isinstance(roles, (list, tuple)) else str(node.get("role", "")),
                _online_word(node),
                "yes" if node.get("ephemeral") else "no",
                "yes" if node.get("drained") else "no",
                str(versions.get("ray") or "-"),
                str(versions.get("python") or "-"),
                ",".join(f"{key}={value}" for key, value in labels.items()) or "-",
            )
        )
    return columns(rows)


def age(seconds: float) -> str:
    """A time from now in one unit: ``in 23 h``, ``5 min ago``."""
    amount = abs(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if amount >= 2 * size:
            value = f"{amount / size:.0f} {unit}"
            break
    else:
        value = f"{amount:.0f} s"
    return f"in {value}" if seconds >= 0 else f"{value} ago"


def number(value: object, form: str) -> str:
    """A number in this form; ``-`` where it was not measured."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return form.format(value)
    return "-"


def gib(value: object) -> str:
    """Bytes as GiB."""
    return f"{value / 2**30:.1f} GiB" if isinstance(value, (int, float)) else "-"


def child(value: Object, key: str) -> Object:
    """The object under this key; an empty one where there is none."""
    item = value.get(key)
    return item if isinstance(item, Mapping) else {}


def children(value: Object, key: str) -> list[Object]:
    """The objects of the list under this key."""
    items = value.get(key)
    return [item for item in items if isinstance(item, Mapping)] if isinstance(items, (list, tuple)) else []
