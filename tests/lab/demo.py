"""`make demo`: three machines that cannot reach each other become one Ray cluster, on this one machine.

The machines are namespaces, as in the lab tests; the commands, the tunnels and Ray are the real ones. Everything is
removed at the end, and after Ctrl-C at any time.

    sudo .venv/bin/python -m tests.lab.demo
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import time

from rich.console import Console
from rich.markup import escape

from tests.lab.cluster import RAY_ARGS
from tests.lab.host import REPOSITORY, CommandError, Host
from tests.lab.topologies import OneOfEach, one_of_each
from tests.lab.world import World
from tests.tiers import lab_misses

PICTURE = """
                    the internet
        ┌───────────────┼───────────────┐
      head           walled            nat
  203.0.113.10    203.0.113.20     203.0.113.30
  can be reached  drops all             │
                  inbound traffic    nested
                                   192.168.7.10
"""
JOB = "tests/lab/pairs.py"
#: The timeout of one command of the demo, seconds.
DEADLINE_S = 240

console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    """Run the demo; return its exit status."""
    missing = lab_misses()
    if missing:
        hint = "Say: sudo make demo" if missing == "root" else "make demo installs what it needs on Debian and Ubuntu"
        print(f"demo: this machine lacks {missing}. {hint}", file=sys.stderr)
        return 1
    start = time.monotonic()
    console.print("[bold]meshray[/]: one Ray cluster out of machines that cannot reach each other")
    console.print(PICTURE, style="cyan")
    try:
        with World("demo") as world:
            show(one_of_each(world))
    except KeyboardInterrupt:
        console.print("\nInterrupted; everything is torn down.")
        return 130
    except CommandError as error:
        console.print(f"\n[bold red]The demo failed.[/] {escape(str(error).splitlines()[0])}")
        return 1
    console.print(f"\nAll torn down, nothing is left behind. That took {time.monotonic() - start:.0f} s.")
    console.print("On three machines of your own it is the same commands: see README.md")
    return 0


def show(hosts: OneOfEach) -> None:
    """Show the demo in real commands."""
    step("Three machines, each with a network, processes and files of its own. Who reaches whom?")
    for source in hosts.nodes:
        for target in hosts.nodes:
            if source is not target:
                answer = "[green]answers[/]" if source.can_reach(target.address) else "[red]no answer[/]"
                console.print(f"    {source.name:>6} → {target.name:6}  {answer}")
    console.print("  Ray needs every pair, in both directions.")

    step("The head makes the mesh and starts Ray on it")
    output = command(hosts.head, ["meshray", "init", "--", *RAY_ARGS])
    token = re.search(r"meshray1_[\w-]+", output)
    if token is None:
        raise CommandError(f"meshray init printed no token:\n{output}")

    step("Each worker joins with the token that the head printed")
    for worker in hosts.workers:
        command(worker, ["meshray", "join", token[0], "--", *RAY_ARGS])

    step("One Ray job over all three: tasks, actors, and an object between every pair")
    command(hosts.head, ["meshray", "run", "--", "python", JOB, "--nodes", "3", "--mebibytes", "16"])

    step("What the mesh looks like from the head")
    command(hosts.head, ["meshray", "status"])


def step(text: str) -> None:
    """Print a heading."""
    console.print(f"\n[bold]{text}[/]")


def command(host: Host, argv: list[str]) -> str:
    """Show a command and run it with live output; return its standard output.

    Raises:
        CommandError: it failed or timed out.
    """
    shown = re.sub(r"(meshray1_.{8})\S+", r"\1…", shlex.join(argv))
    console.print(f"  [bold cyan]{host.name}#[/] {escape(shown)}")
    env = {name: os.environ[name] for name in ("TERM", "NO_COLOR", "COLUMNS") if name in os.environ}
    return host.attached(argv, show=lambda line: print(f"    {line}", flush=True), env=env, cwd=REPOSITORY)


if __name__ == "__main__":
    sys.exit(main())
