from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from meshray.errors import UsageError
from meshray.linux.user import User
from meshray.model.address import OverlayNetwork
from meshray.model.node import Versions
from meshray.model.ray_ports import RayPorts
from meshray.raynode.command import (
    RayPlan,
    check_extra_args,
    check_labels,
    client_environment,
    ray_environment,
    start_command,
)
from meshray.raynode.user_environment import UserEnvironment
from meshray.raynode.versions import RayInstallation

RAY = RayInstallation(Path("/opt/venv/bin/ray"), Path("/opt/venv/bin/python"), Versions("0.1.0", "2.60.0", "3.11.7"))
HEAD = RayPlan(
    head=True,
    node_ip=IPv4Address("10.99.0.1"),
    head_ip=IPv4Address("10.99.0.1"),
    node_name="head",
    labels={},
    extra_args=(),
    interface="meshray0",
    token_path=Path("/run/meshray/ray_token"),
    network=OverlayNetwork.parse("10.99.0.0/16"),
)
WORKER = replace(HEAD, head=False, node_ip=IPv4Address("10.99.0.2"), node_name="gpu-1")
ADA = User("ada", 1000, 1000, (1000,), Path("/home/ada"))


def test_a_head_listens_on_its_overlay_address() -> None:
    command = start_command(RAY, HEAD)
    assert command[:3] == ["/opt/venv/bin/ray", "start", "--head"]
    assert {"--node-ip-address=10.99.0.1", "--dashboard-host=10.99.0.1", "--port=6379", "--block"} <= set(command)
    assert not any(option.startswith("--address") for option in command)


