"""Facts travel as JSON; those of other nodes may contain anything."""

from __future__ import annotations

import dataclasses
import json
import typing

from hypothesis import given
from hypothesis import strategies as st

from meshray.doctor.facts import NodeFacts, decode, encode
from meshray.model.path import PathKind

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def shaped(kind: type) -> st.SearchStrategy[object]:
    """Return JSON with the names of this type's fields and any values, nested deeper than any real facts."""
    hints = typing.get_type_hints(kind)
    fields: dict[str, st.SearchStrategy[object]] = {}
    for item in dataclasses.fields(kind):
        inner = [one for one in (hints[item.name], *typing.get_args(hints[item.name])) if dataclasses.is_dataclass(one)]
        fields[item.name] = JSON | shaped(typing.cast(type, inner[0])) if inner else JSON
        if inner and typing.get_origin(hints[item.name]) is tuple:
            fields[item.name] = JSON | st.lists(shaped(typing.cast(type, inner[0])), max_size=2)
    return st.fixed_dictionaries({}, optional=fields)


@given(JSON | shaped(NodeFacts))
def test_any_json_becomes_facts(value: object) -> None:
    facts = decode(NodeFacts, value)
    assert isinstance(facts, NodeFacts)
    # What was read is as good as any facts: it can be written and read again.
    assert decode(NodeFacts, json.loads(json.dumps(encode(facts)))).name == facts.name


def test_missing_and_additional_fields_are_accepted() -> None:
    assert decode(NodeFacts, {"name": "gpu-1", "host": None, "unheard": {"of": 1}}) == NodeFacts("gpu-1")
    assert decode(NodeFacts, {"name": 7}) == NodeFacts()


def test_a_kind_of_path_that_a_newer_node_has_is_not_known() -> None:
    answer = {"path": {"peers": {"one": {"kind": "hub", "sent": 3}, "two": {"kind": "sideways", "sent": 4}}}}
    path = decode(NodeFacts, answer).path
    assert path is not None
    assert [(seen.kind, seen.sent) for seen in path.peers.values()] == [(PathKind.HUB, 3), (None, 4)]
    assert json.dumps(encode(path.peers["one"])["kind"]) == '"hub"'
