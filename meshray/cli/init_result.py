"""The answer of `meshray init`, with the commands for the other machines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from msgspec import UnsetType

from meshray.cli.result import Result
from meshray.cli.tables import Paint, plain
from meshray.protocol.answers import Init
from meshray.raynode.environment_file import start_line


@dataclass(frozen=True)
class InitResult(Result[Init]):
    """``init``: the mesh exists.

    Attributes:
        join_line: the command for other machines; empty without a token.
        head_line: the command for the machine of the Ray head; empty if this is that machine.
        rootless: the user as whom the node runs without root; empty: it runs with root.
    """

    join_line: str = ""
    head_line: str = ""
    rootless: str = ""

    def text(self, paint: Paint = plain) -> str:
        """Return the mesh, and the commands for the other machines."""
        answer, endpoints = self.answer, ", ".join(self.answer.endpoints)
        if answer.already:
            return "\n".join(
                [
                    f"mesh {answer.mesh} is up already; others reach {answer.node.name} at {endpoints}",
                    "The command for another machine: sudo meshray token create --line",
                    "A node that does not connect on its own:",
                    "",
                    f"    sudo meshray up --coordinator {answer.endpoints[0]}",
                ]
            )
        lines = [f"mesh {answer.mesh} is up; this node is {answer.node.name}, {answer.node.ip}"]
        if answer.ray_address:
            lines.append(f"Ray        {answer.ray_address}   (meshray run -- python job.py)")
            lines.append(f"dashboard  {(answer.local or {}).get('dashboard', answer.dashboard)}")
        if not isinstance(answer.env_file, UnsetType):
            lines.append(f"another program starts Ray here: {start_line(Path(answer.env_file))}")
        if self.head_line:
            lines += ["", "On the machine that runs the Ray head:", "", f"    {self.head_line}"]
        lines += [
            "",
            "On every other machine:",
            "",
            f"    {self.join_line}",
            "",
            f"They must reach UDP and TCP port {answer.port} here: {endpoints}",
            "(in a cloud: open both in the security group).",
        ]
        if answer.open_commands:
            lines.append("This host's own firewall drops them until you run:")
            lines += [f"    {command}" for command in answer.open_commands]
        if self.rootless:
            lines += [
                "",
                f"This node runs without root, as {self.rootless}. To make it one with root instead:",
                "",
                "    meshray leave --yes, then the same init with sudo",
            ]
        return "\n".join(lines)
