"""What one node finds out about the machine that it runs on."""

from __future__ import annotations

from dataclasses import dataclass

#: How the process of `ray start` is called among `ProcessLimits`.
RAY = "Ray"


@dataclass(frozen=True)
class Folder:
    """A folder and its file system.

    Attributes:
        use: what it is for.
        total: bytes, with ``free`` those that are left to this user.
        inodes_free: None where the file system has no fixed number of them.
        error: why it could not be looked at.
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
    """Proxies in somebody's environment.

    Attributes:
        whose: ``the agent``, ``Ray``, ``this shell``.
        variables: names of the proxy variables that are set; their values may hold passwords.
        excepted: no_proxy keeps them away from the overlay.
        grpc: RAY_grpc_enable_http_proxy is on, so that Ray heeds them.
    """

    whose: str = ""
    variables: tuple[str, ...] = ()
    excepted: bool = True
    grpc: bool = False


@dataclass(frozen=True)
class MachineFacts:
    """Everything here is None or empty where it is not known.

    Attributes:
        with_ray: Ray is meant to run here.
        clock_offset_s: this machine's clock less the coordinator's.
        clock_unknown: why that is not known.
        rmem_max, wmem_max: net.core.rmem_max and wmem_max, bytes.
        conntrack_count, conntrack_max: connections that the kernel keeps, and how many it can.
        proxies: only environments with a proxy in them.
        overlay: the mesh's network, for no_proxy.
        hostname_error: what the resolver said; ``hostname_s`` how long it took.
        shm_total, shm_free: bytes of /dev/shm.
        object_store: bytes that Ray has, or will take; ``object_store_asked``: a user said so.
        runs_as_root: meshray does, on the machine itself.
        installation: the environment from which it runs; ``weak_part``: what of it others than root can change;
            ``weak_is_meant``: a user said so.
        slow_storage: Ray may take a disk instead (RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE=1).
    """

    with_ray: bool = False
    clock_offset_s: float | None = None
    clock_unknown: str = ""
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
    processes: tuple[ProcessLimits, ...] = ()
    folders: tuple[Folder, ...] = ()
    runs_as_root: bool = False
    installation: str = ""
    weak_part: str = ""
    weak_is_meant: bool = False
