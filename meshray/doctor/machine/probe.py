"""Examine clock, memory, limits, folders, names and proxies."""

from __future__ import annotations

import asyncio
import email.utils
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from ipaddress import ip_network
from pathlib import Path

from meshray.doctor.context import Context
from meshray.doctor.deadlines import in_thread, in_time
from meshray.doctor.machine.facts import RAY, Folder, MachineFacts, ProcessLimits, ProxyEnvironment
from meshray.home import Home
from meshray.linux import memory_limit, overlay_netns, procfs
from meshray.linux.process import ManagedProcess
from meshray.linux.time_service import is_synchronised
from meshray.linux.trusted_files import is_root
from meshray.model.address import Endpoint
from meshray.model.ray_options import object_store, value_of
from meshray.raynode.temp_folder import OPTION, default_folder
from meshray.runtime.privileged.boundary import is_container, untrusted_part

_SHARED = "/dev/shm"  # noqa: S108
#: The timeout for the coordinator's answer, and for the own name; Ray has no such limit.
_CLOCK_S, _NAME_S = 2.5, 2.2
#: The timeout for the examination of the installation, which the next report then includes.
_INSTALLATION_S = 3.0
#: For a coordinator with many interfaces, the first addresses are sufficient.
_ADDRESSES = 6
_PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")
_TRUE = frozenset({"1", "true"})


async def measure(context: Context) -> MachineFacts:
    """Return the facts of this node."""
    (offset, unknown), facts, weak_part = await asyncio.gather(
        _clock(context),
        _with_hostname(partial(_local_facts, context)),
        # It starts a process, which may take longer than all others together on a busy machine.
        in_time(in_thread(untrusted_part), _INSTALLATION_S),
    )
    return replace(
        facts,
        weak_part=weak_part or "",
        clock_offset_s=offset,
        clock_unknown=unknown,
        clock_is_reference=context.hosts_coordinator,
        clock_synchronised=is_synchronised(),
    )


async def measure_before_ray(home: Home, environ: Mapping[str, str], ray_args: Sequence[str]) -> MachineFacts:
    """Return the facts that matter for Ray's start."""
    return await _with_hostname(partial(static_facts, home, environ, ray_args))


async def _with_hostname(read_static_facts: Callable[[], MachineFacts]) -> MachineFacts:
    (error, seconds), facts = await asyncio.gather(_resolve_own_name(), in_thread(read_static_facts))
    return replace(facts, hostname=socket.gethostname(), hostname_error=error, hostname_s=seconds)


async def _clock(context: Context) -> tuple[float | None, str]:
    """Return (this clock minus the coordinator's in seconds, why that is not known)."""
    if context.hosts_coordinator:
        return None, "the coordinator runs on this machine: it is the mesh's clock"
    if not context.coordinators or not context.fingerprint:
        return None, "this machine is not a node"
    answers = await asyncio.gather(*(_offset(item, context.fingerprint) for item in context.coordinators[:_ADDRESSES]))
    known = [answer for answer in answers if answer is not None]
    # The quickest answer is the most exact.
    return (min(known)[1], "") if known else (None, "the coordinator cannot be asked")


async def _offset(coordinator: Endpoint, fingerprint: bytes) -> tuple[float, float] | None:
    """Return (round trip, difference) in seconds, from the Date of an answer, which has whole seconds."""
    import aiohttp

    from meshray.client.resolver import Resolver

    before, began = time.time(), time.monotonic()
    connector = aiohttp.TCPConnector(resolver=Resolver())
    timeout = aiohttp.ClientTimeout(total=_CLOCK_S)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, trust_env=True, timeout=timeout) as session,
            session.get(f"https://{coordinator}/v1/hello", ssl=aiohttp.Fingerprint(fingerprint)) as response,
        ):
            date = email.utils.parsedate_to_datetime(response.headers.get("Date", ""))
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError):
        return None
    round_trip = time.monotonic() - began
    return round_trip, before + round_trip / 2 - (date.timestamp() + 0.5)


