"""The `ray start` command of a node and its environment, as pure functions.

    >>> start_command(installation, plan)
    ['/opt/venv/bin/ray', 'start', '--head', '--node-ip-address=10.99.0.1', …, '--block', '--num-cpus=8']

This module fixes everything that Ray would choose at random or guess from the machine: the address, every port, the
dashboard's host, the network interface. These options are refused after ``--``, except ports
(`meshray.model.ray_ports`), which meshray parses and passes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

from meshray.errors import UsageError
from meshray.linux.user import User
from meshray.model.address import Endpoint, OverlayNetwork
from meshray.model.ray_options import LABEL_NAME, LABEL_PREFIX, LABEL_RESERVED_PREFIX
from meshray.model.ray_ports import (
    AUTOSCALER_METRIC_PORT,
    DASHBOARD_METRIC_PORT,
    SERVE_PORTS,
    RayPorts,
    check_ports,
    mesh_wide,
    option_of,
    take_ports,
)
from meshray.model.release import release
from meshray.protocol.fields import DEFAULT_PATIENCE_S, MAX_ITEM_CHARACTERS, MAX_ITEMS
from meshray.raynode.patience import ray_timeouts
from meshray.raynode.user_environment import UserEnvironment, is_dropped
from meshray.raynode.versions import RayInstallation

#: A Unix socket's path has at most 107 bytes, and Ray appends a session and a socket name to this folder.
LONGEST_TEMP_DIR = 44

#: The first release with `--labels k=v,…`; earlier ones take a JSON object.
_LABEL_LIST_RELEASE = (2, 46)

_OWNED_OPTIONS: Mapping[str, str] = {
    "--address": "meshray passes the head's overlay address",
    "--head": "`meshray init` creates the head",
    "--block": "meshray supervises Ray itself",
    "--node-ip-address": "it is the node's overlay address",
    "--node-name": "it is the node's name: `--name`",
    "--labels": "use meshray's own `--label KEY=VALUE`",
    "--gcs-server-port": "Ray's own name for it is --port",
    "--include-dashboard": "meshray reads the node table from the dashboard",
    "--dashboard-host": "it is the head's overlay address",
    "--worker-port-list": "use a range, which meshray can close: --min-worker-port and --max-worker-port",
    "--help": "it ends at once: run `ray start --help` yourself",
}

#: Ray 2.60 waits up to 30 s for running tasks when it is stopped; `meshray node drain` does that.
_NO_DRAIN_AT_THE_END = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
#: The head's proxy of Ray Client forks a server for each client while its other threads use gRPC. gRPC's fork handlers
#: then end some of these servers before they run ("Starting Ray client server failed", ray-project/ray 63202): 3 of 40
#: on a busy machine, and none of 40 without the handlers.
_NO_FORK_HANDLERS = {"GRPC_ENABLE_FORK_SUPPORT": "0"}

#: The program `ray` without `ray serve`, whose import takes more than half of the time before `ray start` of Ray 2.60
#: begins: 2.6 core-seconds with it, 1.2 without. Ray itself continues if this module cannot be imported.
#: Arguments: the path of `ray`, in whose folder Python would search first, then those of `ray`.
_WITHOUT_SERVE = (
    "import sys; sys.argv = sys.argv[1:]; sys.path[0] = sys.argv[0].rpartition('/')[0]; "
    "sys.modules['ray.serve.scripts'] = None; from ray.scripts.scripts import main; sys.exit(main())"
)

#: Variables with which libraries choose a network: Gloo, NCCL, PyTorch's TensorPipe and UCX by interface, inference
#: servers by their own address.
_INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "UCX_NET_DEVICES")
_ADDRESS_VARIABLES = ("VLLM_HOST_IP", "SGLANG_HOST_IP")
#: Variables that name the active environment.
_ACTIVE = frozenset({"VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV"})
# Ray requires the syntax of Kubernetes.


@dataclass(frozen=True)
class RayPlan:
    """The desired Ray of this node.

    Attributes:
        extra_args: the user's arguments after ``--``, without the options of `ports`; see `check_extra_args`.
        interface: the overlay's interface, for libraries that choose one by name (Gloo, NCCL).
        token_path: the file with Ray's token; None disables authentication.
        patience_s: how long a node may be silent before Ray considers it dead, seconds; equal in the whole mesh.
        environment: the user's environment variables for Ray's programs.
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
    ports: RayPorts = field(default_factory=RayPorts)
    patience_s: int = DEFAULT_PATIENCE_S
    environment: UserEnvironment = field(default_factory=UserEnvironment)

    @property
    def gcs(self) -> Endpoint:
        """The endpoint of the head's GCS."""
        return Endpoint(str(self.head_ip), self.ports.gcs)

    @property
    def dashboard(self) -> Endpoint:
        """The endpoint of the head's dashboard."""
        return Endpoint(str(self.head_ip), self.ports.dashboard)

    @property
    def used_ports(self) -> tuple[int | range, ...]:
        """All TCP ports that this node's Ray uses, except those that a user's program chooses."""
        ports, head = self.ports, self.head
        return (*ports.open_ports(head=head), *ports.overlay_ports(head=head), *SERVE_PORTS, ports.workers)


