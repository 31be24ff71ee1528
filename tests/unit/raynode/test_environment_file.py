"""The file with which another program starts Ray, as a shell reads it."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from meshray.cli.reference import FILE_VARIABLES
from meshray.errors import UsageError
from meshray.model.ray_ports import RayPorts
from meshray.raynode.command import start_command
from meshray.raynode.environment_file import environment_file, require_splittable, start_line
from tests.unit.raynode.test_command import HEAD, RAY, WORKER


def read(folder: Path, text: str, script: str, **environ: str) -> list[str]:
    """Return the lines that a shell prints after it has read the file."""
    file = folder / "env"
    file.write_text(text)
    shell = ["sh", "-euc", f". {file}; {script}"]
    done = subprocess.run(
        shell, env={"PATH": "/bin:/usr/bin", **environ}, capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.splitlines()


def text_of(plan: object = WORKER) -> str:
    return environment_file(plan, "2.60.0", Path("/run/meshray/env"))  # type: ignore[arg-type] # a RayPlan


def test_a_shell_splits_the_options_as_meshray_passes_them(tmp_path: Path) -> None:
    plan = replace(
        WORKER,
        labels={"zone": "lab", "meshray.link": "lan"},
        extra_args=("--num-cpus=2", '--resources={"a":1,"b\'c":2}', "--log-style=pretty"),
        ports=RayPorts.of({"metrics_export": 8500}),
    )
    words = read(tmp_path, text_of(plan), 'for word in $MESHRAY_RAY_START; do echo "$word"; done')
    assert words == [word for word in start_command(RAY, plan)[2:] if word != "--block"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MESHRAY_NODE", "gpu-1"),
        ("MESHRAY_IP", "10.99.0.2"),
        ("MESHRAY_INTERFACE", "meshray0"),
        ("MESHRAY_HEAD_IP", "10.99.0.1"),
        ("MESHRAY_RAY_ADDRESS", "10.99.0.1:6379"),
        ("MESHRAY_RAY_DASHBOARD", "http://10.99.0.1:8265"),
        ("MESHRAY_RAY_GCS_PORT", "6379"),
        ("MESHRAY_RAY_NODE_MANAGER_PORT", "20101"),
        ("MESHRAY_RAY_MIN_WORKER_PORT", "10002"),
        ("RAY_AUTH_MODE", "token"),
        ("RAY_AUTH_TOKEN_PATH", "/run/meshray/ray_token"),
        ("NCCL_SOCKET_IFNAME", "meshray0"),
        ("DASHBOARD_METRIC_PORT", "20107"),
        ("no_proxy", "10.99.0.0/16,10.99.0.1,10.99.0.2,127.0.0.1,localhost"),
    ],
)
def test_programs_get_the_variables(tmp_path: Path, name: str, value: str) -> None:
    assert read(tmp_path, text_of(), f"printenv {name}") == [value]


def test_ray_has_the_meshs_token_whatever_its_container_has(tmp_path: Path) -> None:
    script = "printenv RAY_AUTH_TOKEN || echo none"
    assert read(tmp_path, text_of(), script, RAY_AUTH_TOKEN="of KubeRay") == ["none"]
    assert read(tmp_path, text_of(), script) == ["none"]
    assert read(tmp_path, text_of(replace(WORKER, token_path=None)), script, RAY_AUTH_TOKEN="own") == ["own"]


def test_a_users_own_values_are_kept(tmp_path: Path) -> None:
    mine = {"NCCL_SOCKET_IFNAME": "eth1", "RAY_health_check_period_ms": "500", "NO_PROXY": "corp.example"}
    names = "NCCL_SOCKET_IFNAME RAY_health_check_period_ms NO_PROXY no_proxy"
    script = f"for name in {names}; do printenv $name; done"
    proxies = "corp.example,10.99.0.0/16,10.99.0.1,10.99.0.2,127.0.0.1,localhost"
    assert read(tmp_path, text_of(), script, **mine) == ["eth1", "500", proxies, proxies]


def test_a_head_is_started_as_the_head(tmp_path: Path) -> None:
    words = read(tmp_path, text_of(HEAD), 'for word in $MESHRAY_RAY_START; do echo "$word"; done')
    assert {"--head", "--port=6379", "--dashboard-host=10.99.0.1"} <= set(words)
    assert not [word for word in words if word.startswith("--address")]


def test_every_variable_is_in_the_reference() -> None:
    exported = re.findall(r"^export (\w+)=(?!\"\$)", text_of(), re.MULTILINE)
    names = {re.sub(r"^MESHRAY_RAY_[A-Z_]+_PORT$", "MESHRAY_RAY_…_PORT", name) for name in exported}
    assert names == {name for name, _ in FILE_VARIABLES if " " not in name}


def test_the_file_says_how_it_is_used() -> None:
    assert start_line(Path("/run/my mesh/env")) == ". '/run/my mesh/env' && ray start $MESHRAY_RAY_START --block"
    assert start_line(Path("/run/meshray/env")) in text_of()


@pytest.mark.parametrize("argument", ["", "--x=a b", "--x=a\tb", "--x=*", "--x=?"])
def test_what_a_shell_would_change_is_refused(argument: str) -> None:
    with pytest.raises(UsageError) as refused:
        require_splittable(["--num-cpus=1", argument])
    assert refused.value.code == "bad_external_argument"
