"""Checks of the machine under the mesh and Ray: memory, files, limits, names (pure)."""

from __future__ import annotations

from functools import partial

from meshray.doctor.host_specs import host_spec
from meshray.doctor.machine.facts import RAISE_MEMORY, RAY, Folder, MachineFacts
from meshray.doctor.report import FAIL, OK, SKIP, WARN, Finding, Spec
from meshray.model.ray_options import LEAST_STORE

_MB = 1024**2

#: Linux's default (net.core.rmem_default): a smaller buffer loses bursts.
_LEAST_BUFFER = 212_992
CONNTRACK_WARN, CONNTRACK_FAIL = 0.8, 0.95
#: If resolving the own name takes longer, each of Ray's processes starts that much later.
_SLOW_NAME_S = 1.5
#: Ray warns below this (scripts.py of ray: "File descriptor limit … is too low").
_RAYS_FILES = 8192
#: What a fix sets.
_ENOUGH_FILES = 65536
#: Enough for a coordinator or agent with a few dozen nodes; a relay needs two for each node that it carries.
_LEAST_FILES = 256
_FILES_IN_USE = 0.9
#: For logs, the map, the store's journal.
_LEAST_STATE = 16 * _MB
#: A session of Ray begins with about 60 files.
_LEAST_INODES = 100
#: At this share Ray accepts no more work (local_fs_capacity_threshold of ray_config_def.h); and the share from which it
#: matters.
_RAY_DISK_FULL = 0.95
_RAY_DISK_WARN = 1024 * _MB
#: Ray kills tasks at 95 % of the group's limit (memory_usage_threshold of ray_config_def.h), the kernel at 100 %.
_MEMORY_WARN = 0.9
_KILLS = "at 100 % the kernel kills a process of it"


def install_trusted(facts: MachineFacts) -> Finding:
    """Check that only root can change the program that root runs."""
    if not facts.runs_as_root:
        return Finding(SKIP, "meshray does not run as root here, or runs in its own container")
    if not facts.weak_part:
        return Finding(OK, f"only root can change {facts.installation}")
    evidence = f"meshray runs as root from {facts.installation}, and other users can change {facts.weak_part}"
    if facts.weak_is_meant:
        return Finding(
            WARN,
            f"{evidence}, as --trust-user-environment allows: a Ray task can become root",
            f"let only root change {facts.weak_part}; or meshray leave, then join again without "
            "--trust-user-environment",
        )
    return Finding(FAIL, f"{evidence}: a Ray task can become root", "meshray down; meshray up")


def socket_buffers(facts: MachineFacts) -> Finding:
    """Check that socket buffers can hold bursts."""
    sizes = {"net.core.rmem_max": facts.rmem_max, "net.core.wmem_max": facts.wmem_max}
    known = {name: size for name, size in sizes.items() if size is not None}
    if not known:
        return Finding(SKIP, "this network namespace does not show net.core.rmem_max")
    evidence = ", ".join(f"{name} {size}" for name, size in known.items())
    if min(known.values()) < _LEAST_BUFFER:
        return Finding(
            WARN, f"{evidence}: bursts are lost", "sysctl net.core.rmem_max=7500000 net.core.wmem_max=7500000"
        )
    return Finding(OK, evidence)


def conntrack_room(facts: MachineFacts) -> Finding:
    """Check the connection table: a full one silently drops every new connection."""
    count, maximum = facts.conntrack_count, facts.conntrack_max
    if count is None or not maximum:
        return Finding(SKIP, "the kernel keeps no list of connections")
    evidence = f"{count} of {maximum} connections ({count / maximum:.0%})"
    fix = f"sysctl net.netfilter.nf_conntrack_max={maximum * 4}"
    if count >= maximum * CONNTRACK_FAIL:
        return Finding(FAIL, f"{evidence}: the kernel drops new ones", fix)
    return Finding(
        WARN if count >= maximum * CONNTRACK_WARN else OK, evidence, fix if count >= maximum * CONNTRACK_WARN else ""
    )