def check_extra_args(args: Sequence[str], *, own: Collection[int] = (), makes_mesh: bool = False) -> dict[str, int]:
    """Refuse options of `ray start` that meshray sets, conflicting ports, and too many or too long arguments.

    Args:
        own: the ports of meshray itself.
        makes_mesh: whether the node creates the mesh and may choose the ports of its head.

    Returns:
        The ports that the arguments choose; see `take_ports`.

    Raises:
        UsageError: the option, and why it is refused.
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
            raise UsageError("owned_option", f"{option} cannot be passed on to Ray: {reason}", hint=f"omit {option}")
        if option == "--temp-dir":
            following = args[place + 1] if place + 1 < len(args) else ""
            _check_temp_dir(value or following)
    chosen, _ = take_ports(args)
    for name in () if makes_mesh else mesh_wide(chosen):
        option = option_of(name)
        raise UsageError(
            "owned_option",
            f"{option} cannot be chosen here: it is the same in the whole mesh, which `meshray init` creates",
            hint=f"omit {option}",
        )
    check_ports(chosen, head=makes_mesh, own=own)
    return chosen


def check_labels(labels: Mapping[str, str]) -> None:
    """Refuse labels that Ray would refuse, and more than the map can store. Raises UsageError with the label."""
    if len(labels) > MAX_ITEMS:
        raise UsageError("too_many_labels", f"there are {len(labels)} labels, at most {MAX_ITEMS} are kept")
    for key, value in labels.items():
        prefix, slash, name = key.rpartition("/")
        fits = LABEL_NAME.fullmatch(name) and (not slash or LABEL_PREFIX.fullmatch(prefix))
        if prefix == LABEL_RESERVED_PREFIX or not fits or (value and not LABEL_NAME.fullmatch(value)):
            raise UsageError(
                "bad_label",
                f"{f'{key}={value}'[:160]!r} is not a label: key and value are letters, digits and inner . _ -, "
                f"at most 63 characters, and {LABEL_RESERVED_PREFIX}/ is Ray's own",
                hint="--label zone=lab-2",
            )


def start_command(ray: RayInstallation, plan: RayPlan) -> list[str]:
    """Return the complete `ray start` command, with the user's options last."""
    program = [str(ray.python), "-c", _WITHOUT_SERVE, str(ray.ray)] if ray.is_entry_point else [str(ray.ray)]
    return [*program, "start", *start_options(plan, ray.versions.ray, blocks=True)]


def start_options(plan: RayPlan, ray: str, *, blocks: bool) -> list[str]:
    """Return the options of `ray start`, with the user's last.

    Args:
        ray: the version of Ray; empty: not known.
        blocks: `ray start` stays in the foreground.
    """
    if plan.head:
        options = ["--head", "--include-dashboard=true", f"--dashboard-host={plan.node_ip}"]
    else:
        options = [f"--address={plan.gcs}"]
    options += [
        f"--node-ip-address={plan.node_ip}",
        f"--node-name={plan.node_name}",
        *plan.ports.options(head=plan.head),
        *(["--block"] if blocks else []),
    ]
    if plan.labels:
        options.append(f"--labels={_label_argument(ray, plan.labels)}")
    return [*options, *plan.extra_args]


def ray_environment(
    ray: RayInstallation, plan: RayPlan, base: Mapping[str, str], user: User | None = None
) -> dict[str, str]:
    """Return the environment of Ray's processes, which tasks, actors and jobs inherit.

    Tuning values of the user are kept. The user also decides about Ray's usage statistics:
    RAY_USAGE_STATS_ENABLED=0, or ``-- --disable-usage-stats``.

    Args:
        base: the agent's environment.
        user: the user who runs Ray, if it is not the agent's.
    """
    kept = {name: value for name, value in base.items() if not is_dropped(name)}
    kept |= plan.environment.variables
    if user is not None:
        kept.update(HOME=str(user.home), USER=user.name, LOGNAME=user.name)
    return {
        **tuning(plan),
        **_activated(ray, kept),
        **_shared_environment(plan, kept),
    }


