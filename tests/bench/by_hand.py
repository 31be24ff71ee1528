"""Run the best engine of this machine on an interface, as a user would run wireguard-go.

python -m tests.bench.by_hand byhand0 [OPTION OF MESHRAY-ENGINE]...
"""

from __future__ import annotations

import os
import sys

from meshray.wireguard.engines import find_engine, open_tun


def main() -> None:
    """Replace this process by the engine."""
    name, *options = sys.argv[1:]
    engine = find_engine(os.environ)
    program = str(engine.program)
    if not engine.is_own:
        os.execv(program, [program, "-f", name])
    tun = open_tun(name, offload=True)
    os.set_inheritable(tun, True)
    engine.socket_path(name).parent.mkdir(parents=True, exist_ok=True)
    os.execv(program, [program, "-tun-fd", str(tun), "-socket", str(engine.socket_path(name)), *options])


if __name__ == "__main__":
    main()