def proxy_variables(facts: MachineFacts) -> Finding:
    """Check proxy variables. Ray's gRPC uses proxies only if enabled; dashboards, and HTTP clients in jobs, always."""
    affected = [one for one in facts.proxies if not one.excepted]
    evidence = "; ".join(f"{one.whose}: {', '.join(one.variables)}" for one in (affected or facts.proxies))
    broken = next((one for one in affected if one.grpc), None)
    if broken and facts.with_ray:
        return Finding(
            FAIL,
            f"RAY_grpc_enable_http_proxy sends Ray's calls over the overlay to a proxy ({evidence})",
            f"unset RAY_grpc_enable_http_proxy, or export no_proxy=$no_proxy,{facts.overlay}; meshray down; meshray up",
        )
    if affected:
        return Finding(
            WARN,
            f"HTTP to overlay addresses goes to a proxy ({evidence})",
            f"export no_proxy=$no_proxy,{facts.overlay}, or: meshray run -- COMMAND",
        )
    return Finding(OK, f"the overlay is excluded ({evidence})" if evidence else "no proxy is set")


def hostname_resolves(facts: MachineFacts) -> Finding:
    """Check that the own name resolves: Ray resolves it many times at its start."""
    if facts.hostname_s is None:
        return Finding(SKIP, "it was not tried")
    fix = f"echo '127.0.1.1 {facts.hostname}' >> /etc/hosts"
    severity = FAIL if facts.with_ray else WARN
    if facts.hostname_error:
        evidence = f"{facts.hostname} does not resolve ({facts.hostname_error}, {facts.hostname_s:.1f} s)"
        return Finding(severity, f"{evidence}: Ray hangs at its start", fix)
    if facts.hostname_s > _SLOW_NAME_S:
        return Finding(WARN, f"{facts.hostname} takes {facts.hostname_s:.1f} s to resolve: Ray starts slowly", fix)
    return Finding(OK, facts.hostname)


def shared_memory(facts: MachineFacts) -> Finding:
    """Check /dev/shm, which holds Ray's object store."""
    if not facts.with_ray:
        return Finding(SKIP, "Ray does not run here")
    if facts.shm_total is None:
        return Finding(FAIL, "there is no /dev/shm", "mount -t tmpfs tmpfs /dev/shm; in a container: --shm-size=4g")
    store, total = facts.object_store or 0, facts.shm_total
    has = f"/dev/shm has {total // _MB} MB"  # noqa: S108 - it is where Ray's object store is
    if facts.shm_free is not None and facts.shm_free < total and all(one.name != RAY for one in facts.processes):
        # A running Ray has already taken its part.
        has, total = f"{has}, {facts.shm_free // _MB} MB of them free", facts.shm_free
    evidence = f"{has}, the object store needs {store // _MB} MB"
    fix = f"mount -o remount,size={max(2 * store, 512 * _MB) // _MB}m /dev/shm; in a container: --shm-size"
    if total < LEAST_STORE or (store > total and facts.object_store_asked and not facts.slow_storage):
        return Finding(FAIL, f"{evidence}: Ray does not start", fix)
    if store > total:
        return Finding(WARN, f"{evidence}: Ray makes it smaller, or puts it on the disk", fix)
    return Finding(OK, evidence if store else has)


def memory_limit(facts: MachineFacts) -> Finding:
    """Check the memory limit of the control group: at its end the kernel kills processes of Ray, or the agent."""
    if facts.memory_limit is None:
        return Finding(OK, "no control group limits the memory below the machine's")
    used, limit = facts.memory_used, facts.memory_limit
    evidence = f"{used // _MB} of {limit // _MB} MB ({used / limit:.0%}) of the control group {facts.memory_group}"
    if used < limit * _MEMORY_WARN:
        return Finding(OK, evidence)
    consequence = "Ray kills tasks at 95 %, and the kernel any process at 100 %" if facts.with_ray else _KILLS
    return Finding(WARN, f"{evidence} are used: {consequence}", RAISE_MEMORY)