def test_ray_starts_without_the_import_of_ray_serve(tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    for package in ("ray", "ray/scripts", "ray/serve"):
        (packages / package).mkdir(parents=True)
        (packages / package / "__init__.py").touch()
    (packages / "ray/serve/scripts.py").touch()
    (packages / "ray/scripts/scripts.py").write_text(
        "import json, sys\n"
        "def main():\n"
        "    try:\n"
        "        import ray.serve.scripts\n"
        "    except ImportError:\n"
        "        print(json.dumps([sys.argv, sys.path[0], 'ray.serve' in sys.modules]))\n"
        "        return 3\n"
    )
    ray = replace(RAY, python=Path(sys.executable), is_entry_point=True)
    command = start_command(ray, WORKER)
    done = subprocess.run(command, env={"PYTHONPATH": str(packages)}, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done
    expected = start_command(RAY, WORKER)
    assert json.loads(done.stdout) == [expected, "/opt/venv/bin", False]
    assert command[3:] == expected, "its command line names the program"


def test_a_worker_joins_its_head_and_gets_no_option_of_a_head() -> None:
    command = start_command(RAY, WORKER)
    assert {"--address=10.99.0.1:6379", "--node-ip-address=10.99.0.2", "--node-name=gpu-1"} <= set(command)
    # `ray start` ends with an error if a worker gets one of these.
    assert not [word for word in command if word.split("=")[0] in {"--head", "--port", "--include-dashboard"}]


def test_the_users_own_options_come_last_and_unchanged() -> None:
    mine = ("--num-cpus=8", "--resources", '{"fast disk": 1}')
    assert start_command(RAY, replace(WORKER, extra_args=mine))[-3:] == list(mine)


def test_chosen_ports_are_passed_on_once_and_every_part_follows() -> None:
    ports = RayPorts.of({"gcs": 6380, "dashboard": 8266, "ray_client_server": 10101, "metrics_export": 8500})
    head, worker = replace(HEAD, ports=ports), replace(WORKER, ports=ports)
    command = start_command(RAY, head)
    assert {"--port=6380", "--dashboard-port=8266", "--ray-client-server-port=10101"} <= set(command)
    assert {"--metrics-export-port=8500", "--min-worker-port=10102", "--max-worker-port=19999"} <= set(command)
    options = [word.partition("=")[0] for word in command]
    assert len(options) == len(set(options))
    assert "--address=10.99.0.1:6380" in start_command(RAY, worker)
    assert {6380, 8266, 10101, 8500, range(10102, 20000)} <= set(head.used_ports)
    assert not {6379, 8265, 10001, 20106} & set(head.used_ports)
    assert not {6380, 8266, 10101} & set(worker.used_ports)
    environment = client_environment(worker)
    assert (environment["RAY_ADDRESS"], environment["RAY_API_SERVER_ADDRESS"]) == (
        "10.99.0.1:6380",
        "http://10.99.0.1:8266",
    )
    assert client_environment(worker, has_raylet=False)["RAY_ADDRESS"] == "ray://10.99.0.1:10101"


def test_the_ports_of_the_mesh_are_chosen_only_at_init() -> None:
    arguments = ["--port=6380", "--num-cpus=2", "--dashboard-port", "8266", "--metrics_export_port=8500"]
    chosen = {"gcs": 6380, "dashboard": 8266, "metrics_export": 8500}
    assert check_extra_args(arguments, makes_mesh=True) == chosen
    with pytest.raises(UsageError, match="--port cannot be chosen here: it is the same in the whole mesh") as caught:
        check_extra_args(arguments)
    assert caught.value.code == "owned_option"
    assert check_extra_args(["--metrics-export-port=8500"]) == {"metrics_export": 8500}


@pytest.mark.parametrize(
    ("version", "expected"),
    [("2.60.0", "--labels=zone=lab,gpu=a100"), ("2.44.1", '--labels={"zone":"lab","gpu":"a100"}')],
)
def test_labels_have_the_form_of_the_rays_version(version: str, expected: str) -> None:
    ray = replace(RAY, versions=replace(RAY.versions, ray=version))
    assert expected in start_command(ray, replace(WORKER, labels={"zone": "lab", "gpu": "a100"}))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--address=1.2.3.4:6379"],
        ["--num-cpus", "2", "--port", "7000"],
        ["--head"],
        ["--node_ip_address=127.0.0.1"],
        ["--block"],
        ["--dashboard-host=0.0.0.0"],
        ["--labels", "a=b"],
        ["--worker-port-list=1,2"],
    ],
)
def test_options_that_meshray_owns_are_refused_by_name(arguments: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        check_extra_args(arguments)
    assert caught.value.code == "owned_option"
    named = next(word.split("=")[0] for word in arguments if word.split("=")[0] in caught.value.message)
    assert named in caught.value.hint


def test_options_that_are_the_users_pass() -> None:
    check_extra_args(["--num-cpus=4", "--num-gpus", "1", "--resources", '{"a": 1}', "--temp-dir=/tmp/ray-ada"])
    check_extra_args(["--disable-usage-stats", "--object-store-memory=1000000000"])


@pytest.mark.parametrize("arguments", [["--temp-dir=/" + "x" * 60], ["--temp-dir", "/" + "x" * 60]])
def test_a_temp_dir_too_long_for_rays_sockets_is_refused(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match="too long"):
        check_extra_args(arguments)


def test_labels_that_ray_takes_pass() -> None:
    check_labels({"zone": "lab-2", "example.org/rtt": "lt50ms", "empty": ""})


@pytest.mark.parametrize("label", [("ray.io/x", "1"), ("", "1"), ("a b", "1"), ("zone", "a,b"), ("zone", "x" * 64)])
def test_labels_that_ray_refuses_are_refused(label: tuple[str, str]) -> None:
    with pytest.raises(UsageError) as caught:
        check_labels(dict([label]))
    assert caught.value.code == "bad_label"


def test_rays_processes_know_token_interface_and_patience() -> None:
    environment = ray_environment(RAY, WORKER, {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0"})
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN_PATH"] == "/run/meshray/ray_token"
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "UCX_NET_DEVICES"):
        assert environment[name] == "meshray0"
    for name in ("VLLM_HOST_IP", "SGLANG_HOST_IP"):
        assert environment[name] == "10.99.0.2"
    assert environment["RAY_health_check_failure_threshold"] == "6"
    assert environment["CUDA_VISIBLE_DEVICES"] == "0"


def test_the_users_tuning_stays_and_what_meshray_owns_does_not() -> None:
    base = {
        "RAY_health_check_timeout_ms": "5000",
        "NCCL_SOCKET_IFNAME": "ib0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_ADDRESS": "other:1",
    }
    environment = ray_environment(RAY, WORKER, base)
    assert environment["RAY_health_check_timeout_ms"] == "5000"
    assert environment["NCCL_SOCKET_IFNAME"] == "ib0"
    assert environment["RAY_AUTH_MODE"] == "token"
    assert "RAY_ADDRESS" not in environment


def test_another_users_ray_gets_their_home_and_nothing_of_sudos() -> None:
    base = {"HOME": "/root", "USER": "root", "SUDO_USER": "ada", "XDG_RUNTIME_DIR": "/run/user/0", "MESHRAY_HOME": "/x"}
    environment = ray_environment(RAY, WORKER, base, ADA)
    assert (environment["HOME"], environment["USER"], environment["LOGNAME"]) == ("/home/ada", "ada", "ada")
    assert not {"SUDO_USER", "XDG_RUNTIME_DIR", "MESHRAY_HOME"} & set(environment)


def test_rays_own_environment_is_active_and_the_users_variables_are_there(tmp_path: Path) -> None:
    programs = tmp_path / "ray/bin"
    programs.mkdir(parents=True)
    (tmp_path / "ray/pyvenv.cfg").touch()
    ray = replace(RAY, ray=programs / "ray")
    session = {"PATH": f"/opt/cuda/bin:{programs}:/usr/bin", "VIRTUAL_ENV": "/home/ada/other", "HF_HOME": "/data/hf"}
    plan = replace(WORKER, environment=UserEnvironment(session, {"HF_HOME": "/scratch/hf", "EPOCHS": "3"}))
    environment = ray_environment(ray, plan, {"PATH": "/sbin"}, ADA)
    assert environment["PATH"] == f"{programs}:/opt/cuda/bin:/usr/bin"
    assert environment["VIRTUAL_ENV"] == str(tmp_path / "ray")
    assert environment["HF_HOME"] == "/scratch/hf"
    assert environment["EPOCHS"] == "3"
    # Drivers have their own session.
    assert client_environment(plan)["EPOCHS"] == "3"
    assert "PATH" not in client_environment(plan)


def test_conda_is_activated_by_its_own_variables(tmp_path: Path) -> None:
    (tmp_path / "envs/ray/conda-meta").mkdir(parents=True)
    ray = replace(RAY, ray=tmp_path / "envs/ray/bin/ray")
    environment = ray_environment(ray, WORKER, {"CONDA_PREFIX": "/opt/conda", "VIRTUAL_ENV": "/x"})
    assert environment["CONDA_PREFIX"] == str(tmp_path / "envs/ray")
    assert environment["CONDA_DEFAULT_ENV"] == "ray"
    assert "VIRTUAL_ENV" not in environment


def test_a_client_finds_the_head_with_every_tool() -> None:
    environment = client_environment(WORKER, {"no_proxy": "intra.example, 10.99.0.1"})
    assert environment["RAY_ADDRESS"] == "10.99.0.1:6379"
    assert environment["RAY_API_SERVER_ADDRESS"] == "http://10.99.0.1:8265"
    assert environment["no_proxy"] == "intra.example,10.99.0.1,10.99.0.0/16,10.99.0.2,127.0.0.1,localhost"
    assert environment["NO_PROXY"] == environment["no_proxy"]


def test_without_a_token_authentication_is_off_by_name() -> None:
    # A head of Ray 2.59 enables it automatically if it finds a token in the user's home; workers do not.
    environment = client_environment(replace(WORKER, token_path=None))
    assert environment["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_AUTH_TOKEN_PATH" not in environment


def test_no_secret_is_on_the_command_line() -> None:
    assert "token" not in json.dumps(start_command(RAY, HEAD))


def test_values_that_a_nodes_files_cannot_hold_are_refused_before_any_change() -> None:
    check_extra_args(["--num-cpus=1"] * 64)
    for arguments in (["--num-cpus=1"] * 65, ["--resources=" + "x" * 501]):
        with pytest.raises(UsageError, match="at most 64 of 512 characters"):
            check_extra_args(arguments)
    with pytest.raises(UsageError, match="65 labels"):
        check_labels({f"zone-{number}": "a" for number in range(65)})


def test_the_proxy_of_ray_client_forks_without_the_handlers_of_grpc_unless_the_user_wants_them() -> None:
    assert ray_environment(RAY, HEAD, {})["GRPC_ENABLE_FORK_SUPPORT"] == "0"
    assert ray_environment(RAY, HEAD, {"GRPC_ENABLE_FORK_SUPPORT": "1"})["GRPC_ENABLE_FORK_SUPPORT"] == "1"
    assert "GRPC_ENABLE_FORK_SUPPORT" not in ray_environment(RAY, WORKER, {})
