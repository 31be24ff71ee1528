"""The `ray start` of a node and the environment around it, as pure functions.

    >>> start_command(installation, plan)
    ['/opt/venv/bin/ray', 'start', '--head', '--node-ip-address=10.99.0.1', …, '--block', '--num-cpus=8']

Everything that Ray would choose at random or guess from the machine is fixed here: the address, every
port, the dashboard's host, the network interface. What is fixed cannot be given after ``--``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

from meshray.errors import UsageError
from meshray.model.address import OverlayNetwork
from meshray.model.meshmap import DEFAULT_PATIENCE_S
from meshray.model.release import release
from meshray.model.wire import MAX_ITEM_CHARACTERS, MAX_ITEMS
from meshray.raynode.patience import ray_timeouts
from meshray.raynode.user_environment import UserEnvironment, is_dropped
from meshray.raynode.versions import RayInstallation
from meshray.runtime.person import Person

GCS_PORT = 6379
DASHBOARD_PORT = 8265
CLIENT_PORT = 10001
WORKER_PORTS = range(10002, 20000)
# Not Ray's own defaults (another Ray on the machine has those) and below 32768, where the kernel
# takes ports for outgoing connections.
NODE_MANAGER_PORT = 20101
OBJECT_MANAGER_PORT = 20102
RUNTIME_ENV_AGENT_PORT = 20103
AGENT_GRPC_PORT = 20104
AGENT_HTTP_PORT = 20105
METRICS_EXPORT_PORT = 20106
DASHBOARD_METRIC_PORT = 20107
AUTOSCALER_METRIC_PORT = 20108

#: Ray Serve's HTTP and gRPC proxies unless an application says otherwise (ray.serve.config: HTTPOptions, gRPCOptions).
SERVE_PORTS = (8000, 9000)

#: What Ray binds to every interface, and so must be closed to all but the overlay.
WORKER_OPEN_PORTS = (NODE_MANAGER_PORT, OBJECT_MANAGER_PORT, AGENT_GRPC_PORT, METRICS_EXPORT_PORT)
HEAD_OPEN_PORTS = (GCS_PORT, *WORKER_OPEN_PORTS, DASHBOARD_METRIC_PORT, AUTOSCALER_METRIC_PORT)
#: What Ray binds to the node's overlay address (and some also to 127.0.0.1).
WORKER_OVERLAY_PORTS = (RUNTIME_ENV_AGENT_PORT, AGENT_HTTP_PORT)
HEAD_OVERLAY_PORTS = (DASHBOARD_PORT, CLIENT_PORT, *WORKER_OVERLAY_PORTS)
FIXED_PORTS = (*HEAD_OPEN_PORTS, *HEAD_OVERLAY_PORTS)

#: A Unix socket's path has at most 107 bytes; Ray appends a session and a socket name to its folder.
LONGEST_TEMP_DIR = 44

#: From here on `--labels k=v,…`; before, a JSON object.
_LABEL_LIST_RELEASE = (2, 46)

_OWNED_OPTIONS: Mapping[str, str] = {
    "--address": "meshray gives the head's overlay address",
    "--head": "`meshray init` makes the head",
    "--block": "meshray supervises Ray itself",
    "--node-ip-address": "it is the node's overlay address",
    "--node-name": "it is the node's name: `--name`",
    "--labels": "use meshray's own `--label KEY=VALUE`",
    "--port": "it is the same in the whole mesh",
    "--gcs-server-port": "it is the same in the whole mesh",
    "--include-dashboard": "meshray reads the node table from the dashboard",
    "--dashboard-host": "it is the head's overlay address",
    "--dashboard-port": "it is the same in the whole mesh",
    "--dashboard-agent-listen-port": "meshray keeps it closed to all but the overlay",
    "--dashboard-agent-grpc-port": "meshray keeps it closed to all but the overlay",
    "--runtime-env-agent-port": "meshray keeps it closed to all but the overlay",
    "--metrics-export-port": "meshray keeps it closed to all but the overlay",
    "--node-manager-port": "meshray keeps it closed to all but the overlay",
    "--object-manager-port": "meshray keeps it closed to all but the overlay",
    "--min-worker-port": "meshray keeps it closed to all but the overlay",
    "--max-worker-port": "meshray keeps it closed to all but the overlay",
    "--worker-port-list": "meshray keeps it closed to all but the overlay",
    "--ray-client-server-port": "it is the same in the whole mesh",
    "--help": "it ends at once: run `ray start --help` yourself",
}

#: Ray 2.60 waits up to 30 s for running tasks when it is told to end; `meshray node drain` is for that.
_NO_DRAIN_AT_THE_END = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}

#: By which libraries choose a network: Gloo, NCCL, PyTorch's TensorPipe and UCX by interface, inference servers by
#: their own address.
_INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "UCX_NET_DEVICES")
_ADDRESS_VARIABLES = ("VLLM_HOST_IP", "SGLANG_HOST_IP")
#: What names the active environment.
_ACTIVE = frozenset({"VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV"})
# Kubernetes' syntax, which Ray demands.
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_LABEL_PREFIX = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_RESERVED_PREFIX = "ray.io"


@dataclass(frozen=True)
class RayPlan:
    """What this node's Ray shall be.

    Attributes:
        extra_args: what the person gave after ``--``; see `check_extra_args`.
        interface: the overlay's, for libraries that choose one by name (Gloo, NCCL).
        token_path: the file with Ray's token; None turns authentication off.
        patience_s: for how long a node may be silent before Ray calls it dead, seconds; one for the whole mesh.
        environment: what the user gives to Ray's programs.
    """

    head: bool
    node_ip: IPv4Address
    head_ip: IPv4Address
    node_name: str
    labels: Mapping[str, str]
    extra_args: tuple[str, ...]
    interface: str
    token_path: Path | None
    network: OverlayNetwork
    patience_s: int = DEFAULT_PATIENCE_S
    environment: UserEnvironment = field(default_factory=UserEnvironment)

    @property
    def open_ports(self) -> tuple[int, ...]:
        """Ports that this node's Ray binds on every interface (besides `WORKER_PORTS`)."""
        return HEAD_OPEN_PORTS if self.head else WORKER_OPEN_PORTS

    @property
    def overlay_ports(self) -> tuple[int, ...]:
        """Ports that this node's Ray binds on its overlay address."""
        return HEAD_OVERLAY_PORTS if self.head else WORKER_OVERLAY_PORTS

    @property
    def ports(self) -> tuple[int | range, ...]:
        """All TCP ports that this node's Ray uses unless a person's own program chooses others."""
        return (*self.open_ports, *self.overlay_ports, *SERVE_PORTS, WORKER_PORTS)


