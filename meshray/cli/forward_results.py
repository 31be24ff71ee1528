"""The result of `meshray forward`: a frozen value that `output` shows to users and `envelope` to scripts."""

from __future__ import annotations

from dataclasses import dataclass

from meshray.cli.results import Result


@dataclass(frozen=True)
class Forwarded(Result):
    """``forward``: the local address; the command then runs until it is interrupted.

    Attributes:
        host, port: the address on this machine.
        node, node_port: where it leads; ``head``: the node that runs the Ray head.
    """

    host: str
    port: int
    node: str
    node_port: int

    def to_json(self) -> dict[str, object]:
        """Return the fields of ``forward --json``."""
        return {
            "address": f"{self.host}:{self.port}",
            "host": self.host,
            "port": self.port,
            "node": self.node,
            "node_port": self.node_port,
        }
