"""What one node finds out about its Ray, and about the others' ports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: The connection was made, and, where the port speaks gRPC, the server said its greeting.
OPEN = "open"
#: A packet came back that says that nothing listens: the way is open, or a firewall rejects.
REFUSED = "refused"
#: Nothing came back.
DROPPED = "dropped"
#: The connection was made, and then nothing came: the process hangs.
SILENT = "silent"
#: What answered is not what Ray has on this port.
FOREIGN = "foreign"
#: Of the range in which Ray's workers listen. Mostly nobody does on the ports that are tried: refused means reachable.
WORKERS = "workers"
#: A node is of no use to Ray without these; the others belong to agents which not every installation of Ray has.
ESSENTIAL = frozenset({"GCS", "dashboard", "node manager", "object manager"})


@dataclass(frozen=True)
class PortSeen:
    """One port as another node sees it.

    Attributes:
        what: GCS, node manager, …, or `WORKERS`.
        answer: `OPEN`, `REFUSED`, `DROPPED`, `SILENT`, `FOREIGN`, or the system's own words.
        ms: until the answer, milliseconds.
    """

    port: int = 0
    what: str = ""
    answer: str = ""
    ms: float = 0.0

    @property
    def answers(self) -> bool:
        """Whether Ray can use it, as far as can be told."""
        return self.answer == OPEN or (self.what not in ESSENTIAL and self.answer in (REFUSED, SILENT))

    def told(self, node: str) -> str:
        """What was seen, for a user."""
        said = {
            REFUSED: "refuses the connection: nothing listens there, or a firewall rejects it",
            DROPPED: f"gave no answer in {self.ms / 1000:.1f} s: a firewall drops it",
            SILENT: f"takes the connection but says nothing in {self.ms / 1000:.1f} s",
            FOREIGN: "answers, but not as Ray does: another program has the port",
        }
        return f"{self.what} of {node} (TCP {self.port}) {said.get(self.answer, f'cannot be reached: {self.answer}')}"


@dataclass(frozen=True)
class GpuFacts:
    """Of one machine.

    Attributes:
        nvidia, amd: cards on the PCI bus, or device files where there are more of those. AMD's display chips count only
            where ROCm is installed.
        driver: NVIDIA's kernel driver is loaded.
        devices: files /dev/nvidia0, /dev/nvidia1, …
        library: libnvidia-ml.so.1 was found.
        kfd: /dev/kfd is there, by which ROCm reaches AMD's cards.
        amdsmi: that package is in Ray's environment.
        in_container: this node lives in a container.
        hidden_by: the variable of Ray's environment that hides all cards; empty where none does.
        asked: the value of ``--num-gpus``; empty where it was not given.
        interpreter: of Ray's environment.
    """

    nvidia: int = 0
    amd: int = 0
    driver: bool = False
    devices: int = 0
    library: bool = False
    kfd: bool = False
    amdsmi: bool = False
    in_container: bool = False
    hidden_by: str = ""
    asked: str = ""
    interpreter: str = ""

    @property
    def cards(self) -> str:
        """``2 NVIDIA GPUs``; empty where the machine has none."""
        kinds = (("NVIDIA", self.nvidia), ("AMD", self.amd))
        return " and ".join(f"{count} {kind} GPU{'s' if count > 1 else ''}" for kind, count in kinds if count)


#: What the supervisor says of itself; the same words as in `meshray.raynode.supervisor`.
STARTING, RUNNING, BACKOFF = "starting", "running", "backoff"
#: What a token file is compared with.
SAME, MISSING, OTHER = "same", "missing", "other"
#: Who of Ray's own processes has ended, or cannot answer, is told by these names.
RAYLET, GCS, DASHBOARD = "raylet", "gcs_server", "dashboard"


@dataclass(frozen=True)
class RayProcess:
    """One of Ray's own processes. ``stopped``: a signal holds it (SIGSTOP, a debugger)."""

    name: str = ""
    pid: int = 0
    stopped: bool = False


@dataclass(frozen=True)
class TableRow:
    """A node that Ray's own table calls ALIVE.

    Attributes:
        here: the address is one of the machine that tells this.
    """

    ip: str = ""
    name: str = ""
    here: bool = False


@dataclass(frozen=True)
class RayFacts:
    """Of one node.

    Attributes:
        why_none: why no Ray is meant to run here; empty where one is.
        address_error: why the node cannot reach its own overlay address; empty where it can. None: not tried.
        install_error: what is wrong with the Ray of this node, with ``install_fix``; None: not known.
        ray, python: what is installed now, of the interpreter ``interpreter``; empty: not known.
        started: the Ray that the agent found when it began.
        head_ray, head_python: of the head, by the map.
        state: of the supervisor, without its reason; ``error`` is the reason.
        deaths: how often in a row Ray ended soon after its start.
        processes: of Ray that live; None: not looked.
        ports: how the ports of each node (by name, this one included) answered to this node.
        token_file: `SAME` as the mesh's token, `MISSING`, `OTHER`, or why it cannot be read; empty: not looked.
        with_token, without_token: HTTP status of the head's dashboard; 0: no answer.
        table: the nodes of Ray's table; None: it could not be asked.
        gpus: what of GPUs the machine has; None: not looked.
    """

    why_none: str = ""
    is_head: bool = False
    ip: str = ""
    address_error: str | None = None
    address_ms: float = 0.0
    install_error: str | None = None
    install_fix: str = ""
    ray: str = ""
    python: str = ""
    interpreter: str = ""
    started: str = ""
    head_ray: str = ""
    head_python: str = ""
    state: str = ""
    error: str = ""
    deaths: int = 0
    processes: tuple[RayProcess, ...] | None = None
    ports: Mapping[str, tuple[PortSeen, ...]] = field(default_factory=dict)
    token_path: str = ""
    token_file: str = ""
    with_token: int = 0
    without_token: int = 0
    table: tuple[TableRow, ...] | None = None
    gpus: GpuFacts | None = None
