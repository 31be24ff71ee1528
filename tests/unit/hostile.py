"""Input of an attacker: above all near-valid JSON."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

#: Texts that have broken parsers: empty, at the limit of a form, from other scripts, half surrogates.
_TEXTS = st.sampled_from(
    [
        "",
        " ",
        "-1",
        "0",
        "\x00",
        "\ud800",
        "٣",
        "255.255.255.255",
        "0.0.0.0",
        "8.8.8.8",
        "10.99.0.1",
        "::1",
        "fe80::1%eth0",
        "host:0",
        "[::1]:65536",
        "a:٣",
        "../../etc/passwd",
        "a" * 300,
        "\n",
        "é" * 65,
        "null",
        "head",
        "=" * 44,
        "A" * 43 + "=",
    ]
)
_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**31, 2**53, 2**63, 2**64, -1, 10**400])
    | st.floats()
    | _TEXTS
    | st.text(st.characters(), max_size=20)
)
#: Any JSON value, and a little more.
ANY_JSON = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=4), max_leaves=8
)


def mutated(valid: object) -> st.SearchStrategy[Any]:
    """Return this JSON value with one to three places changed, removed, added, or replaced by another place of it."""

    @st.composite
    def draw_one(draw: st.DrawFn) -> Any:
        value = copy.deepcopy(valid)
        for _ in range(draw(st.integers(1, 3))):
            paths = list(_paths(value))
            if not paths:
                return draw(ANY_JSON)
            holder, key = draw(st.sampled_from(paths))
            action = draw(st.sampled_from(["change", "change", "copy", "drop", "add"]))
            if action == "drop":
                del holder[key]
                continue
            other, name = draw(st.sampled_from(paths))
            new = copy.deepcopy(other[name]) if action == "copy" else draw(_LEAVES | ANY_JSON)
            if action != "add":
                holder[key] = new
            elif isinstance(holder, list):
                holder.append(new)
            else:
                holder[draw(_TEXTS)] = new
        return value

    return draw_one()


def _paths(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place in the value: its container, and its key there."""
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _paths(value[key])