def check_extra_args(args: Sequence[str]) -> None:
    """Refuses options of `ray start` that meshray gives itself, and more than its files hold.

    Raises:
        UsageError: names the option and why it cannot be given.
    """
    longest = max(args, key=len, default="")
    if len(args) > MAX_ITEMS or len(longest) > MAX_ITEM_CHARACTERS:
        raise UsageError(
            "too_many_arguments",
            f"there are {len(args)} arguments for Ray, the longest has {len(longest)} characters; "
            f"at most {MAX_ITEMS} of {MAX_ITEM_CHARACTERS} characters are kept",
            hint="set what many nodes share with RAY_ variables, and long values in a file that Ray reads",
        )
    for place, argument in enumerate(args):
        option, _, value = argument.partition("=")
        reason = _OWNED_OPTIONS.get(option.replace("_", "-"))
        if reason is not None:
            raise UsageError(
                "owned_option", f"{option} cannot be passed on to Ray: {reason}", hint=f"leave {option} out"
            )
        if option == "--temp-dir":
            following = args[place + 1] if place + 1 < len(args) else ""
            _check_temp_dir(value or following)


def check_labels(labels: Mapping[str, str]) -> None:
    """Refuses labels that Ray would refuse, and more than the map holds. Raises UsageError naming the label."""
    if len(labels) > MAX_ITEMS:
        raise UsageError("too_many_labels", f"there are {len(labels)} labels, at most {MAX_ITEMS} are kept")
    for key, value in labels.items():
        prefix, slash, name = key.rpartition("/")
        fits = _LABEL_NAME.fullmatch(name) and (not slash or _LABEL_PREFIX.fullmatch(prefix))
        if prefix == _RESERVED_PREFIX or not fits or (value and not _LABEL_NAME.fullmatch(value)):
            raise UsageError(
                "bad_label",
                f"{f'{key}={value}'[:160]!r} is no label: key and value are letters, digits and inner . _ -, "
                f"at most 63 characters, and {_RESERVED_PREFIX}/ is Ray's own",
                hint="--label zone=lab-2",
            )


def start_command(ray: RayInstallation, plan: RayPlan) -> list[str]:
    """The whole `ray start`, the person's own options last."""
    command = [str(ray.ray), "start"]
    if plan.head:
        command += [
            "--head",
            f"--port={GCS_PORT}",
            "--include-dashboard=true",
            f"--dashboard-host={plan.node_ip}",
            f"--dashboard-port={DASHBOARD_PORT}",
            f"--ray-client-server-port={CLIENT_PORT}",
        ]
    else:
        command.append(f"--address={plan.head_ip}:{GCS_PORT}")
    command += [
        f"--node-ip-address={plan.node_ip}",
        f"--node-name={plan.node_name}",
        f"--node-manager-port={NODE_MANAGER_PORT}",
        f"--object-manager-port={OBJECT_MANAGER_PORT}",
        f"--runtime-env-agent-port={RUNTIME_ENV_AGENT_PORT}",
        f"--dashboard-agent-grpc-port={AGENT_GRPC_PORT}",
        f"--dashboard-agent-listen-port={AGENT_HTTP_PORT}",
        f"--metrics-export-port={METRICS_EXPORT_PORT}",
        f"--min-worker-port={WORKER_PORTS.start}",
        f"--max-worker-port={WORKER_PORTS.stop - 1}",
        "--block",
    ]
    if plan.labels:
        command.append(f"--labels={_label_argument(ray, plan.labels)}")
    return [*command, *plan.extra_args]


