"""What a node's container gets. Pure.

>>> shm_bytes(("--object-store-memory=1000000000",), engine_memory=0) // 1_000_000
1321
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from meshray.model.ray_options import STORE_OF_SHM, object_store

#: Ray's own small things, and those of the libraries that also use /dev/shm (PyTorch's workers).
_SHM_SPARE = 256 * 1024**2
#: Where the node's state lies inside.
STATE = "/var/lib/meshray"
#: On everything that is made in the engine.
LABEL = "io.meshray"
NVIDIA = "nvidia"


@dataclass(frozen=True)
class Plan:
    """One container, as it will be made.

    Attributes:
        user_uid: as whom Ray runs inside, 0 is root.
        shm: bytes of /dev/shm.
        gpus: all of the machine's are given to it.
        bridge: the Docker network, empty for the engine's default one.
        ports: UDP ports that lead from the machine to the node.
        volumes: folders of the machine, by their place inside.
        settings: variables for meshray inside, also after the container was started again.
    """

    image: str
    python: str
    name: str
    hostname: str
    user_uid: int
    shm: int
    gpus: bool = False
    bridge: str = ""
    ports: tuple[int, ...] = ()
    ephemeral: bool = False
    volumes: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Of everything in the container. Never a secret: whoever may use the engine can read it."""
        return {**self.settings, **({"SUDO_UID": str(self.user_uid)} if self.user_uid else {})}

    @property
    def volume(self) -> str:
        """The named volume for the node's state: the engine's, so that no file of root's lies in a user's folder,
        and a confined (snap) or remote engine can use it as well."""
        return f"{self.name}-state"


def shm_bytes(ray_args: Sequence[str], engine_memory: int) -> int:
    """How large /dev/shm must be for Ray's object store. It is a limit; memory is taken as it is used.

    Args:
        ray_args: for `ray start`, of which --object-store-memory is looked at.
        engine_memory: all memory of the engine's machine, bytes.
    """
    wanted, _ = object_store(ray_args, engine_memory)
    return int(wanted / STORE_OF_SHM) + _SHM_SPARE


def free_name(wanted: str, taken: Collection[str]) -> str:
    """``meshray-gpu-1``; with a number where a container of that name exists."""
    name = f"meshray-{wanted}"
    numbered = (f"{name}-{number}" for number in range(2, len(taken) + 3))
    return name if name not in taken else next(other for other in numbered if other not in taken)


def gpus(cards: int, runtimes: Collection[str]) -> tuple[bool, str]:
    """Whether the container gets the GPUs, and a warning where it could have had them.

    Args:
        cards: how many the machine's driver lists.
        runtimes: of the engine, as `docker info` lists them.
    """
    if not cards:
        return False, ""
    if NVIDIA in runtimes:
        return True, ""
    return False, (
        f"this machine has {cards} GPU{'s' if cards > 1 else ''}, but its Docker engine has no nvidia runtime: the "
        "node joins without. To have them: install nvidia-container-toolkit, sudo nvidia-ctk runtime configure, "
        "restart Docker"
    )