async def _resolve_own_name() -> tuple[str, float | None]:
    """Return (the resolver's error, the seconds that it took)."""
    if overlay_netns.entered() is not None:
        return "", 0.0  # The name is in the hosts file that Ray reads.
    began: list[float] = []

    def resolve() -> float:
        began.append(time.monotonic())
        socket.getaddrinfo(socket.gethostname(), None)
        return time.monotonic() - began[0]

    try:
        return "", await asyncio.wait_for(in_thread(resolve), _NAME_S)
    except asyncio.TimeoutError:
        error = "no answer"
    except OSError as failure:
        error = failure.strerror or str(failure)
    return (error, time.monotonic() - began[0]) if began else ("", None)


def static_facts(
    home: Home, environ: Mapping[str, str], ray_args: Sequence[str] | None, *, is_agent: bool = False
) -> MachineFacts:
    """Return the facts that can be read within a millisecond: folders, limits, shared memory.

    Args:
        ray_args: the arguments of `ray start`; None: no Ray should run here.
        is_agent: this process is the node's agent.
    """
    store, is_configured = object_store(ray_args or (), _meminfo("MemAvailable") or 0)
    shm_total, shm_free = _space(overlay_netns.path(_SHARED))
    return MachineFacts(
        with_ray=ray_args is not None,
        shm_total=shm_total,
        shm_free=shm_free,
        object_store=store,
        object_store_asked=is_configured,
        slow_storage=environ.get("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE") == "1",
        processes=tuple(_processes(home, is_agent=is_agent)),
        folders=tuple(_folders(home, environ, ray_args)),
    )


def of_agent(home: Home, environ: Mapping[str, str], ray_args: Sequence[str] | None, *, trusted: bool) -> MachineFacts:
    """Return the same facts for the node's agent, which may have examined the installation."""
    facts = static_facts(home, environ, ray_args, is_agent=True)
    return replace(_installed(facts, trusted=trusted), weak_part=untrusted_part(examine=False))


def _installed(facts: MachineFacts, *, trusted: bool) -> MachineFacts:
    return replace(facts, runs_as_root=is_root() and not is_container(), installation=sys.prefix, weak_is_meant=trusted)


def _local_facts(context: Context) -> MachineFacts:
    """Return the facts that come from this machine alone."""
    ray_args = context.ray_plan.extra_args if context.ray_plan is not None else None
    facts = static_facts(context.home, context.environ, ray_args, is_agent=context.status is not None)
    overlay = context.mesh_map.mesh.network.cidr if context.mesh_map else None
    memory = memory_limit.decisive_limit(ManagedProcess(context.home.pid_file("ray")).pid or os.getpid())
    return replace(
        _installed(facts, trusted=context.trusts_user_environment),
        rmem_max=_number("/proc/sys/net/core/rmem_max"),
        wmem_max=_number("/proc/sys/net/core/wmem_max"),
        conntrack_count=_number("/proc/sys/net/netfilter/nf_conntrack_count"),
        conntrack_max=_number("/proc/sys/net/netfilter/nf_conntrack_max"),
        proxies=tuple(
            found for whose, one in _environments(context) if (found := proxies_of(whose, one, str(overlay or "")))
        ),
        overlay=str(overlay or ""),
        memory_limit=memory.limit if memory is not None else None,
        memory_used=memory.used if memory is not None else 0,
        memory_group=memory.group if memory is not None else "",
    )


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None


