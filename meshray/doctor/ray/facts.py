"""The facts about one node's Ray, and about the others' ports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: The connection was established and, if the port speaks gRPC, the server sent its greeting.
OPEN = "open"
#: A packet came back that refuses the connection: the path is open, or a firewall rejects.
REFUSED = "refused"
#: No packet came back.
DROPPED = "dropped"
#: The connection was established, and then nothing came: the process hangs.
SILENT = "silent"
#: The server that answered is not Ray's on this port.
FOREIGN = "foreign"
#: A port in the range of Ray's workers. Usually no worker listens on the tested ports: refused means reachable.
WORKERS = "workers"
#: Ray cannot use a node without these; the others belong to agents that not every installation of Ray has.
ESSENTIAL = frozenset({"GCS", "dashboard", "node manager", "object manager"})


@dataclass(frozen=True)
class PortAnswer:
    """One port from another node's point of view.

    Attributes:
        what: GCS, node manager, …, or `WORKERS`.
        answer: `OPEN`, `REFUSED`, `DROPPED`, `SILENT`, `FOREIGN`, or the system's own message.
        ms: milliseconds until the answer.
    """

    port: int = 0
    what: str = ""
    answer: str = ""
    ms: float = 0.0

    @property
    def answers(self) -> bool:
        """Whether Ray can use the port, as far as is known."""
        return self.answer == OPEN or (self.what not in ESSENTIAL and self.answer in (REFUSED, SILENT))

    def describe(self, node: str) -> str:
        """Return the result, for a user."""
        results = {
            REFUSED: "refuses the connection: nothing listens there, or a firewall rejects it",
            DROPPED: f"gave no answer in {self.ms / 1000:.1f} s: a firewall drops it",
            SILENT: f"accepts the connection but sends nothing for {self.ms / 1000:.1f} s",
            FOREIGN: "answers, but not as Ray does: another program has the port",
        }
        return (
            f"{self.what} of {node} (TCP {self.port}) {results.get(self.answer, f'cannot be reached: {self.answer}')}"
        )


@dataclass(frozen=True)
class GpuFacts:
    """The GPU facts of one machine.

    Attributes:
        nvidia, amd: cards on the PCI bus, or device files if there are more of those. AMD's display chips count only if
        ROCm is installed.
        driver: NVIDIA's kernel driver is loaded.
        devices: files /dev/nvidia0, /dev/nvidia1, …
        library: libnvidia-ml.so.1 was found.
        kfd: /dev/kfd exists, through which ROCm reaches AMD's cards.
        amdsmi: Ray's environment contains that package.
        in_container: this node runs in a container.
        hidden_by: the variable of Ray's environment that hides all cards; empty if none does.
        asked: the value of ``--num-gpus``; empty if not given.
        interpreter: the interpreter of Ray's environment.
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
        """``2 NVIDIA GPUs``; empty if the machine has none."""
        kinds = (("NVIDIA", self.nvidia), ("AMD", self.amd))
        return " and ".join(f"{count} {kind} GPU{'s' if count > 1 else ''}" for kind, count in kinds if count)


#: The supervisor's states, with the same names as in `meshray.raynode.supervisor`.
STARTING, RUNNING, BACKOFF = "starting", "running", "backoff"
#: For this long a Ray that ended and was started again is mentioned: tasks of it may have failed, seconds.
RECENT_END_S = 600.0


def recent_end(ago_s: float | None, because: str) -> str:
    """Return the sentence about a Ray that ended recently and was started again; empty if it did not, or long ago."""
    if ago_s is None or ago_s > RECENT_END_S:
        return ""
    return f"Ray ended {ago_s:.0f} s ago and was started again: {because}"


#: The result of comparing a token file.
SAME, MISSING, OTHER = "same", "missing", "other"
#: The names by which Ray's own processes are reported when they have ended or cannot answer.
RAYLET, GCS, DASHBOARD = "raylet", "gcs_server", "dashboard"


@dataclass(frozen=True)
class RayProcess:
    """One of Ray's own processes. ``stopped``: a signal stopped it (SIGSTOP, a debugger)."""

    name: str = ""
    pid: int = 0
    stopped: bool = False


@dataclass(frozen=True)
class TableRow:
    """A node that is ALIVE in Ray's own table.

    Attributes:
        here: the address belongs to the machine that reports this.
    """

    ip: str = ""
    name: str = ""
    here: bool = False


@dataclass(frozen=True)
class RayFacts:
    """The Ray facts of one node.

    Attributes:
        why_none: why no Ray should run here; empty if one should.
        address_error: why the node cannot reach its own overlay address; empty if it can; None: not tried.
        install_error: the fault of this node's Ray installation, with ``install_fix``; None: not known. ray, python:
            the versions installed now for ``interpreter``; empty: not known.
        started: the Ray that the agent found at its start. head_ray, head_python: the head's versions, from the map.
        state: the supervisor's state; ``error`` is its reason.
        deaths: how many times in a row Ray ended soon after its start.
        ended_ago_s: seconds since Ray last ended unexpectedly; None: it did not since the agent's start.
        ended_because: the reason of that end.
        processes: Ray's living processes; None: not examined.
        ports: how the ports of each node (by name, this one included) answered to this node.
        token_file: `SAME` as the mesh's token, `MISSING`, `OTHER`, or why it cannot be read; empty: not examined.
            with_token, without_token: HTTP status of the head's dashboard; 0: no answer.
        table: the nodes of Ray's table; None: it could not be read.
        gpus: the machine's GPUs; None: not examined.
        external: another program starts Ray (``--ray external``); its processes and packages are not examined.
        start_line: then, the command that starts it.
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
    ended_ago_s: float | None = None
    ended_because: str = ""
    processes: tuple[RayProcess, ...] | None = None
    ports: Mapping[str, tuple[PortAnswer, ...]] = field(default_factory=dict)
    token_path: str = ""
    token_file: str = ""
    with_token: int = 0
    without_token: int = 0
    table: tuple[TableRow, ...] | None = None
    gpus: GpuFacts | None = None
    external: bool = False
    start_line: str = ""
