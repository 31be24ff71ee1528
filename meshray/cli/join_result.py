"""The answer of the commands after which a node is up.

>>> JoinResult.read({"mesh": "lab", "node": {"name": "gpu-1", "ip": "10.99.0.2"}}).text()
'gpu-1 (10.99.0.2) joined mesh lab'
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from msgspec import UnsetType

from meshray.cli.result import Result
from meshray.cli.tables import Paint, plain
from meshray.model.amounts import counted
from meshray.model.path import PathKind
from meshray.protocol.answers import Join
from meshray.protocol.codec import convert
from meshray.raynode.environment_file import start_line


@dataclass(frozen=True)
class JoinResult(Result[Join]):
    """``join``, ``up`` and ``node add``: the node is up.

    Attributes:
        fresh: it was not a node of the mesh before.
        udp_port: the head's UDP port, if it does not answer and the tunnel uses TCP although UDP was allowed; else 0.
    """

    fresh: bool = True
    udp_port: int = 0

    @classmethod
    def read(cls, answer: Mapping[str, object], *, fresh: bool = True, udp_port: int = 0) -> JoinResult:
        """Return the result with this answer, which may come from meshray in a container or on another machine."""
        return cls(convert(answer, Join), fresh, udp_port, received=answer)

    def text(self, paint: Paint = plain) -> str:
        """Return the node, its path and its Ray."""
        node, path, ray, local = self.answer.node, self.answer.path, self.answer.ray, self.answer.local or {}
        verb = "joined" if self.fresh else "is in" if self.answer.already else "is up in"
        line = f"{node.name} ({node.ip}) {verb} mesh {self.answer.mesh}"
        if path.kind not in (PathKind.SELF, PathKind.NONE):
            line += f", path {path.kind} over {path.transport}"
        if ray.alive:
            line += f"; Ray is ALIVE, {counted(ray.nodes, 'node')}"
        line += f"; dashboard at {local['dashboard']}" if "dashboard" in local and ray.alive else ""
        if not isinstance(self.answer.env_file, UnsetType) and not ray.alive:
            line += f"\nNext, where Ray is started: {start_line(Path(self.answer.env_file))}"
        if self.udp_port:
            line += (
                f"\nThe tunnel goes over TCP (wss), which costs throughput: UDP port {self.udp_port} of the head does"
                " not answer.\nOpen it in the head's firewall, and the tunnel changes to UDP on its own."
            )
        if self.fresh and ray.alive:
            line += "\nNext: meshray status shows every node, meshray run -- python job.py uses them"
        return line