def _meminfo(name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _space(folder: Path) -> tuple[int | None, int | None]:
    try:
        found = os.statvfs(folder)
    except OSError:
        return None, None
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def _environments(context: Context) -> Iterator[tuple[str, Mapping[str, str]]]:
    yield ("the agent" if context.status is not None else "this shell"), context.environ
    ray = ManagedProcess(context.home.pid_file("ray")).pid
    if ray is None:
        return
    try:
        raw = Path(f"/proc/{ray}/environ").read_bytes()
    except OSError:
        return
    pairs = (item.partition("=") for item in raw.decode(errors="replace").split("\0") if "=" in item)
    yield "Ray", {name: value for name, _, value in pairs}


def proxies_of(whose: str, environ: Mapping[str, str], overlay: str) -> ProxyEnvironment | None:
    """Return the proxies of an environment (pure); None if it has none.

    gRPC supports networks in no_proxy, and prefers no_grpc_proxy (its default_http_proxy_mapper.md).

    >>> proxies_of("Ray", {"https_proxy": "http://p:3128", "no_proxy": "10.99.0.0/16"}, "10.99.0.0/16").excepted
    True
    """
    names = tuple(name for name in environ if name.lower() in _PROXIES and environ[name])
    if not names:
        return None
    grpc = environ.get("RAY_grpc_enable_http_proxy", "").lower() in _TRUE
    exceptions = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    if grpc and environ.get("no_grpc_proxy"):
        exceptions = environ["no_grpc_proxy"]
    covered = not overlay or any(_covers(item.strip(), overlay) for item in exceptions.split(","))
    return ProxyEnvironment(whose, names, covered, grpc)


def _covers(item: str, overlay: str) -> bool:
    if item == "*":
        return True
    try:
        network, wanted = ip_network(item, strict=False), ip_network(overlay)
    except ValueError:
        return False
    return network.version == wanted.version and network.supernet_of(wanted)  # type: ignore[arg-type]


def _processes(home: Home, *, is_agent: bool) -> Iterator[ProcessLimits]:
    if is_agent:
        yield from _limits("the agent", os.getpid())
    for part, name in (("coordinator", "the coordinator"), ("engine", "the engine"), ("ray", RAY)):
        pid = ManagedProcess(home.pid_file(part)).pid
        if pid is not None:
            yield from _limits(name, pid)


def _limits(name: str, pid: int) -> Iterator[ProcessLimits]:
    folder = Path(f"/proc/{pid}")
    try:
        found = re.search(r"^Max open files\s+(\d+)\s+(\d+)", (folder / "limits").read_text(), re.MULTILINE)
        used = sum(1 for _ in (folder / "fd").iterdir())
    except OSError:  # It ended, or belongs to another user.
        return
    if found:
        yield ProcessLimits(name, pid, int(found[1]), int(found[2]), used)


def _folders(home: Home, environ: Mapping[str, str], ray_args: Sequence[str] | None) -> Iterator[Folder]:
    mounts = _mounts()
    yield _folder("meshray's state", home.state, mounts)
    yield _folder("meshray's sockets", home.run, mounts)
    if ray_args is not None:
        temp = overlay_netns.path(_ray_folder(home, environ, ray_args))
        yield _folder("Ray's logs and spilled objects", temp, mounts, for_ray=True)


def _ray_folder(home: Home, environ: Mapping[str, str], ray_args: Sequence[str]) -> str:
    """Return the folder of Ray's sessions, which may be on a separate file system: that of the running Ray, if any."""
    pid = ManagedProcess(home.pid_file("ray")).pid
    running = procfs.read(pid, "cmdline").decode(errors="replace").split("\0") if pid is not None else ()
    return value_of(running, OPTION) or value_of(ray_args, OPTION) or str(default_folder(environ))


def _folder(use: str, path: Path, mounts: Mapping[str, str], *, for_ray: bool = False) -> Folder:
    existing = next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))
    try:
        found = os.statvfs(existing)
    except OSError as error:
        return Folder(use, str(path), error=error.strerror or str(error), for_ray=for_ray)
    kind = next((mounts[str(folder)] for folder in (existing, *existing.parents) if str(folder) in mounts), "")
    return Folder(
        use,
        str(path),
        total=found.f_blocks * found.f_frsize,
        free=found.f_bavail * found.f_frsize,
        inodes_free=found.f_favail if found.f_files else None,
        read_only=bool(found.f_flag & os.ST_RDONLY),
        kind=kind,
        for_ray=for_ray,
    )


def _mounts() -> dict[str, str]:
    """Return the kind of file system by mount point; of several, the uppermost."""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return {}
    return {fields[1]: fields[2] for line in lines if len(fields := line.split()) > 2}
