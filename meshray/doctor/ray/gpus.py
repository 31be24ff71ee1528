"""Why Ray counts no GPU on a machine that has one: the first cause that the facts show (pure).

Ray queries NVIDIA's cards through libnvidia-ml.so.1 (NVML) and AMD's through the Python package amdsmi; if either does
not answer, Ray starts nevertheless and offers no GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshray.doctor.ray.facts import GpuFacts

_RESTART = "meshray down; meshray up"
#: Ray interprets these values as no card at all (nvidia_gpu.py and amd_gpu.py of ray._private.accelerators).
HIDING = ("", "NoDevFiles")


@dataclass(frozen=True)
class Uncounted:
    """The reason why Ray counts no GPU, as one sentence, and the commands that fix it."""

    text: str
    fix: str


def why_uncounted(gpus: GpuFacts, counted: float) -> Uncounted | None:
    """Return why Ray counts no GPU; None if it counts some, the machine has none, or the user wants none.

    Args:
        counted: the resource ``GPU`` that Ray offers on this node.
    """
    if counted or not gpus.cards or gpus.asked == "0":
        return None
    cause, fix = _hidden(gpus) or (_nvidia(gpus) if gpus.nvidia else _amd(gpus))
    return Uncounted(f"the machine has {gpus.cards}, and Ray counts none: {cause}", fix)


def _hidden(gpus: GpuFacts) -> tuple[str, str] | None:
    if not gpus.hidden_by:
        return None
    return f"{gpus.hidden_by} in Ray's environment hides them", f"unset {gpus.hidden_by}; {_RESTART}"


def _nvidia(gpus: GpuFacts) -> tuple[str, str]:
    if gpus.in_container and not gpus.devices:
        return (
            "they were not passed to this container",
            "on the machine itself: docker info | grep -i nvidia (NVIDIA's container toolkit must be installed); then "
            "recreate this container with --gpus all",
        )
    if not gpus.driver:
        return (
            "no NVIDIA driver is loaded",
            f"modprobe nvidia; nvidia-smi; where these fail, install your distribution's NVIDIA driver; {_RESTART}",
        )
    if not gpus.devices:
        return "the driver did not create the device files /dev/nvidia0, …", f"nvidia-modprobe -u -c 0; {_RESTART}"
    if not gpus.library:
        return (
            "libnvidia-ml.so.1, through which Ray counts them, is missing",
            f"ldconfig -p | grep libnvidia-ml; it belongs to the driver's packages (libnvidia-ml1); {_RESTART}",
        )
    return "the driver did not answer, or was loaded after Ray's start", f"nvidia-smi; {_RESTART}"


def _amd(gpus: GpuFacts) -> tuple[str, str]:
    if not gpus.kfd:
        if gpus.in_container:
            return (
                "they were not passed to this container",
                "recreate it with: docker run --device /dev/kfd --device /dev/dri",
            )
        return "there is no /dev/kfd: the amdgpu driver is not loaded", f"modprobe amdgpu; ls -l /dev/kfd; {_RESTART}"
    if not gpus.amdsmi:
        return (
            "the package amdsmi, through which Ray counts them, is not in its environment",
            f"{gpus.interpreter or 'python'} -m pip install amdsmi; {_RESTART}",
        )
    return "the driver did not answer, or was loaded after Ray's start", f"amd-smi list; {_RESTART}"
