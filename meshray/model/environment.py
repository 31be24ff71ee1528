"""What a node needs that shall run the same Ray as the head: what `join --env match` builds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from meshray.model import wire
from meshray.model.ray_ports import ports_from_json

#: Characters of the recorded requirements: a few hundred packages. With its escapes it must fit a request's body.
LONGEST_REQUIREMENTS = 48 * 1024


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

    def to_json(self) -> dict[str, object]:
        """The JSON form."""
        return {
            "ray": self.ray,
            "python": self.python,
            "requirements": self.requirements,
            **({"ray_ports": dict(self.ray_ports)} if self.ray_ports else {}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Environment:
        """The inverse of `to_json`. Raises WireError."""
        return cls(
            wire.text(value, "ray", 64, ""),
            wire.text(value, "python", 64, ""),
            wire.text(value, "requirements", LONGEST_REQUIREMENTS, ""),
            ports_from_json(value, "ray_ports", mesh_wide=True),
        )


@dataclass(frozen=True)
class ShownToken:
    """What a machine that is no node yet shows to learn the `Environment`; the token stays as good as it was."""

    mesh_id: str
    token_id: str
    secret: str = field(repr=False)

    def to_json(self) -> dict[str, str]:
        """The JSON form."""
        return {"mesh_id": self.mesh_id, "token_id": self.token_id, "secret": self.secret}

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> ShownToken:
        """The inverse of `to_json`. Raises WireError."""
        return cls(wire.text(value, "mesh_id", 64), wire.text(value, "token_id", 64), wire.text(value, "secret", 128))
