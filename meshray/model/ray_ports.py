"""The TCP ports of Ray on one node: their names, their defaults, and those that a user has chosen.

    >>> take_ports(["--num-cpus=2", "--metrics-export-port=8500"])
    ({'metrics_export': 8500}, ('--num-cpus=2',))
    >>> RayPorts.of({"metrics_export": 8500}).metrics_export
    8500

Three of them are the same in the whole mesh, because every node dials the head there; `meshray init` chooses them and
the map carries them. The others are each node's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from meshray.errors import UsageError
from meshray.protocol.codec import WireError, convert
from meshray.protocol.fields import HIGHEST_PORT, LOWEST_PORT

#: The head's own ports, for the whole mesh.
MESH_WIDE = ("gcs", "dashboard", "ray_client_server")
_WORKER_RANGE = ("min_worker", "max_worker")
#: Bound on every interface, so they must be closed to all but the overlay; on each node, and additionally on the head.
_OPEN = ("node_manager", "object_manager", "dashboard_agent_grpc", "metrics_export")
_HEAD_OPEN = ("gcs", *_OPEN)
#: Bound on the node's overlay address.
_OVERLAY = ("runtime_env_agent", "dashboard_agent_listen")
_HEAD_OVERLAY = ("dashboard", "ray_client_server", *_OVERLAY)
#: Bound on 127.0.0.1 as well.
_LOOPBACK = ("dashboard_agent_listen",)
_HEAD_LOOPBACK = ("ray_client_server", *_LOOPBACK)
#: The ports of the dashboard's and the autoscaler's own metrics, on the head. `ray start` has no option for them.
DASHBOARD_METRIC_PORT, AUTOSCALER_METRIC_PORT = 20107, 20108
#: The ports of Ray Serve's HTTP and gRPC proxies unless an application sets others (ray.serve.config: HTTPOptions,
#: gRPCOptions).
SERVE_PORTS = (8000, 9000)

#: The purpose of each port, for users.
PURPOSES: Mapping[str, str] = {
    "gcs": "GCS",
    "dashboard": "dashboard",
    "ray_client_server": "client server",
    "node_manager": "node manager",
    "object_manager": "object manager",
    "runtime_env_agent": "runtime env agent",
    "dashboard_agent_grpc": "dashboard agent (gRPC)",
    "dashboard_agent_listen": "dashboard agent (HTTP)",
    "metrics_export": "metrics export",
    "min_worker": "first worker port",
    "max_worker": "last worker port",
}
#: The first port that an error suggests in place of an unavailable one.
_OFFERED_FROM = 20200
_RANGE_HINT = "-- --min-worker-port=30000 --max-worker-port=31999"
_FIXED: Mapping[str, int] = {
    "dashboard metrics": DASHBOARD_METRIC_PORT,
    "autoscaler metrics": AUTOSCALER_METRIC_PORT,
}


def option_of(name: str) -> str:
    """Return the option of `ray start` that sets this port.

    >>> option_of("metrics_export"), option_of("gcs")
    ('--metrics-export-port', '--port')
    """
    return "--port" if name == "gcs" else f"--{name.replace('_', '-')}-port"


@dataclass(frozen=True)
class RayPorts:
    """The ports of one node's Ray; each field is named after its option of `ray start`.

    The defaults from 20101 on are not Ray's own, which another Ray on the machine may use. They are below 32768, from
    where the kernel assigns ports to outgoing connections.

    Attributes:
        gcs, dashboard, ray_client_server: ports of the mesh's head. min_worker, max_worker: first and last port of the
        range for workers, drivers and actors.
    """

    gcs: int = 6379
    dashboard: int = 8265
    ray_client_server: int = 10001
    node_manager: int = 20101
    object_manager: int = 20102
    runtime_env_agent: int = 20103
    dashboard_agent_grpc: int = 20104
    dashboard_agent_listen: int = 20105
    metrics_export: int = 20106
    min_worker: int = 10002
    max_worker: int = 19999

    @classmethod
    def of(cls, chosen: Mapping[str, int]) -> RayPorts:
        """Return the defaults, replaced by these ports.

        If the chosen port of the client server is within the range of the workers, and the range is not chosen, the
        range begins after that port, as with Ray's own defaults (10001, then 10002).

        >>> RayPorts.of({"ray_client_server": 10101}).min_worker
        10102
        """
        client = chosen.get("ray_client_server", cls.ray_client_server)
        moves = not chosen.keys() & set(_WORKER_RANGE) and cls.min_worker <= client < cls.max_worker - 1
        return cls(**chosen, **({"min_worker": client + 1} if moves else {}))

    @property
    def workers(self) -> range:
        """The ports of workers, drivers and actors."""
        return range(self.min_worker, self.max_worker + 1)

    @property
    def worker_sample(self) -> tuple[int, int, int]:
        """First, middle and last port of `workers`: a firewall rule for part of the range is rare."""
        return self.min_worker, (self.min_worker + self.max_worker) // 2, self.max_worker

    def open_ports(self, *, head: bool) -> tuple[int, ...]:
        """Ports that Ray binds on every interface, in addition to `workers`."""
        fixed = tuple(_FIXED.values()) if head else ()
        return (*self._values(_HEAD_OPEN if head else _OPEN), *fixed)

    def overlay_ports(self, *, head: bool) -> tuple[int, ...]:
        """Ports that Ray binds on the node's overlay address."""
        return self._values(_HEAD_OVERLAY if head else _OVERLAY)

    def loopback_ports(self, *, head: bool) -> tuple[int, ...]:
        """Return those of `overlay_ports` that Ray binds on 127.0.0.1 as well."""
        return self._values(_HEAD_LOOPBACK if head else _LOOPBACK)

    def options(self, *, head: bool) -> list[str]:
        """Return all of a node's ports as options of `ray start`; a worker gets none of the head's."""
        return [f"{option_of(name)}={port}" for name, port in self.to_json(head=head).items()]

    def purpose(self, port: int, *, head: bool) -> tuple[str, str]:
        """Return the purpose of this port on a node, and the option that changes it; ("", "") for a foreign port."""
        name = next((name for name, own in self.to_json(head=head).items() if own == port), "")
        if name:
            return PURPOSES[name], option_of(name)
        return next((words for words, own in _FIXED.items() if head and own == port), ""), ""

    def changed(self, *, head: bool) -> dict[str, int]:
        """Return the ports of a node that are not the default, by name."""
        default = RayPorts().to_json(head=head)
        return {name: port for name, port in self.to_json(head=head).items() if port != default[name]}

    def to_json(self, *, head: bool) -> dict[str, int]:
        """Return the ports of a node, by name: those of `MESH_WIDE` on the head only."""
        return {field.name: getattr(self, field.name) for field in fields(self) if head or field.name not in MESH_WIDE}

    def _values(self, names: Iterable[str]) -> tuple[int, ...]:
        return tuple(getattr(self, name) for name in names)


