"""The facts about the machine on which one node runs."""

from __future__ import annotations

from dataclasses import dataclass

#: The name of `ray start` among `ProcessLimits`.
RAY = "Ray"
#: The fix for a memory limit that is used up, by what sets such limits.
RAISE_MEMORY = (
    "raise the limit where it is set (docker run --memory, MemoryMax= of the unit, resources.limits.memory of the "
    "pod), or run fewer tasks at a time"
)


@dataclass(frozen=True)
class Folder:
    """A folder and its file system.

    Attributes:
        use: its purpose.
        total: bytes; ``free``: bytes available to this user.
        inodes_free: None if the file system has no fixed number of them.
        error: why it could not be examined.
    """

    use: str = ""
    path: str = ""
    total: int = 0
    free: int = 0
    inodes_free: int | None = None
    read_only: bool = False
    kind: str = ""
    error: str = ""
    for_ray: bool = False


@dataclass(frozen=True)
class ProcessLimits:
    """Open files of one process: the soft and the hard limit, and how many it has."""

    name: str = ""
    pid: int = 0
    soft: int = 0
    hard: int = 0
    used: int = 0


@dataclass(frozen=True)
class ProxyEnvironment:
    """Proxies in one environment.

    Attributes:
        whose: ``the agent``, ``Ray``, ``this shell``.
        variables: names of the proxy variables that are set; their values may hold passwords.
        excepted: no_proxy excludes the overlay.
        grpc: RAY_grpc_enable_http_proxy is on, so Ray uses them.
    """

    whose: str = ""
    variables: tuple[str, ...] = ()
    excepted: bool = True
    grpc: bool = False


@dataclass(frozen=True)
class MachineFacts:
    """The machine facts of one node. Unknown values are None or empty.

    Attributes:
        with_ray: Ray should run here.
        clock_offset_s: this machine's clock minus the coordinator's, seconds.
        clock_unknown: why that is not known.
        clock_is_reference: the coordinator runs here: the other clocks are compared with this one.
        clock_synchronised: a time service keeps the kernel's clock; None: not known.
        rmem_max, wmem_max: net.core.rmem_max and wmem_max, bytes.
            conntrack_count, conntrack_max: connections that the kernel tracks, and their maximum.
        proxies: only environments with a proxy in them.
        overlay: the mesh's network, for no_proxy.
        hostname_error: the resolver's error; ``hostname_s``: the seconds that it took. shm_total, shm_free: bytes of
            /dev/shm.
        object_store: bytes that Ray has, or will take; ``object_store_asked``: a user set them.
        runs_as_root: meshray runs as root, on the machine itself.
        installation: the environment from which it runs; ``weak_part``: the part of it that users other than root can
            change; ``weak_is_meant``: a user allowed that.
        slow_storage: Ray may take a disk instead (RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE=1).
        memory_limit: bytes of the control group whose limit Ray, or the agent, reaches first; None: no such limit.
        memory_used: bytes of it that the kernel cannot drop at once; ``memory_group``: its path.
    """

    with_ray: bool = False
    clock_offset_s: float | None = None
    clock_unknown: str = ""
    clock_is_reference: bool = False
    clock_synchronised: bool | None = None
    rmem_max: int | None = None
    wmem_max: int | None = None
    conntrack_count: int | None = None
    conntrack_max: int | None = None
    proxies: tuple[ProxyEnvironment, ...] = ()
    overlay: str = ""
    hostname: str = ""
    hostname_error: str = ""
    hostname_s: float | None = None
    shm_total: int | None = None
    shm_free: int | None = None
    object_store: int | None = None
    object_store_asked: bool = False
    slow_storage: bool = False
    memory_limit: int | None = None
    memory_used: int = 0
    memory_group: str = ""
    processes: tuple[ProcessLimits, ...] = ()
    folders: tuple[Folder, ...] = ()
    runs_as_root: bool = False
    installation: str = ""
    weak_part: str = ""
    weak_is_meant: bool = False
