"""The file with which another program starts Ray on this node (``--ray external``), as a POSIX shell reads it (pure).

    . /run/meshray/env && ray start $MESHRAY_RAY_START --block

It contains no secret: Ray reads its token from the file that RAY_AUTH_TOKEN_PATH names, which only Ray's user may read.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from meshray.errors import UsageError
from meshray.raynode.command import RayPlan, authentication, network_choice, start_options, tuning, unproxied


def environment_file(plan: RayPlan, ray: str, path: Path) -> str:
    """Return the text of the file.

    Args:
        ray: the version of Ray; empty: not known.
        path: the path of the file.
    """
    lines = [
        f"# For the program that starts Ray on the node {plan.node_name}. The file exists while Ray may be started:",
        f"#     {start_line(path)}",
        *(f"export {name}={shlex.quote(value)}" for name, value in _own(plan, ray).items()),
        *(f"export {name}={shlex.quote(value)}" for name, value in authentication(plan).items()),
        # Ray prefers the value of this variable to the file. KubeRay sets it in all containers of a RayCluster with
        # `authOptions`.
        *(["unset RAY_AUTH_TOKEN"] if plan.token_path else []),
        *_defaults({**tuning(plan), **network_choice(plan)}),
        *_no_proxy(plan),
    ]
    return "\n".join(lines) + "\n"


def start_line(path: Path) -> str:
    """Return the command that starts Ray with the file at this path."""
    return f". {shlex.quote(str(path))} && ray start $MESHRAY_RAY_START --block"


def require_splittable(args: Sequence[str]) -> None:
    """Refuse arguments that a shell would not split into the same words again. Raises UsageError."""
    for argument in args:
        if not argument or set(argument) & set(" \t\n*?"):
            raise UsageError(
                "bad_external_argument",
                f"{argument[:60]!r} cannot be passed on with --ray external: a shell splits or expands it",
                hint="give it to `ray start` itself, after $MESHRAY_RAY_START",
            )


def _own(plan: RayPlan, ray: str) -> Mapping[str, str]:
    ports = plan.ports.to_json(head=True)
    return {
        "MESHRAY_NODE": plan.node_name,
        "MESHRAY_IP": str(plan.node_ip),
        "MESHRAY_INTERFACE": plan.interface,
        "MESHRAY_HEAD_IP": str(plan.head_ip),
        "MESHRAY_RAY_ADDRESS": str(plan.gcs),
        "MESHRAY_RAY_DASHBOARD": f"http://{plan.dashboard}",
        "MESHRAY_RAY_START": " ".join(start_options(plan, ray, blocks=False)),
        **{f"MESHRAY_RAY_{name.upper()}_PORT": str(port) for name, port in ports.items()},
    }


def _defaults(variables: Mapping[str, str]) -> Iterator[str]:
    """Yield lines that keep the value of a variable that is set."""
    for name, value in variables.items():
        yield f'export {name}="${{{name}:-{value}}}"'


def _no_proxy(plan: RayPlan) -> Iterator[str]:
    yield 'no_proxy="${no_proxy:-${NO_PROXY-}}"'
    yield f'no_proxy="${{no_proxy:+$no_proxy,}}{",".join(unproxied(plan))}"'
    yield 'export no_proxy NO_PROXY="$no_proxy"'