def take_ports(args: Sequence[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Split arguments of `ray start` into the ports that they choose, by name, and the rest.

    If an option is repeated the last one counts, as in Ray.

    Raises:
        UsageError: ``bad_port``: a value is not a number from `LOWEST_PORT` to `HIGHEST_PORT`.
    """
    names = {option_of(field.name): field.name for field in fields(RayPorts)}
    chosen: dict[str, int] = {}
    rest: list[str] = []
    words = iter(args)
    for word in words:
        option, equals, value = word.partition("=")
        name = names.get(option.replace("_", "-"))
        if name is None:
            rest.append(word)
        else:
            chosen[name] = _port(option_of(name), value if equals else next(words, ""))
    return chosen, tuple(rest)


def check_ports(chosen: Mapping[str, int], *, head: bool, own: Collection[int] = ()) -> None:
    """Refuse ports with which Ray or meshray could not run.

    Args:
        chosen: as `take_ports` returns them, with those of the mesh if they are known.
        head: the node has the ports of `MESH_WIDE` as well.
        own: the ports of meshray itself.

    Raises:
        UsageError: ``ports_clash``, naming the options and the ports.
    """
    ports = RayPorts.of(chosen)
    if ports.min_worker >= ports.max_worker:
        raise UsageError(
            "ports_clash",
            f"--min-worker-port {ports.min_worker} is not below --max-worker-port {ports.max_worker}",
            hint=_RANGE_HINT,
        )
    owners: dict[int, str] = {port: "meshray itself" for port in own}
    for words, option, port in _singles(ports, head=head):
        if port in owners:
            raise _clash(f"{words} and {owners[port]} would both have port {port}", option, ports, own)
        owners[port] = words
        if port in ports.workers:
            within = f"the worker ports, {ports.min_worker} to {ports.max_worker}"
            raise _clash(f"{words} would have port {port}, which is one of {within}", option, ports, own)
    # A mesh port within the default range is not a fault of these options: Ray's workers skip ports in use.
    inside = next((port for port in own if port in ports.workers), None)
    if inside is not None and set(_WORKER_RANGE) & chosen.keys():
        raise UsageError(
            "ports_clash",
            f"the worker ports, {ports.min_worker} to {ports.max_worker}, hold port {inside}, which meshray itself has",
            hint=_RANGE_HINT,
        )


def choice_hint(option: str, ports: RayPorts, taken: Collection[int] = ()) -> str:
    """Return arguments that choose another port with this option: one that neither these ports nor ``taken`` contain.

    >>> choice_hint("--metrics-export-port", RayPorts())
    '-- --metrics-export-port=20200'
    """
    used = {*ports.to_json(head=True).values(), *_FIXED.values(), *taken}
    offered = itertools.chain(range(_OFFERED_FROM, HIGHEST_PORT), range(LOWEST_PORT, _OFFERED_FROM))
    free = next((port for port in offered if port not in used and port not in ports.workers), None)
    return f"-- {option}={free}" if free is not None else _RANGE_HINT


def ports_of_mesh(chosen: Mapping[str, object]) -> dict[str, int]:
    """Return the chosen ports in a message that the whole mesh shares. Raises WireError if a value is not a port."""
    return _chosen(chosen, MESH_WIDE)


def ports_of_node(chosen: Mapping[str, object]) -> dict[str, int]:
    """Return the chosen ports in a message that one node has itself. Raises WireError if a value is not a port."""
    return _chosen(chosen, [field.name for field in fields(RayPorts) if field.name not in MESH_WIDE])


def mesh_wide(chosen: Mapping[str, int]) -> dict[str, int]:
    """Return the chosen ports that the whole mesh shares."""
    return {name: port for name, port in chosen.items() if name in MESH_WIDE}


def of_node(chosen: Mapping[str, int]) -> dict[str, int]:
    """Return the chosen ports that one node has itself."""
    return {name: port for name, port in chosen.items() if name not in MESH_WIDE}


def _chosen(chosen: Mapping[str, object], names: Iterable[str]) -> dict[str, int]:
    known = {name: chosen[name] for name in names if name in chosen}
    for name, port in known.items():
        if type(port) is not int or not LOWEST_PORT <= port <= HIGHEST_PORT:
            raise WireError(f"{name}: must be a port from {LOWEST_PORT} to {HIGHEST_PORT}")
    return convert(known, dict[str, int])


def _port(option: str, value: str) -> int:
    if value.isascii() and value.isdecimal() and len(value) <= len(str(HIGHEST_PORT)):
        port = int(value)
        if LOWEST_PORT <= port <= HIGHEST_PORT:
            return port
    raise UsageError(
        "bad_port",
        f"{option} {value[:40]!r} is not a port: a number from {LOWEST_PORT} to {HIGHEST_PORT}",
        hint=choice_hint(option, RayPorts()),
    )


def _singles(ports: RayPorts, *, head: bool) -> Iterator[tuple[str, str, int]]:
    """Yield (its name in an error, its option, the port) of each port outside the workers' range."""
    for words, port in _FIXED.items():
        if head:
            yield f"Ray's {words}", "", port
    # The user's ports come last: the error then names their options.
    names = [name for name in ports.to_json(head=head) if name not in _WORKER_RANGE]
    changed = ports.changed(head=head)
    for name in sorted(names, key=lambda name: name in changed):
        yield option_of(name), option_of(name), getattr(ports, name)


def _clash(message: str, option: str, ports: RayPorts, own: Collection[int]) -> UsageError:
    return UsageError("ports_clash", message, hint=choice_hint(option, ports, own) if option else _RANGE_HINT)
