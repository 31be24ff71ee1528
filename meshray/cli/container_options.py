"""The options of `join` for a container.

@container_options
def join_command(…, runtime: str, image: str, bridge: str, volume: tuple[str, ...]) -> Result | int: ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from meshray.cli.variables import option
from meshray.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])

HOST, DOCKER = RUNTIMES = ("host", "docker")


@dataclass(frozen=True)
class ContainerChoice:
    """The values of the options.

    Attributes:
        runtime: HOST or DOCKER.
        image: used instead of the one that matches the head.
        bridge: the Docker network of the container; empty: the engine's default.
        volumes: ``FOLDER:PLACE``: folders of this machine for the jobs.
    """

    runtime: str = HOST
    image: str = ""
    bridge: str = ""
    volumes: tuple[str, ...] = ()

    @property
    def in_container(self) -> bool:
        """Whether the node should run in a container."""
        return self.runtime == DOCKER

    def require_sense(self, *, rootless: bool, env: bool) -> None:
        """Raise UsageError if the options contradict each other."""
        if self.in_container and (rootless or env):
            raise UsageError(
                "container_with_other",
                f"in a container the node has {'root' if rootless else 'the Ray of the image'}, and "
                f"{'--rootless' if rootless else '--env'} contradicts that",
                hint="leave out one of them" + ("" if rootless else "; --image chooses the Ray"),
            )
        if not self.in_container and self != ContainerChoice():
            raise UsageError(
                "no_container",
                "--image, --bridge and --volume need --runtime docker",
                hint="meshray join --runtime docker --image IMAGE TOKEN",
            )


def container_options(function: F) -> F:
    """Add ``--runtime`` and its further options."""
    for decorator in (
        option(
            "--volume", multiple=True, metavar="FOLDER:PLACE", help="A folder of this machine for the container's jobs."
        ),
        option("--bridge", default="", metavar="NETWORK", help="The Docker network of the container."),
        option(
            "--image",
            default="",
            metavar="IMAGE",
            help="The container's image; default: the rayproject/ray of the head.",
        ),
        option(
            "--runtime",
            type=click.Choice(RUNTIMES),
            default=HOST,
            show_default=True,
            help="Where the node runs: on this machine, or in its own container.",
        ),
    ):
        function = decorator(function)
    return function
