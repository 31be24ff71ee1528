"""The topologies of tests/containerlab satisfy the schema that containerlab publishes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.containerlab import schema
from tests.lab.host import REPOSITORY

FILES = sorted((REPOSITORY / "tests/containerlab").glob("*.clab.yml"))


@pytest.fixture(scope="module")
def published() -> Any:
    return schema.load()


def errors(published: Any, content: Any) -> list[str]:
    """Return where the content differs from the schema, and how."""
    return [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message}"
        for error in jsonschema.Draft7Validator(published).iter_errors(content)
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_topology_satisfies_the_schema(published: Any, file: Path) -> None:
    assert errors(published, yaml.safe_load(file.read_text())) == []


def test_the_schema_finds_a_mistyped_key_and_a_wrong_value(published: Any) -> None:
    content = yaml.safe_load(FILES[0].read_text())
    content["topology"]["nodes"]["wan"]["execs"] = ["true"]
    content["topology"]["defaults"]["restart-policy"] = "never"
    content["topology"]["links"][0]["mtu"] = "large"
    where = {line.partition(":")[0] for line in errors(published, content)}
    assert where == {"topology/nodes/wan", "topology/defaults/restart-policy", "topology/links/0"}