def ray_environment(
    ray: RayInstallation, plan: RayPlan, base: Mapping[str, str], person: Person | None = None
) -> dict[str, str]:
    """Return the environment of Ray's processes, and so of tasks, actors and jobs.

    Tuning values that the user has set stay. Ray's usage statistics are the user's choice, too:
    RAY_USAGE_STATS_ENABLED=0, or ``-- --disable-usage-stats``.

    Args:
        base: the agent's own environment.
        person: as whom Ray runs, if that is another than the agent.
    """
    kept = {name: value for name, value in base.items() if not is_dropped(name)}
    kept |= plan.environment.variables
    if person is not None:
        kept.update(HOME=str(person.home), USER=person.name, LOGNAME=person.name)
    return {
        **ray_timeouts(plan.patience_s),
        **_NO_DRAIN_AT_THE_END,
        "DASHBOARD_METRIC_PORT": str(DASHBOARD_METRIC_PORT),
        "AUTOSCALER_METRIC_PORT": str(AUTOSCALER_METRIC_PORT),
        **_activated(ray, kept),
        **_shared_environment(plan, kept),
    }


def client_environment(
    plan: RayPlan, base: Mapping[str, str] | None = None, *, has_raylet: bool = True
) -> dict[str, str]:
    """What `meshray run` and `meshray env` add so that ``ray.init("auto")``, `ray status` and `ray job` just work.

    Args:
        has_raylet: Ray runs on this machine. Where it does not, a driver can only be a Ray Client.
    """
    return {
        # A driver waits as the nodes do: its own end of a connection may not close it earlier.
        **ray_timeouts(plan.patience_s),
        **plan.environment.chosen,
        "RAY_ADDRESS": f"{plan.head_ip}:{GCS_PORT}" if has_raylet else f"ray://{plan.head_ip}:{CLIENT_PORT}",
        "RAY_API_SERVER_ADDRESS": f"http://{plan.head_ip}:{DASHBOARD_PORT}",
        **_shared_environment(plan, {**(base or {}), **plan.environment.chosen}),
    }


def _activated(ray: RayInstallation, environ: Mapping[str, str]) -> dict[str, str]:
    """As if Ray's environment was activated: a job's `python` is Ray's, and runtime_env's pip works by PATH."""
    own = str(ray.ray.parent)
    folders = [folder for folder in environ.get("PATH", os.defpath).split(os.pathsep) if folder and folder != own]
    left = {name: value for name, value in environ.items() if name not in _ACTIVE}
    return {**left, "PATH": os.pathsep.join([own, *folders]), **ray.activation}


def _shared_environment(plan: RayPlan, base: Mapping[str, str]) -> dict[str, str]:
    no_proxy = _no_proxy(plan, base)
    shared = {
        # Since Ray 2.59 a head turns authentication on by itself and workers do not: always say which.
        "RAY_AUTH_MODE": "token" if plan.token_path else "disabled",
        "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL": "minor",
        **{name: base.get(name, plan.interface) for name in _INTERFACE_VARIABLES},
        **{name: base.get(name, str(plan.node_ip)) for name in _ADDRESS_VARIABLES},
        "no_proxy": no_proxy,
        "NO_PROXY": no_proxy,
    }
    if plan.token_path:
        shared["RAY_AUTH_TOKEN_PATH"] = str(plan.token_path)
    return shared


def _no_proxy(plan: RayPlan, base: Mapping[str, str]) -> str:
    """Keeps what is there. Some libraries know networks, others only addresses, so both are named."""
    present = base.get("no_proxy") or base.get("NO_PROXY") or ""
    ours = (str(plan.network), str(plan.head_ip), str(plan.node_ip), "127.0.0.1", "localhost")
    items = [item.strip() for item in present.split(",") if item.strip()]
    return ",".join(dict.fromkeys([*items, *ours]))


def _label_argument(ray: RayInstallation, labels: Mapping[str, str]) -> str:
    if release(ray.versions.ray) < _LABEL_LIST_RELEASE:
        return json.dumps(dict(labels), separators=(",", ":"))
    return ",".join(f"{key}={value}" for key, value in labels.items())


def _check_temp_dir(folder: str) -> None:
    if len(folder.encode()) > LONGEST_TEMP_DIR:
        raise UsageError(
            "temp_dir_too_long",
            f"--temp-dir {folder[:80]} is too long: Ray's sockets in it would pass the kernel's limit of 107 bytes",
            hint=f"a folder of at most {LONGEST_TEMP_DIR} characters, for example --temp-dir=/tmp/ray-mesh",
        )
