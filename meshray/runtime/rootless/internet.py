"""The program that connects the inside to the internet: pasta, else slirp4netns.

It lets no connection in. If WireGuard itself is inside, it forwards the UDP port of WireGuard.

>>> find_helper(os.environ)
Helper(program='/usr/bin/pasta', nameserver='169.254.1.1')
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from meshray.linux.trusted_files import find_program

PASTA = "pasta"
#: A link-local address at which pasta acts as a name server; the one that podman uses.
_PASTA_DNS = "169.254.1.1"
#: The name server of slirp4netns, from its manual.
_SLIRP_DNS = "10.0.2.3"


@dataclass(frozen=True)
class Helper:
    """One of the two programs, with the address of its name server."""

    program: str
    nameserver: str

    @property
    def name(self) -> str:
        """The name of the program."""
        return Path(self.program).name

    def command(self, pid: int, udp_port: int = 0) -> list[str]:
        """Return the command that connects the namespaces of this process to the internet (pure).

        Args:
            udp_port: is forwarded to the inside, by pasta only; 0: none.
        """
        if self.nameserver == _SLIRP_DNS:
            return [self.program, "--configure", "--mtu=65520", "--disable-host-loopback", str(pid), "tap0"]
        closed = [word for option in ("-t", "-T", "-U") for word in (option, "none")]
        closed += ["-u", str(udp_port) if udp_port else "none"]
        options = ["--config-net", "--foreground", "--quiet", "--no-map-gw", "--dns-forward", self.nameserver]
        return [self.program, *options, *closed, str(pid)]


def find_helper(environ: Mapping[str, str]) -> Helper | None:
    """Return the program to use; None if neither is installed."""
    for name, nameserver in ((PASTA, _PASTA_DNS), ("slirp4netns", _SLIRP_DNS)):
        program = find_program(name, environ, on_path_only=True)
        if program is not None:
            return Helper(str(program), nameserver)
    return None
