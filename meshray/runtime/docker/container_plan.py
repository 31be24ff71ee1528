"""What a node's container gets (pure).

>>> shm_bytes(("--object-store-memory=1000000000",), engine_memory=0) // 1_000_000
1321
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from meshray.model.ray_options import STORE_OF_SHM, object_store

#: For other small objects of Ray, and for libraries that use /dev/shm, too (PyTorch's workers).
_SHM_SPARE = 256 * 1024**2
#: The folder of the node's state, inside.
STATE = "/var/lib/meshray"
#: The label on everything that meshray creates in the engine.
LABEL = "io.meshray"
NVIDIA = "nvidia"


@dataclass(frozen=True)
class Plan:
    """A container that is going to be created.

    Attributes:
        user_uid: of the user as whom Ray runs inside; 0 is root.
        shm: size of /dev/shm, bytes.
        gpus: it gets all GPUs of the machine.
        bridge: the Docker network; empty: the engine's default.
        ports: UDP ports that are forwarded from the machine to the node.
        volumes: path inside → folder of the machine.
        settings: variables for meshray inside, which last over restarts of the container.
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
        """The variables of every process in it. Never a secret: every user of the engine can read them."""
        return {**self.settings, **({"SUDO_UID": str(self.user_uid)} if self.user_uid else {})}

    @property
    def volume(self) -> str:
        """The named volume for the node's state.

        It belongs to the engine, so that no file of root is in a user's folder, and confined (snap) or remote engines
        can use it, too.
        """
        return f"{self.name}-state"


def shm_bytes(ray_args: Sequence[str], engine_memory: int) -> int:
    """Return how large /dev/shm must be for Ray's object store, bytes. It is a limit, not a reservation.

    Args:
        ray_args: of `ray start`; only --object-store-memory matters.
        engine_memory: total memory of the engine's machine, bytes.
    """
    wanted, _ = object_store(ray_args, engine_memory)
    return int(wanted / STORE_OF_SHM) + _SHM_SPARE


def free_name(wanted: str, taken: Collection[str]) -> str:
    """Return ``meshray-gpu-1``, with a number appended if a container has that name."""
    name = f"meshray-{wanted}"
    numbered = (f"{name}-{number}" for number in range(2, len(taken) + 3))
    return name if name not in taken else next(other for other in numbered if other not in taken)


def gpus(cards: int, runtimes: Collection[str]) -> tuple[bool, str]:
    """Return whether the container gets the GPUs, and a warning if GPUs exist but it does not get them.

    Args:
        cards: number of GPUs that the machine's driver lists.
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
