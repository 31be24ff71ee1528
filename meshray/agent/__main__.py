"""`python -m meshray.agent`: the agent in the foreground."""

from __future__ import annotations

import sys

from meshray.home import Home
from meshray.runtime.upgrade.launch import follow_pointer


def main() -> int:
    """Run the agent. An error is printed as one line on standard error and becomes the exit code."""
    home = Home.from_environment()
    # Before the imports: this version may only have to start another one.
    follow_pointer(home)
    from meshray.agent.main import run_foreground
    from meshray.errors import MeshrayError
    from meshray.model.printable import escaped

    try:
        return run_foreground(home)
    except MeshrayError as error:
        hint = f"hint: {escaped(error.hint)}\n" if error.hint else ""
        sys.stderr.write(f"error: {escaped(error.message)}\n{hint}")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
