"""Find GPUs, and what Ray needs to count them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from meshray.doctor.ray.facts import GpuFacts
from meshray.doctor.ray.gpus import HIDING
from meshray.raynode.supervisor import RayNow
from meshray.runtime.privileged.boundary import is_container

_NVIDIA, _AMD = "0x10de", "0x1002"
#: PCI classes (the first four digits): VGA and 3D controllers, other displays, processing accelerators.
_DISPLAY, _CARDS = "0x0300", ("0x0300", "0x0302", "0x0380", "0x1200")
_HIDING_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
#: The folders that the loader searches in addition to those of /etc/ld.so.cache; the last is WSL's.
_LIBRARIES = ("usr/lib/*-linux-gnu*", "usr/lib64", "usr/lib", "lib64", "usr/local/nvidia/lib64", "usr/lib/wsl/lib")
_NVML = "libnvidia-ml.so.1"


def measure(ray: RayNow, root: Path = Path("/")) -> GpuFacts:
    """Return the facts of this machine; reads several dozen small files.

    Args:
        root: the machine's file system.
    """
    environ = _environment(ray, root)
    nvidia, amd = _cards(root)
    devices = sum(1 for file in (root / "dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", file.name))
    return GpuFacts(
        nvidia=max(nvidia, devices),
        amd=amd,
        driver=(root / "proc/driver/nvidia/version").exists(),
        devices=devices,
        library=_has_nvml(root, environ),
        kfd=(root / "dev/kfd").exists(),
        amdsmi=ray.installation is not None and _has_amdsmi(ray.installation.python),
        in_container=is_container() or (root / ".dockerenv").exists(),
        hidden_by=next((name for name in _HIDING_VARIABLES if environ.get(name) in HIDING), ""),
        asked=_num_gpus(ray.plan.extra_args),
        interpreter=str(ray.installation.python) if ray.installation is not None else "",
    )


def _cards(root: Path) -> tuple[int, int]:
    """Return the numbers of NVIDIA and AMD cards on the PCI bus.

    An AMD processor has a display chip, which is not used for computing unless ROCm is installed.
    """
    has_rocm = (root / "opt/rocm").exists()
    found = [(vendor, kind) for vendor, kind in _pci(root) if kind in _CARDS]
    nvidia = sum(vendor == _NVIDIA for vendor, _ in found)
    return nvidia, sum(vendor == _AMD and (kind != _DISPLAY or has_rocm) for vendor, kind in found)


def _pci(root: Path) -> Iterator[tuple[str, str]]:
    """Yield vendor and class of each device."""
    for folder in (root / "sys/bus/pci/devices").glob("*"):
        try:
            yield (folder / "vendor").read_text().strip(), (folder / "class").read_text().strip()[:6]
        except OSError:
            continue


def _environment(ray: RayNow, root: Path) -> Mapping[str, str]:
    """Return the environment of the running Ray, else the one that it would be started with."""
    try:
        raw = (root / f"proc/{ray.pid}/environ").read_bytes()
    except OSError:
        return ray.plan.environment.variables
    pairs = (item.partition("=") for item in raw.decode(errors="replace").split("\0") if "=" in item)
    return {name: value for name, _, value in pairs}


def _has_nvml(root: Path, environ: Mapping[str, str]) -> bool:
    named = [folder for folder in environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if folder.startswith("/")]
    if any((root / folder.lstrip("/") / _NVML).exists() for folder in named):
        return True
    if any(next(root.glob(f"{folder}/{_NVML}"), None) is not None for folder in _LIBRARIES):
        return True
    try:
        return _NVML.encode() in (root / "etc/ld.so.cache").read_bytes()
    except OSError:
        return False


def _has_amdsmi(python: Path) -> bool:
    prefix = python.parent.parent
    return next(prefix.glob("lib/python3*/site-packages/amdsmi/__init__.py"), None) is not None


def _num_gpus(arguments: Sequence[str]) -> str:
    found = ""
    for index, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option.replace("_", "-") == "--num-gpus":
            found = value if equals else next(iter(arguments[index + 1 : index + 2]), "")
    return found
