"""Every command of the program: its module, its line in the help, and where it runs if the node is in a container.

>>> find("status")
Command(module='status', summary='Show every node, …', runs=INSIDE)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

#: The command is forwarded to the meshray in the container of this machine's node, if there is one.
INSIDE = "inside"
#: The command always runs on this machine. If the node is in a container, the command handles that itself.
HERE = "here"


class Command(NamedTuple):
    """One command.

    Attributes:
        module: the module in `meshray.cli.commands`.
        summary: what it does, in one line of the help.
        runs: INSIDE or HERE.
    """

    module: str
    summary: str
    runs: str


#: Section of the help → name → command.
SECTIONS: Mapping[str, Mapping[str, Command]] = {
    "First steps": {
        "init": Command("init", "Create a mesh here: coordinator, overlay and Ray head.", HERE),
        "join": Command("join", "Join the mesh that a token names, with a Ray worker.", HERE),
        "status": Command("status", "Show every node, its path and the resources of the cluster.", INSIDE),
        "run": Command("run", "Run a command that finds the Ray cluster automatically.", INSIDE),
        "dashboard": Command("dashboard", "Show Ray's dashboard, and the token that it asks for.", INSIDE),
        "doctor": Command("doctor", "Find out what is wrong and how to fix it.", INSIDE),
    },
    "Every day": {
        "up": Command("lifecycle", "Start this node again.", HERE),
        "down": Command("lifecycle", "Stop this node; it stays enrolled.", HERE),
        "leave": Command("lifecycle", "Un-enrol this node and remove all its state.", HERE),
        "logs": Command("logs", "Show the logs of agent, coordinator, engine and Ray.", INSIDE),
        "forward": Command("forward", "Forward a port of a node to this machine's 127.0.0.1.", HERE),
        "ready": Command("ready", "Succeed once this node's Ray is ALIVE; for probes and scripts.", INSIDE),
        "ping": Command("ping", "Measure the path to one node over the overlay.", INSIDE),
        "env": Command("env", "Print the environment of `meshray run` as shell exports.", INSIDE),
    },
    "Administration": {
        "token": Command("token", "Create, list and revoke the tokens with which nodes join.", INSIDE),
        "node": Command("node", "Add, list, remove, drain and rename nodes.", INSIDE),
        "peer": Command("peer", "Add a device that has only wg-quick.", INSIDE),
        "web": Command("web", "Open the mesh's page in a browser, and invite others to it.", INSIDE),
        "audit": Command("audit", "Show what was done in the mesh, by whom and from where.", INSIDE),
        "backup": Command("backup", "Write the head's state to an encrypted file.", INSIDE),
        "restore": Command("backup", "Make this machine the head, from such a file.", HERE),
        "secrets": Command("secrets", "Change the secrets that all nodes share.", INSIDE),
    },
    "For other programs": {
        "render": Command("render", "Print a configuration file: prometheus, grafana, slurm …", INSIDE),
        "completion": Command("completion", "Print the completion script for a shell.", HERE),
    },
}


def find(name: str) -> Command | None:
    """Return the command of this name; None if there is none."""
    return next((section[name] for section in SECTIONS.values() if name in section), None)