def open_files(facts: MachineFacts) -> Finding:
    """Check the limit of open files: every connection is a file."""
    if not facts.processes:
        return Finding(SKIP, "neither agent nor Ray runs here")
    for one in facts.processes:
        evidence = f"{one.name} (pid {one.pid}) has {one.used} open of {one.soft} (hard limit {one.hard})"
        # Without CAP_SYS_RESOURCE, as in containers, only the soft limit can be raised, up to the hard one.
        limit = f"{min(one.hard, _ENOUGH_FILES)}:" if one.hard >= _RAYS_FILES else str(_ENOUGH_FILES)
        fix = f"prlimit --pid {one.pid} --nofile={limit}; permanently: LimitNOFILE=65536 in the unit, or ulimit -n"
        if one.soft < _LEAST_FILES or one.used >= one.soft * _FILES_IN_USE:
            return Finding(FAIL, evidence, fix)
        if facts.with_ray and one.hard < _RAYS_FILES:
            return Finding(WARN, f"{evidence}: Ray needs {_RAYS_FILES}", fix)
    return Finding(OK, ", ".join(f"{one.name}: {one.used} of {one.soft}" for one in facts.processes))


def disk_space(facts: MachineFacts) -> Finding:
    """Check the disks of state, sockets, and spilled objects."""
    if not facts.folders:
        return Finding(SKIP, "the folders were not examined")
    found = [finding for finding in map(_folder, facts.folders) if finding is not None]
    order = (FAIL, WARN, SKIP)
    evidence = ", ".join(f"{one.path} {one.free // _MB} MB free" for one in facts.folders)
    return min(found, key=lambda finding: order.index(finding.status), default=Finding(OK, evidence))


def _folder(one: Folder) -> Finding | None:
    what = f"{one.path} ({one.use})"
    if one.error:
        return Finding(SKIP, f"{what}: {one.error}")
    if one.read_only:
        return Finding(FAIL, f"{what} is read-only", f"mount -o remount,rw $(findmnt -no TARGET -T {one.path})")
    if one.inodes_free is not None and one.inodes_free < _LEAST_INODES:
        left = f"only {one.inodes_free} inodes" if one.inodes_free else "no inodes"
        return Finding(FAIL, f"{what} has {left} left for new files", f"df -i {one.path}")
    return _ray_folder(one, what) if one.for_ray else _state_folder(one, what)


def _state_folder(one: Folder, what: str) -> Finding | None:
    if one.free >= _LEAST_STATE:
        return None
    return Finding(FAIL, f"{what} has only {one.free // 1024} KB free", _room(one))


def _ray_folder(one: Folder, what: str) -> Finding | None:
    if one.free < one.total * (1 - _RAY_DISK_FULL):
        return Finding(FAIL, f"{what} is {1 - one.free / one.total:.0%} full: Ray accepts no more work", _room(one))
    if one.free < _RAY_DISK_WARN:
        return Finding(WARN, f"{what} has only {one.free // _MB} MB free", _room(one))
    if one.kind.startswith("nfs"):
        return Finding(WARN, f"{what} is on {one.kind}: Ray is slow there", "-- --temp-dir=/var/tmp/ray-mesh")
    return None


def _room(one: Folder) -> str:
    return f"df -h {one.path}; du -xh --max-depth=1 {one.path}"


_spec = partial(host_spec, lambda host: host.machine)
#: The requirements of an agent: checked first, and without an agent too.
REQUIREMENTS: tuple[Spec, ...] = (
    _spec("disk_space", "free space in the folders", disk_space),
    _spec("install_trusted", "meshray's files, which root runs", install_trusted),
    _spec("open_files", "limit of open files", open_files),
)
SPECS: tuple[Spec, ...] = (
    _spec("socket_buffers", "socket buffers", socket_buffers),
    _spec("conntrack_room", "free entries in the list of connections", conntrack_room),
    _spec("hostname_resolves", "the machine's own name", hostname_resolves),
    _spec("shared_memory", "shared memory for the object store", shared_memory),
    _spec("memory_limit", "memory limit of the control group", memory_limit),
    _spec("proxy_variables", "proxy variables", proxy_variables),
)
#: Checks that are almost free: they also run before each start of Ray and for each status, as far as their facts are
#: known there.
QUICK: tuple[Spec, ...] = tuple(
    spec
    for spec in (*REQUIREMENTS, *SPECS)
    if spec.code in {"disk_space", "install_trusted", "open_files", "hostname_resolves", "shared_memory"}
)
