"""Why Ray counts no GPU: each cause from the files that show it, down to the command."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from meshray.agent.ray.gpu_problem import GpuNotice
from meshray.doctor.examine import examine
from meshray.doctor.ray import gpu_probe
from meshray.doctor.ray.checks import SPECS
from meshray.doctor.ray.facts import GpuFacts
from meshray.doctor.ray.gpus import why_uncounted
from meshray.doctor.report import OK, SKIP, WARN
from meshray.linux.user import User
from meshray.model.address import OverlayNetwork
from meshray.model.node import Versions
from meshray.model.ray_state import RayState
from meshray.raynode.command import RayPlan
from meshray.raynode.supervisor import RayNow
from meshray.raynode.user_environment import UserEnvironment
from meshray.raynode.versions import RayInstallation
from tests.harm import harms
from tests.unit.doctor.test_ray import healthy, mesh, only

NVIDIA, AMD, INTEL = "0x10de", "0x1002", "0x8086"
OVERLAY = IPv4Network("10.99.0.0/16")


def ray(root: Path, *arguments: str, environ: str | None = "PATH=/usr/bin\0") -> RayNow:
    python = root / "venv/bin/python"
    if environ is not None:
        (root / "proc/70").mkdir(parents=True, exist_ok=True)
        (root / "proc/70/environ").write_text(environ)
    plan = RayPlan(
        head=False,
        node_ip=IPv4Address("10.99.0.2"),
        head_ip=IPv4Address("10.99.0.1"),
        node_name="gpu-1",
        labels={},
        extra_args=arguments,
        interface="meshray0",
        token_path=None,
        network=OverlayNetwork(OVERLAY),
    )
    installation = RayInstallation(python.with_name("ray"), python, Versions("0.1.0", "2.60.0", "3.11.7"))
    return RayNow(installation, plan, User.by_uid(0), "running", "", 0, 70, None)


def card(root: Path, vendor: str, kind: str, number: int = 0) -> None:
    folder = root / f"sys/bus/pci/devices/0000:0{number}:00.0"
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n")
    (folder / "class").write_text(f"{kind}00\n")


def touch(root: Path, *files: str) -> None:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()


DRIVER = "proc/driver/nvidia/version"
NVML = "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"
ALL = (DRIVER, "dev/nvidia0", NVML)


@pytest.mark.parametrize(
    ("files", "environ", "cause", "fix"),
    [
        ((), "", "no NVIDIA driver is loaded", "modprobe nvidia; nvidia-smi"),
        ((DRIVER,), "", "did not create the device files", "nvidia-modprobe -u -c 0"),
        ((DRIVER, "dev/nvidia0", "dev/nvidiactl"), "", "libnvidia-ml.so.1", "ldconfig -p"),
        (ALL, "", "did not answer", "nvidia-smi; meshray down; meshray up"),
        ((".dockerenv", DRIVER), "", "not passed to this container", "--gpus all"),
        (ALL, "CUDA_VISIBLE_DEVICES=\0", "CUDA_VISIBLE_DEVICES", "unset CUDA_VISIBLE_DEVICES; meshray down"),
        (ALL, "CUDA_VISIBLE_DEVICES=NoDevFiles\0", "CUDA_VISIBLE_DEVICES", "unset CUDA_VISIBLE_DEVICES"),
        (("opt/cuda/libnvidia-ml.so.1", *ALL[:2]), "LD_LIBRARY_PATH=/opt/cuda\0", "did not answer", "nvidia-smi"),
    ],
)
def test_each_cause_of_an_nvidia_card(
    tmp_path: Path, files: tuple[str, ...], environ: str, cause: str, fix: str
) -> None:
    card(tmp_path, NVIDIA, "0x0302")
    card(tmp_path, INTEL, "0x0300", 1)
    touch(tmp_path, *files)
    uncounted = why_uncounted(gpu_probe.measure(ray(tmp_path, environ=environ), tmp_path), 0)
    assert uncounted is not None
    assert uncounted.text.startswith("the machine has 1 NVIDIA GPU, and Ray counts none: ")
    assert cause in uncounted.text
    assert fix in uncounted.fix
    assert harms(uncounted.fix, OVERLAY) == []


@pytest.mark.parametrize(
    ("files", "environ", "cause", "fix"),
    [
        ((), "", "/dev/kfd", "modprobe amdgpu"),
        ((".dockerenv",), "", "not passed to this container", "--device /dev/kfd"),
        (("dev/kfd",), "", "amdsmi", "venv/bin/python -m pip install amdsmi"),
        (("dev/kfd", "venv/lib/python3.11/site-packages/amdsmi/__init__.py"), "", "did not answer", "amd-smi list"),
        (("dev/kfd",), "HIP_VISIBLE_DEVICES=\0", "HIP_VISIBLE_DEVICES", "unset HIP_VISIBLE_DEVICES"),
    ],
)
def test_each_cause_of_an_amd_card(tmp_path: Path, files: tuple[str, ...], environ: str, cause: str, fix: str) -> None:
    card(tmp_path, AMD, "0x1200")
    card(tmp_path, AMD, "0x0380", 1)
    touch(tmp_path, *files)
    uncounted = why_uncounted(gpu_probe.measure(ray(tmp_path, environ=environ), tmp_path), 0)
    assert uncounted is not None
    assert "2 AMD GPUs" in uncounted.text
    assert cause in uncounted.text
    assert fix in uncounted.fix
    assert harms(uncounted.fix, OVERLAY) == []


def test_a_display_chip_does_not_count_as_a_compute_card(tmp_path: Path) -> None:
    card(tmp_path, AMD, "0x0300")
    card(tmp_path, INTEL, "0x0300", 1)
    card(tmp_path, NVIDIA, "0x0403", 2)  # the sound of an NVIDIA card
    assert gpu_probe.measure(ray(tmp_path), tmp_path).cards == ""
    touch(tmp_path, "opt/rocm/bin/rocminfo")
    assert gpu_probe.measure(ray(tmp_path), tmp_path).cards == "1 AMD GPU"


@pytest.mark.parametrize("arguments", [("--num-gpus=0",), ("--num-gpus", "0"), ("--num_gpus=0",)])
def test_a_user_who_wants_no_gpu_gets_no_warning(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    card(tmp_path, NVIDIA, "0x0302")
    assert why_uncounted(gpu_probe.measure(ray(tmp_path, *arguments), tmp_path), 0) is None


def test_a_card_of_wsl_is_recognized_by_its_files(tmp_path: Path) -> None:
    touch(tmp_path, "dev/nvidia0", "dev/nvidia1", "dev/nvidia-uvm")
    assert gpu_probe.measure(ray(tmp_path), tmp_path).nvidia == 2


def test_without_a_running_ray_its_recorded_environment_counts(tmp_path: Path) -> None:
    card(tmp_path, NVIDIA, "0x0302")
    now = ray(tmp_path, environ=None)
    assert gpu_probe.measure(now, tmp_path).hidden_by == ""
    recorded = replace(now.plan, environment=UserEnvironment(session={"CUDA_VISIBLE_DEVICES": ""}))
    assert gpu_probe.measure(replace(now, plan=recorded), tmp_path).hidden_by == "CUDA_VISIBLE_DEVICES"


def test_the_check_warns_and_a_machine_without_cards_is_fine() -> None:
    seen = GpuFacts(nvidia=1)
    facts = mesh({"gpu-1": replace(healthy("gpu-1"), gpus=seen)})
    found = only(facts, "ray_gpus", "gpu-1")
    assert (found.status, found.fix.startswith("on gpu-1: modprobe nvidia")) == (WARN, True)
    assert only(facts, "ray_gpus", "gpu-2").status == OK
    away = mesh({"gpu-1": replace(healthy("gpu-1"), gpus=seen)}, alive={"gpu-1": False})
    assert only(away, "ray_gpus", "gpu-1").status == SKIP
    asked = mesh({"gpu-1": replace(healthy("gpu-1"), gpus=replace(seen, asked="0"))})
    assert "--num-gpus=0" in only(asked, "ray_gpus", "gpu-1").evidence
    assert not [check for check in examine(facts, specs=SPECS) if check.status == "fail"]


def test_status_reports_it_and_looks_once_a_minute(tmp_path: Path) -> None:
    now, looks = [0.0], []

    def look(_: RayNow) -> GpuFacts:
        looks.append(now[0])
        return GpuFacts(nvidia=1)

    notice = GpuNotice(look, clock=lambda: now[0])
    without = RayState(True, {"CPU": 4.0})
    (text,) = notice.notices(ray(tmp_path), without)
    assert "Ray counts none: no NVIDIA driver is loaded; to fix it: modprobe nvidia" in text
    now[0] = 30.0
    assert notice.notices(ray(tmp_path), without)
    now[0] = 100.0
    assert notice.notices(ray(tmp_path), without)
    assert looks == [0.0, 100.0]
    for known in (None, RayState(False), RayState(True, {"GPU": 1.0})):
        assert notice.notices(ray(tmp_path), known) == ()
    assert notice.notices(None, without) == ()
