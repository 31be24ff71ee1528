"""The keys that a mesh really emits are exactly those in the documents.

real coordinator, real agents on fake devices ──► recorder ──► docs/reference.md, docs/openapi.json, docs/protocol.md
"""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from .emitted import Recorder
from .emitted_scenario import record
from .shapes import Drift, Shape

DOCS = Path(__file__).resolve().parents[2] / "docs"
#: Objects in answers of the command line whose keys are data: names of resources, ports, variables, labels.
DATA = {
    *("nodes[].labels", "nodes[].ray.resources", "nodes[].ray.used", "nodes[].ray.ports"),
    *("env", "ports", "records[].details"),
}
#: Described in another document: `Attestation` in openapi.json, maps by name.
OPAQUE = {"nodes[].attestation", "nodes[].faults", "nodes[].ray_ports", "local"}

#: Documented, but not emitted here → why. An entry that is emitted after all fails, too.
NOT_EMITTED: dict[str, dict[str, str]] = {
    "cli init": {"local": "only without root, in namespaces of its own: tests/lab"},
    "cli join": {
        "local": "only without root, in namespaces of its own: tests/lab",
        "env": "needs uv and a Ray: tests/unit/cli/test_matching.py",
    },
    "cli node upgrade": {
        f"nodes[].error.{key}": "a version that does not work: tests/lab/test_upgrades.py"
        for key in ("code", "message", "hint")
    },
    "POST /v1/enroll": {
        f"map.nodes.*.{key}": "of other workers, which the short map of `meshray join` omits"
        for key in ("ray_ports", "no_remote")
    },
    "POST /v1/ask": {
        f"connections.*.{key}": "an agent from which nothing comes: tests/mesh/test_query_broker.py"
        for key in ("received_ago_s", "acknowledged")
    },
    "cli up": {"local": "only without root, in namespaces of its own: tests/lab"},
    "control progress": {"summary.local": "only without root, in namespaces of its own: tests/lab"},
    "coordinator packed_map": {"change.removals": "a removal since the map was compressed: as in coordinator change"},
}
#: Keys that are emitted only if something changes at the right moment.
SOMETIMES_EMITTED: dict[str, set[str]] = {"coordinator packed_map": {"change.fields"}}
#: Commands whose answer this mesh cannot give → why.
NOT_TYPED = {
    "node add": "the answer of join on another machine, which is reached by ssh: tests/lab",
    "node add --from": "the same on many machines: tests/mesh/test_enrolment_route.py, tests/lab",
    "forward": "runs until it is interrupted: tests/mesh/test_forward.py",
    "restore": "makes another machine the head: tests/lab/test_backup.py",
    "node drain": "needs a Ray that runs: tests/lab",
}


def documented() -> dict[str, Shape]:
    """Return the keys of everything that is documented, by its emitter."""
    return {**of_reference(), **of_openapi(), **of_protocol()}


def of_reference() -> dict[str, Shape]:
    page, found = (DOCS / "reference.md").read_text(), {}
    answers = (
        r"^`meshray ([a-z -]+) --json` answers:\n\n```json\n(.*?)^```\n"
        r"(?:\nOnly some answers have:\n\n((?:- [^\n]*\n)+))?"
    )
    for name, example, sometimes in re.findall(answers, page, re.MULTILINE | re.DOTALL):
        shape = Shape.of_example(json.loads(example), DATA)
        for path in re.findall(r"^- `([^`]+)`", sometimes or "", re.MULTILINE):
            shape.add(path, is_opaque=path in OPAQUE)
        found[f"cli {name}"] = shape
    error = re.search(r"^## JSON\n.*?```json\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert error is not None
    return {**found, "cli error": Shape.of_example(json.loads(error[1]))}


def of_openapi() -> dict[str, Shape]:
    page = json.loads((DOCS / "openapi.json").read_text())
    components = page["components"]["schemas"]
    found = {"error": Shape.of_schema(components["Error"], components)}
    for path, operations in page["paths"].items():
        for method, operation in operations.items():
            if "200" in operation["responses"]:
                schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
                found[f"{method.upper()} {path}"] = Shape.of_schema(schema, components)
    return found


def of_protocol() -> dict[str, Shape]:
    sections = re.findall(
        r"^### ((?:agent|coordinator|control) [a-z_ ]+)\n.*?```json\n(.*?)^```",
        (DOCS / "protocol.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    return {name: Shape.of_example(json.loads(example)) for name, example in sections}


DOCUMENTED = documented()


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    return asyncio.run(record(tmp_path_factory.mktemp("contract")))


def test_emitted_and_documented_fields_are_equal(recorder: Recorder) -> None:
    typed_elsewhere = {f"cli {name}" for name in NOT_TYPED}
    assert sorted(recorder.values) == sorted(DOCUMENTED.keys() - typed_elsewhere)


@pytest.mark.parametrize("emitter", sorted(DOCUMENTED.keys() - {f"cli {name}" for name in NOT_TYPED}))
def test_the_keys_are_the_documented_ones(recorder: Recorder, emitter: str) -> None:
    drift = Drift(DOCUMENTED[emitter])
    for value in recorder.values[emitter]:
        drift.take(value)
    assert drift.undocumented == set(), "emitted, and in no document"
    missing = drift.missing - SOMETIMES_EMITTED.get(emitter, set())
    assert missing == set(NOT_EMITTED.get(emitter, {})), "documented, and never emitted"


def test_drift_is_detected_in_both_directions() -> None:
    drift = Drift(Shape.of_example({"a": {"b": 1}, "list": [{"x": 1}, {"y": {"<name>": {"z": 1}}}]}))
    drift.take({"a": {"c": 1}, "list": [{"x": 1, "y": {"one": {"z": 1}, "two": {"w": 1}}}], "new": []})
    assert drift.undocumented == {"a.c", "new", "list[].y.*.w"}
    assert drift.missing == {"a.b"}
