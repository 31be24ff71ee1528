"""The reports of nodes to the doctor are read as far as possible, whichever node sent them."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from meshray.doctor.facts import NodeFacts, decode, encode
from tests.unit.hostile import ANY_JSON, mutated


@dataclass(frozen=True)
class Inner:
    name: str = ""
    share: float = 0.0


@dataclass(frozen=True)
class Example:
    """Every kind of field that facts may have."""

    text: str = ""
    number: int = 0
    share: float = 0.0
    maybe: float | None = None
    flag: bool = False
    texts: tuple[str, ...] = ()
    inner: Inner | None = None
    inners: tuple[Inner, ...] = ()
    by_name: Mapping[str, Inner] = field(default_factory=dict)
    nested: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


VALID = encode(
    Example("a", 1, 0.5, 2.0, True, ("b",), Inner("c", 1.0), (Inner("d"), Inner("e")), {"f": Inner("g")}, {"h": (1.0,)})
)


@given(mutated(VALID) | ANY_JSON)
@example({"share": 10**400, "inner": {"share": 10**400}, "nested": {"h": [10**400]}})
@example({"inners": [{"share": "x"}, None], "by_name": {"f": []}})
def test_facts_from_any_source_have_the_right_types(value: Any) -> None:
    facts = decode(Example, value)
    assert_kinds(Example, facts)
    assert decode(Example, encode(facts)) == facts or "nan" in repr(facts)


@given(st.dictionaries(st.sampled_from([item.name for item in dataclasses.fields(NodeFacts)]), ANY_JSON))
def test_any_answer_of_a_node_is_survived(value: dict[str, Any]) -> None:
    assert_kinds(NodeFacts, decode(NodeFacts, value))


def assert_kinds(kind: Any, value: Any) -> None:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is not None:
            assert_kinds(next(one for one in arguments if one is not type(None)), value)
    elif origin is tuple:
        assert isinstance(value, tuple)
        for item in value:
            assert_kinds(arguments[0], item)
    elif origin is not None:
        assert isinstance(value, dict)
        for item in value.values():
            assert_kinds(arguments[1], item)
    elif dataclasses.is_dataclass(kind):
        assert type(value) is kind
        for name, hint in typing.get_type_hints(kind).items():
            assert_kinds(hint, getattr(value, name))
    else:
        assert type(value) is kind
