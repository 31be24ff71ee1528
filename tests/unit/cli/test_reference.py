"""The committed reference matches the commands."""

import json
from pathlib import Path

import msgspec
import pytest

from meshray.cli.reference import reference
from meshray.protocol.answers import EXAMPLES, Join
from meshray.protocol.codec import convert, to_json
from meshray.protocol.describe import described

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference.md"


def test_the_reference_is_current() -> None:
    assert PAGE.read_text() == reference(), "run: python -m meshray.cli.reference > docs/reference.md"


@pytest.mark.parametrize(("command", "example"), EXAMPLES.items())
def test_an_example_has_the_fields_of_its_struct_and_no_others(command: str, example: msgspec.Struct) -> None:
    answer = json.loads(json.dumps(to_json(example)))
    assert json.loads(json.dumps(to_json(convert(answer, type(example))))) == answer


@pytest.mark.parametrize("form", dict.fromkeys(map(type, EXAMPLES.values())))
def test_every_field_has_a_meaning(form: type[msgspec.Struct]) -> None:
    assert [field.path for field in described(form) if not field.meaning] == []


def test_a_field_that_may_be_absent_is_described_by_what_it_holds() -> None:
    optional = [field.path for field in described(Join) if field.is_optional]
    assert optional == ["local", "env_file", "env.path", "env.built", "already"]
