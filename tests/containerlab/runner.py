"""Deploy containerlab's topology files with Docker alone, where containerlab is not installed.

    python -m tests.containerlab.runner deploy FILE      needs root, and the images in Docker
    python -m tests.containerlab.runner destroy FILE

Containers have containerlab's names, `clab-LAB-NODE`. A link is a pair of veth interfaces, one in each container.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.containerlab.topology import Link, Node, Topology, UnsupportedError, read

#: Run a command where the engine's containers are processes; return standard output, or raise an error.
Run = Callable[[Sequence[str]], str]


def deploy(topology: Topology, run: Run) -> None:
    """Create and start the containers, connect them, and run their commands; undo it all if a step fails."""
    try:
        for node in topology.nodes.values():
            run(create_command(node))
        for node in topology.nodes.values():
            run(["docker", "start", node.container])
        pids = {
            node.name: run(["docker", "inspect", "--format={{.State.Pid}}", node.container]).strip()
            for node in topology.nodes.values()
        }
        for link in topology.links:
            for command in link_commands(link, pids):
                run(command)
        for node in topology.nodes.values():
            for words in node.exec:
                run(["docker", "exec", node.container, *words])
    except BaseException:
        destroy(topology, run)
        raise


def destroy(topology: Topology, run: Run) -> None:
    """Remove the containers with their volumes; the links end with them. Idempotent."""
    run(["docker", "rm", "--force", "--volumes", *(node.container for node in topology.nodes.values())])


def create_command(node: Node) -> list[str]:
    """Return the command that creates a container (pure)."""
    words = ["docker", "create", f"--name={node.container}", f"--hostname={node.name}", "--network=none"]
    words += [f"--cap-add={capability}" for capability in node.cap_add]
    words += [f"--device={device}" for device in node.devices]
    words += [f"--env={name}={value}" for name, value in node.env.items()]
    words += [f"--sysctl={name}={value}" for name, value in node.sysctls.items()]
    words += [f"--volume={bind}" for bind in node.binds]
    words += [f"--shm-size={node.shm_size}"] if node.shm_size else []
    # The program of an entrypoint is one word; what follows it precedes the command.
    words += [f"--entrypoint={node.entrypoint[0]}"] if node.entrypoint else []
    return [*words, node.image, *node.entrypoint[1:], *node.cmd]


def link_commands(link: Link, pids: Mapping[str, str]) -> Iterator[list[str]]:
    """Yield the commands that connect two containers, given the first process of each node (pure)."""
    first, second = (
        [*("name", end.interface), *("mtu", str(link.mtu)), *("netns", pids[end.node])] for end in link.ends
    )
    yield ["ip", "link", "add", *first, "type", "veth", "peer", *second]
    for end in link.ends:
        yield ["nsenter", f"--target={pids[end.node]}", "--net", "--", "ip", "link", "set", end.interface, "up"]


def _run_here(words: Sequence[str]) -> str:
    return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, timeout=300).stdout


def main(words: Sequence[str]) -> int:
    """Deploy or destroy the topology of one file with this machine's engine; return the exit code."""
    actions = {"deploy": deploy, "destroy": destroy}
    if len(words) != 2 or words[0] not in actions:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        actions[words[0]](read(Path(words[1])), _run_here)
    except (UnsupportedError, OSError, subprocess.SubprocessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
