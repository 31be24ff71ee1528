"""The messages of the agent's WebSocket: what is tolerated or refused, and whether docs/protocol.md has their keys."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from meshray.protocol.codec import WireError, encode
from meshray.protocol.connection import (
    MOST_EPOCHS,
    Change,
    FromAgent,
    FromCoordinator,
    Hello,
    Left,
    Recalled,
    Secrets,
    Ticket,
    WholeMap,
    read_agent,
    read_coordinator,
)
from meshray.protocol.orders import OrderResult
from tests.mesh.shapes import Shape, joined

PAGE = Path(__file__).resolve().parents[3] / "docs" / "protocol.md"
FORMS: dict[str, type[msgspec.Struct]] = {
    f"{side} {form.__struct_config__.tag}": form
    for side, union in (("agent", FromAgent), ("coordinator", FromCoordinator))
    for form in get_args(union)
} | {"coordinator order_result": OrderResult}


def examples() -> dict[str, Any]:
    sections = re.findall(
        r"^### ((?:agent|coordinator) [a-z_]+)\n.*?```json\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    return {name: json.loads(example) for name, example in sections}


def shape_of(form: type[msgspec.Struct]) -> Shape:
    (schema,), components = msgspec.json.schema_components([form])
    return Shape.of_schema(schema, components)


def differences(documented: Shape, real: Shape, path: str = "") -> Iterator[str]:
    """Yield the keys that only one of them has; keys that the page describes elsewhere are skipped."""
    if documented.is_opaque or real.is_opaque:
        return
    yield from (joined(path, key) for key in documented.fields.keys() ^ real.fields.keys())
    for key in documented.fields.keys() & real.fields.keys():
        yield from differences(documented.fields[key], real.fields[key], joined(path, key))
    for kind, one, other in (("*", documented.values, real.values), ("[]", documented.items, real.items)):
        if one is not None and other is not None:
            yield from differences(one, other, f"{path}.{kind}")


def test_every_message_is_documented() -> None:
    assert sorted(examples()) == sorted(FORMS)


@pytest.mark.parametrize("name", sorted(FORMS))
def test_the_page_has_the_fields_of_the_message(name: str) -> None:
    assert list(differences(Shape.of_example(examples()[name]), shape_of(FORMS[name]))) == []


def test_a_newer_peer_may_send_more_fields() -> None:
    assert read_agent('{"type": "something newer", "x": 1}') is None
    assert read_coordinator('{"type": "hello"}') is None
    assert read_agent('{"type": "left", "node": "n1", "why": {"x": []}}') == Left("n1")
    assert read_agent('{"type": "hello"}') == Hello()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"type": 7}',
        '{"type": "left"}',
        '{"type": "left", "node": null}',
        '{"type": "left", "node": "\\ud800"}',
        '{"type": "left", "node": "%s"}' % ("x" * 65),
        '{"type": "ray", "instance": 1}',
        '{"type": "hello", "secret_epoch": 0}',
        '{"type": "hello", "secret_epoch": true}',
        '{"type": "hello", "secret_epoch": 1%s}' % ("0" * 400),
        '{"type": "hello", "hubs": [%s"x"]}' % ('"x",' * 64),
        '{"type": "recalled", "node": {}}',
        '{"type": "punch", "nodes": "n1"}',
        "[" * 100_000,
    ],
)
def test_a_malformed_message_is_refused(text: str) -> None:
    with pytest.raises(WireError):
        read_agent(text)


def test_more_secrets_than_a_node_holds_are_refused() -> None:
    many = {str(number): "x" for number in range(1, MOST_EPOCHS + 2)}
    with pytest.raises(WireError):
        read_coordinator(encode(Secrets(1, many, many)))


def test_secrets_are_not_shown() -> None:
    assert "hunter2" not in repr(Secrets(1, {"1": "hunter2"}, {"1": "hunter2"})) + repr(Ticket("hunter2"))


def test_empty_fields_are_left_out() -> None:
    assert encode(Recalled()) == '{"type": "recalled"}'
    assert json.loads(encode(Hello())).keys() == {"type", "versions", "endpoints", "hubs", "faults", "reached"}


def test_the_map_and_its_changes_are_whole() -> None:
    for text in ('{"type": "map", "map": {"mesh": {}}}', '{"type": "change", "change": {"base": 1}}'):
        with pytest.raises(WireError):
            read_coordinator(text)
    assert {WholeMap, Change} <= set(FORMS.values())
