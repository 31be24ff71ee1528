"""The allowed imports of each folder. Each ban has its reason."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "meshray"

#: Open to every folder; of these the model and the protocol may import only the first two.
OPEN = ("errors", "defaults", "home")
#: folder → the parts of meshray that it may import besides itself and the open ones.
ALLOWED: dict[str, set[str]] = {
    # Leaves: every part uses the model's values and the protocol's messages, so they can depend on none.
    "model": {"protocol"},
    "protocol": {"model"},
    # The ground: what the kernel and the machine offer. It knows nothing about meshes.
    "linux": set(),
    # Its files and programs, as installed by pip.
    "installation": {"linux", "render"},
    # Where a node runs: the service, containers, namespaces.
    "runtime": {
        "linux",
        "installation",
        "client",
        "node",
        "model",
        "protocol",
        "wireguard",
        "render",
    },
    # Devices know nothing about meshes, coordinators or Ray.
    "wireguard": {"linux", "installation", "model"},
    "firewall": {"linux", "model"},
    "raynode": {"linux", "installation", "model", "protocol"},
    # Builds the environment of Ray; asks the new Ray for its versions.
    "environment": {"linux", "installation", "model", "protocol", "raynode"},
    "render": {"model"},
    # Asks the coordinator and the agent, and knows only their answers.
    "client": {"linux", "model", "protocol", "relay"},
    # A node's stored state, and what it leaves behind when it is killed.
    "node": {
        "linux",
        "installation",
        "client",
        "model",
        "protocol",
        "runtime",
        "wireguard",
        "firewall",
        "raynode",
    },
    # The coordinator must run without the parts that a node needs.
    "coordinator": {"linux", "model", "protocol", "runtime", "raynode", "relay", "web"},
    # The coordinator's page, in the coordinator's process.
    "web": {"linux", "model", "protocol", "coordinator"},
    # Both ends are used by others: the server by the coordinator, the client by the agent.
    "relay": {"linux", "model", "protocol"},
    # Its probes examine all parts of a node; the checks themselves are pure, see below.
    "doctor": {
        "linux",
        "installation",
        "client",
        "model",
        "protocol",
        "runtime",
        "wireguard",
        "firewall",
        "raynode",
    },
    # The agent combines the parts; it must not need the command line or the coordinator's code.
    "agent": {
        "linux",
        "node",
        "client",
        "model",
        "protocol",
        "runtime",
        "wireguard",
        "firewall",
        "raynode",
        "relay",
        "doctor",
        "environment",
    },
}


@cache
def imports_of(file: Path) -> tuple[str, ...]:
    """Return the modules that the file imports, anywhere in it; a relative one begins with a dot."""
    found: list[str] = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            found.append("." * node.level + (node.module or ""))
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return tuple(found)


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_a_folder_imports_only_what_it_may(folder: str) -> None:
    allowed = {folder, *ALLOWED[folder], *(OPEN[:2] if folder in ("model", "protocol") else OPEN)}
    for file in (PACKAGE / folder).rglob("*.py"):
        for module in imports_of(file):
            parts = module.split(".")
            if parts[0] == "meshray" and len(parts) > 1:
                assert parts[1] in allowed, f"{file.name} imports {module}"


def test_checks_look_at_facts_and_at_nothing_else() -> None:
    probes = {"probe", "host_probe", "gpu_probe", "dial", "transfer_program", "context", "deadlines"}
    files = [file for file in (PACKAGE / "doctor").rglob("*.py") if file.stem not in probes]
    for file in files:
        for module in imports_of(file):
            assert not module.startswith(("meshray.linux", "meshray.runtime", "meshray.raynode", "meshray.firewall")), (
                f"{file}: {module}"
            )


def test_nothing_imports_the_command_line() -> None:
    for file in PACKAGE.rglob("*.py"):
        if file.is_relative_to(PACKAGE / "cli") or (file.name == "__main__.py" and file.parent == PACKAGE):
            continue
        assert not [module for module in imports_of(file) if module.split(".")[1:2] == ["cli"]], file


def test_modules_have_at_most_500_lines() -> None:
    long = {
        str(file.relative_to(PACKAGE)): n
        for file in PACKAGE.rglob("*.py")
        if (n := len(file.read_text().splitlines())) > 500
    }
    assert long == {}


def test_no_relative_imports() -> None:
    for file in PACKAGE.rglob("*.py"):
        assert not [module for module in imports_of(file) if module.startswith(".")], file