def tuning(plan: RayPlan) -> dict[str, str]:
    """Return the variables of Ray's processes whose values a user may replace."""
    return {
        **ray_timeouts(plan.patience_s),
        **_NO_DRAIN_AT_THE_END,
        **(_NO_FORK_HANDLERS if plan.head else {}),
        "DASHBOARD_METRIC_PORT": str(DASHBOARD_METRIC_PORT),
        "AUTOSCALER_METRIC_PORT": str(AUTOSCALER_METRIC_PORT),
    }


def network_choice(plan: RayPlan) -> dict[str, str]:
    """Return the variables with which libraries choose the overlay, whose values a user may replace."""
    return {
        **dict.fromkeys(_INTERFACE_VARIABLES, plan.interface),
        **dict.fromkeys(_ADDRESS_VARIABLES, str(plan.node_ip)),
    }


def authentication(plan: RayPlan) -> dict[str, str]:
    """Return the variables by which Ray's processes accept each other."""
    return {
        # Since Ray 2.59 a head enables authentication by default and workers do not, so the mode is always set.
        "RAY_AUTH_MODE": "token" if plan.token_path else "disabled",
        "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL": "minor",
        **({"RAY_AUTH_TOKEN_PATH": str(plan.token_path)} if plan.token_path else {}),
    }


def unproxied(plan: RayPlan) -> tuple[str, ...]:
    """Return the items of no_proxy. Some libraries accept networks and others only addresses, so both are included."""
    return (str(plan.network), str(plan.head_ip), str(plan.node_ip), "127.0.0.1", "localhost")


def client_environment(
    plan: RayPlan, base: Mapping[str, str] | None = None, *, has_raylet: bool = True
) -> dict[str, str]:
    """Return the variables of `meshray run` and `meshray env` for ``ray.init("auto")``, `ray status` and `ray job`.

    Args:
        has_raylet: whether Ray runs on this machine. Otherwise a driver can only be a Ray Client.
    """
    return {
        # A driver uses the nodes' timeouts, so that its end of a connection does not close earlier.
        **ray_timeouts(plan.patience_s),
        **plan.environment.chosen,
        "RAY_ADDRESS": str(plan.gcs) if has_raylet else f"ray://{plan.head_ip}:{plan.ports.ray_client_server}",
        "RAY_API_SERVER_ADDRESS": f"http://{plan.dashboard}",
        **_shared_environment(plan, {**(base or {}), **plan.environment.chosen}),
    }


def _activated(ray: RayInstallation, environ: Mapping[str, str]) -> dict[str, str]:
    """Activate Ray's environment: `python` in a job is Ray's, and the pip of runtime_env finds it on PATH."""
    own = str(ray.ray.parent)
    folders = [folder for folder in environ.get("PATH", os.defpath).split(os.pathsep) if folder and folder != own]
    left = {name: value for name, value in environ.items() if name not in _ACTIVE}
    return {**left, "PATH": os.pathsep.join([own, *folders]), **ray.activation}


def _shared_environment(plan: RayPlan, base: Mapping[str, str]) -> dict[str, str]:
    no_proxy = _no_proxy(plan, base)
    return {
        **authentication(plan),
        **{name: base.get(name, value) for name, value in network_choice(plan).items()},
        "no_proxy": no_proxy,
        "NO_PROXY": no_proxy,
    }


def _no_proxy(plan: RayPlan, base: Mapping[str, str]) -> str:
    present = base.get("no_proxy") or base.get("NO_PROXY") or ""
    items = [item.strip() for item in present.split(",") if item.strip()]
    return ",".join(dict.fromkeys([*items, *unproxied(plan)]))


def _label_argument(ray: str, labels: Mapping[str, str]) -> str:
    if ray and release(ray) < _LABEL_LIST_RELEASE:
        return json.dumps(dict(labels), separators=(",", ":"))
    return ",".join(f"{key}={value}" for key, value in labels.items())


def _check_temp_dir(folder: str) -> None:
    if len(folder.encode()) > LONGEST_TEMP_DIR:
        raise UsageError(
            "temp_dir_too_long",
            f"--temp-dir {folder[:80]} is too long: Ray's sockets in it would exceed the kernel's limit of 107 bytes",
            hint=f"use a folder of at most {LONGEST_TEMP_DIR} characters, for example --temp-dir=/tmp/ray-mesh",
        )
