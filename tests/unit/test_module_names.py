"""No two modules share a name, unless one is the other's counterpart in another package."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "meshray"

#: The names that several modules share → the reason.
COUNTERPARTS = {
    "__init__": "the description of a package",
    "__main__": "python -m runs it",
    "agent": "client/agent.py is the client of the agent in agent/agent.py",
    "audit": "the command, and the messages of its answer in protocol",
    "base": "the interface of the implementations beside it",
    "checks": "the checks of one area of the doctor",
    "doctor": "the command, and the messages of its answer in protocol",
    "facts": "the facts of one area of the doctor, and of all areas",
    "figures": "the values of the metrics of the agent, and of the coordinator",
    "main": "the entry point of the agent, and of the command line",
    "node": "the commands for nodes, and the node in the model",
    "passes": "the passes at the coordinator, and their requests and answers in protocol",
    "preflight": "the checks of Ray before it starts, and of the machine before it changes",
    "probe": "the measurements of one area of the doctor",
    "runtime": "the runtime in Docker, and the runtime without root",
    "server": "the server of the coordinator, and of the relay",
    "status": "the command, and the messages of its answer in protocol",
    "token": "the commands for tokens, and the token in the model",
    "tunnel": "the coordinator's side of a tunnel, and its messages in protocol",
}


def shared(modules: list[Path]) -> set[str]:
    """Return the names that several modules have."""
    found: defaultdict[str, list[Path]] = defaultdict(list)
    for module in modules:
        found[module.stem].append(module)
    return {name for name, paths in found.items() if len(paths) > 1}


def test_only_counterparts_share_a_name() -> None:
    assert shared(list(PACKAGE.rglob("*.py"))) == COUNTERPARTS.keys()


def test_a_shared_name_is_found() -> None:
    assert shared([Path("cli/proxy.py"), Path("web/proxy.py"), Path("web/pages.py")]) == {"proxy"}
