"""The head's environment, for nodes that run the same Ray: `join --env match` builds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from meshray.model.ray_ports import ports_of_mesh
from meshray.protocol.api import EnvironmentForm
from meshray.protocol.codec import convert, optional, or_unset, to_json


@dataclass(frozen=True)
class Environment:
    """The head's Ray, and the requirements beside it.

    Attributes:
        ray, python: the head's versions, for example ``2.60.0`` and ``3.11.7``; empty: it runs no Ray.
        requirements: those that `meshray env lock` recorded, one (PEP 508) per line; empty: none.
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
