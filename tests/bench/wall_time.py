"""The duration of commands, from start to end; they run in turn: a b c a b c …

    python -m tests.bench.wall_time 15 "meshray --help" "meshray status"

It prints one list of seconds for each command, as JSON. One round before the first warms the cache.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time

#: No command here takes this long.
DEADLINE_S = 30


def main() -> None:
    """Run the program; see the module's docstring."""
    rounds, commands = int(sys.argv[1]), [shlex.split(text) for text in sys.argv[2:]]
    taken: list[list[float]] = [[] for _ in commands]
    for _ in range(rounds + 1):
        for command, seconds in zip(commands, taken, strict=True):
            seconds.append(wall_time(command))
    print(json.dumps([seconds[1:] for seconds in taken]))


def wall_time(command: list[str]) -> float:
    """Return the duration of one run, seconds. Raises CalledProcessError if it fails."""
    start = time.perf_counter()
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, timeout=DEADLINE_S)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
