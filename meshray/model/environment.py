"""What a node needs that shall run the same Ray as the head: what `join --env match` builds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from meshray.model.ray_ports import ports_of_mesh
from meshray.protocol.api import EnvironmentForm
from meshray.protocol.codec import convert, optional, or_unset, to_json


@dataclass(frozen=True)
class Environment:
    """The head's Ray, and what stands beside it.

    Attributes:
        ray, python: of the head, for example ``2.60.0`` and ``3.11.7``; empty: it runs no Ray.
        requirements: what `meshray env lock` recorded, one requirement (PEP 508) a line; empty: nothing.
        ray_ports: the ports of the head's Ray that `meshray init` chose, by name; see `meshray.model.ray_ports`.
    """

    ray: str = ""
    python: str = ""
    requirements: str = ""
    ray_ports: Mapping[str, int] = field(default_factory=dict)

    def form(self) -> EnvironmentForm:
        """Return the form in messages."""
        return EnvironmentForm(self.ray, self.python, self.requirements, or_unset(dict(self.ray_ports)))

    def to_json(self) -> dict[str, object]:
        """Return the JSON form."""
        return to_json(self.form())

    @classmethod
    def of(cls, form: EnvironmentForm) -> Environment:
        """Return the value of this form. Raises WireError."""
        return cls(form.ray, form.python, form.requirements, optional(ports_of_mesh, form.ray_ports) or {})

    @classmethod
    def from_json(cls, value: object) -> Environment:
        """Return the value of its JSON form. Raises WireError."""
        return cls.of(convert(value, EnvironmentForm))
