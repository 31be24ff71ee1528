"""The keys in a document, and the differences between them and what is emitted.

>>> shape = Shape.of_example({"nodes": [{"name": "head", "labels": {"zone": "lab"}}]}, data={"nodes[].labels"})
>>> drift = Drift(shape)
>>> drift.take({"nodes": [{"ip": "10.99.0.1", "labels": {"disk": "ssd"}}]})
>>> drift.undocumented, drift.missing
({'nodes[].ip'}, {'nodes[].name'})
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Shape:
    """The keys of a JSON value.

    Attributes:
        fields: the fields of an object, by key.
        values: the values of an object whose keys are data, such as names of nodes.
        items: the items of a list.
        is_opaque: an object that is documented elsewhere.
    """

    fields: dict[str, Shape] = field(default_factory=dict)
    values: Shape | None = None
    items: Shape | None = None
    is_opaque: bool = False

    @classmethod
    def of_example(cls, value: object, data: Collection[str] = (), path: str = "") -> Shape:
        """Return the keys of an example. A key in angle brackets stands for any; "…" as value, for any object.

        Args:
            data: the paths of further objects whose keys are data.
        """
        shape = cls(is_opaque=value == {"…": "…"})
        if isinstance(value, list):
            for item in value:
                found = cls.of_example(item, data, f"{path}[]")
                shape.items = found if shape.items is None else shape.items.merged(found)
        elif isinstance(value, Mapping) and not shape.is_opaque:
            if path in data or any(key.startswith("<") for key in value):
                shape.values = cls()
                for item in value.values():
                    shape.values = shape.values.merged(cls.of_example(item, data, f"{path}.*"))
            else:
                shape.fields = {key: cls.of_example(item, data, joined(path, key)) for key, item in value.items()}
        return shape

    @classmethod
    def of_schema(cls, schema: Mapping[str, Any], components: Mapping[str, Any]) -> Shape:
        """Return the keys of a JSON Schema in the coordinator's description."""
        if "$ref" in schema:
            return cls.of_schema(components[schema["$ref"].rpartition("/")[2]], components)
        shape = cls()
        for part in schema.get("allOf", schema.get("anyOf", ())):
            shape = shape.merged(cls.of_schema(part, components))
        for key, inner in schema.get("properties", {}).items():
            shape.fields[key] = cls.of_schema(inner, components)
        if "additionalProperties" in schema:
            shape.values = cls.of_schema(schema["additionalProperties"], components)
        if "items" in schema:
            shape.items = cls.of_schema(schema["items"], components)
        shape.is_opaque = schema.get("type") == "object" and not (shape.fields or shape.values)
        return shape

    def add(self, path: str, *, is_opaque: bool = False) -> None:
        """Add the key at this path: ``nodes[].faults``.

        Args:
            is_opaque: its content is documented elsewhere.
        """
        shape, parts = self, re.findall(r"[a-z_]+|\[\]", path)
        for part in parts:
            if part == "[]":
                shape.items = shape.items or Shape()
                shape = shape.items
            else:
                shape = shape.fields.setdefault(part, Shape())
        shape.is_opaque = is_opaque

    def merged(self, other: Shape) -> Shape:
        """Return the keys of both."""
        shared = {key: self.fields[key].merged(other.fields[key]) for key in self.fields.keys() & other.fields.keys()}
        return Shape(
            {**self.fields, **other.fields, **shared},
            self.values.merged(other.values) if self.values and other.values else self.values or other.values,
            self.items.merged(other.items) if self.items and other.items else self.items or other.items,
            self.is_opaque or other.is_opaque,
        )

    def paths(self, path: str = "") -> Iterator[str]:
        """Yield the path of every key: ``nodes[].path.kind``."""
        for key, inner in self.fields.items():
            yield joined(path, key)
            yield from inner.paths(joined(path, key))
        if self.values is not None:
            yield from self.values.paths(f"{path}.*")
        if self.items is not None:
            yield from self.items.paths(f"{path}[]")


def joined(path: str, key: str) -> str:
    """Return the path of a key of the object at this path."""
    return f"{path}.{key}" if path else key


class Drift:
    """Compare the emitted keys with the documented ones.

    Attributes:
        undocumented: paths that were emitted but not documented.
    """

    def __init__(self, shape: Shape) -> None:
        self.undocumented: set[str] = set()
        self._shape = shape
        self._seen: set[str] = set()

    def take(self, value: object) -> None:
        """Record an emitted value."""
        self._walk(value, self._shape, "")

    @property
    def missing(self) -> set[str]:
        """The documented paths that were not emitted. The content of a missing key is not repeated."""
        missing = set(self._shape.paths()) - self._seen
        return {path for path in missing if not any(path.startswith((f"{other}.", f"{other}[")) for other in missing)}

    def _walk(self, value: object, shape: Shape, path: str) -> None:
        if isinstance(value, list):
            for item in value:
                self._walk(item, shape.items or Shape(), f"{path}[]")
        elif isinstance(value, Mapping) and not shape.is_opaque:
            for key, item in value.items():
                if shape.values is not None:
                    self._walk(item, shape.values, f"{path}.*")
                elif key in shape.fields:
                    self._seen.add(joined(path, key))
                    self._walk(item, shape.fields[key], joined(path, key))
                else:
                    self.undocumented.add(joined(path, key))
