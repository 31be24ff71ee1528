"""Run the host's firewall programs: nft, iptables, firewall-cmd.

>>> Answer(127, "", "").missing
True
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from meshray.linux.trusted_files import SYSTEM_FOLDERS, find_program

#: ufw and firewalld answer within seconds even on slow machines; a lock that is held longer is reported.
TIMEOUT_S = 20.0
_NOT_FOUND = 127
_TIMED_OUT = 124
#: The beginning of the message with which nft and iptables-nft report that they cannot talk to the kernel, in lower
#: case. Unless a permission is missing, the kernel has no nf_tables.
_NO_NFT = ("cache initialization failed", "could not fetch rule set generation id", "failed to initialize nft")


@dataclass(frozen=True)
class Answer:
    """The result of a program; out is its stdout, error its stderr."""

    code: int
    out: str
    error: str

    @property
    def ok(self) -> bool:
        """Whether the program succeeded."""
        return self.code == 0

    @property
    def missing(self) -> bool:
        """Whether the program is missing on this host, or the kernel lacks what it drives."""
        error = self.error.lower()
        lacks = "not supported" in error or ("invalid argument" in error and any(text in error for text in _NO_NFT))
        return self.code == _NOT_FOUND or (self.code != 0 and lacks)

    @property
    def cause(self) -> str:
        """The cause of the failure, in one line."""
        lines = [line.strip() for line in self.error.splitlines() if line.strip() and not line.startswith("#")]
        return lines[0][:200] if lines else f"exit status {self.code}"


#: (arguments, standard input) → Answer. Tests pass a fake host.
Run = Callable[[Sequence[str], str], Answer]


def run_program(argv: Sequence[str], stdin: str = "") -> Answer:
    """Run one program to its end, at most TIMEOUT_S; never raise for a failure of the program."""
    program = find_program(argv[0], os.environ)
    if program is None:
        return Answer(_NOT_FOUND, "", f"{argv[0]}: not found")
    environment = {**os.environ, "LC_ALL": "C", "PATH": SYSTEM_FOLDERS}
    try:
        done = subprocess.run(
            [str(program), *argv[1:]],
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            env=environment,
            check=False,
        )
    except FileNotFoundError:
        return Answer(_NOT_FOUND, "", f"{argv[0]}: not found")
    except subprocess.TimeoutExpired:
        return Answer(_TIMED_OUT, "", f"{argv[0]} did not end within {TIMEOUT_S:.0f} s")
    except OSError as error:
        return Answer(_NOT_FOUND - 1, "", f"{argv[0]}: {error.strerror}")
    return Answer(done.returncode, done.stdout, done.stderr)
