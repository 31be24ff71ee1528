"""Values of Kubernetes' objects: names and quantities, as users type them.

>>> memory("8Gi"), cpus("1500m")
(8589934592, 2)
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from fractions import Fraction

from meshray.errors import UsageError
from meshray.model.ray_options import LEAST_STORE, STORE_OF_SHM
from meshray.model.release import TOKEN_RELEASE, release

#: The device /dev/net/tun comes from the machine, or is not needed; any other word is a device plugin's resource.
TUN_OF_HOST, NO_TUN = "host", "none"

#: Kubernetes' names and quantities, as this command and the chart's schema accept them. Each also means the same in Go.
NUMBER = r"[0-9]{1,12}(?:\.[0-9]{1,6})?"
QUANTITY = re.compile(rf"({NUMBER})(m|[kMGT]|[KMGT]i|)")
SCALES = {
    "": Fraction(1),
    "m": Fraction(1, 1000),
    **{unit: Fraction(1000**power) for power, unit in enumerate(("k", "M", "G", "T"), 1)},
    **{unit: Fraction(1024**power) for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti"), 1)},
}
#: Of nodes; the name of a pod's owner is part of it.
NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
SECRET = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
RESOURCE = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_VERSION = re.compile(r"[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}[A-Za-z0-9.+-]{0,40}")
#: Letters of a repository are small, except in the registry's host name, which the first slash ends.
_PORT = r"([1-9]\d{0,3}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d{2}|655[0-2]\d|6553[0-5])"
IMAGE = re.compile(
    rf"([A-Za-z0-9][A-Za-z0-9.-]*(:{_PORT})?/)?"
    r"[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"
    r"(:\w[\w.-]{0,127})?(@[a-z0-9]+:[0-9a-f]{32,128})?",
    re.ASCII,
)
LONGEST_IMAGE = 255
#: For other small objects of Ray, and for libraries that use /dev/shm, bytes.
SHM_SPARE = 256 * 1024**2
#: How much of /dev/shm Ray's object store uses at most, per cent.
STORE_PERCENT = round(STORE_OF_SHM * 100)


def shm_size(object_store: int) -> int:
    """Return how large /dev/shm must be for an object store, bytes."""
    return SHM_SPARE + object_store * 100 // STORE_PERCENT


def memory(text: str, option: str = "--memory") -> int:
    """Return a quantity of memory, bytes. Raises UsageError ``kubernetes_value``."""
    found = _quantity(text)
    if found is None or found[1] == "m" or found[0] < 1:
        raise _wrong(option, text, "8Gi, or 512Mi")
    return int(found[0])


def cpus(text: str, option: str = "--cpu") -> int:
    """Return how many CPUs Ray counts for a limit of CPU time. Raises UsageError ``kubernetes_value``."""
    found = _quantity(text)
    if found is None or found[1] not in ("", "m") or not found[0]:
        raise _wrong(option, text, "2, or 1500m")
    return math.ceil(found[0])


def require_label(text: str, option: str, longest: int) -> None:
    """Check a name that is part of host names. Raises UsageError ``kubernetes_value``."""
    if len(text) > longest or not NAME.fullmatch(text):
        raise _wrong(option, text, f"ray-gpu (a letter, then a-z, 0-9 and inner hyphens, at most {longest})")


def require_secret(text: str, option: str) -> None:
    """Check the name of a Secret. Raises UsageError ``kubernetes_value``."""
    if not SECRET.fullmatch(text):
        raise _wrong(option, text, "meshray-token")


def require_image(text: str, option: str = "--image") -> None:
    """Check the name of an image. Raises UsageError ``kubernetes_value``."""
    if len(text) > LONGEST_IMAGE or not IMAGE.fullmatch(text):
        raise _wrong(option, text, "registry.example.org/ray/worker:1")


def require_resource(text: str, option: str) -> None:
    """Check the name of a device plugin's resource. Raises UsageError ``kubernetes_value``."""
    if not RESOURCE.fullmatch(text):
        raise _wrong(option, text, "nvidia.com/gpu")


def require_tun(text: str, option: str = "--tun", *, rootless: bool = False) -> None:
    """Check where /dev/net/tun comes from. Raises UsageError ``kubernetes_value``."""
    if rootless and text in (TUN_OF_HOST, NO_TUN):
        raise UsageError(
            "kubernetes_value",
            "a pod without root needs /dev/net/tun from a device plugin",
            hint=f"install a device plugin for it, and use its resource: {option} squat.ai/tun",
        )
    if text not in (TUN_OF_HOST, NO_TUN) and not RESOURCE.fullmatch(text):
        raise _wrong(option, text, f"{TUN_OF_HOST}, {NO_TUN}, or a device plugin's resource, as in squat.ai/tun")


def require_ray(text: str, option: str) -> None:
    """Check a version of Ray, which must have tokens. Raises UsageError ``kubernetes_value``."""
    if not _VERSION.fullmatch(text):
        raise _wrong(option, text, "2.60.0")
    if release(text) < TOKEN_RELEASE:
        least = ".".join(map(str, TOKEN_RELEASE))
        raise UsageError(
            "kubernetes_value",
            f"{option} {text} is too old: before {least}, no token protects the ports of Ray that KubeRay needs open",
            hint=f"an image with Ray {least} or later, and {option} with its version",
        )


def require_room(object_store: int, limit: str) -> None:
    """Check that Ray accepts the object store, and that the pod's memory holds it.

    Raises:
        UsageError: ``kubernetes_value``.
    """
    if object_store < LEAST_STORE:
        raise UsageError(
            "kubernetes_value",
            f"--object-store of {object_store} bytes is too small: Ray needs at least {LEAST_STORE // 1024**2} MiB",
            hint="--object-store 2Gi",
        )
    needed = shm_size(object_store)
    if needed >= memory(limit):
        raise UsageError(
            "kubernetes_value",
            f"the object store needs {needed // 1024**2} MiB of shared memory, which count as memory of the pod, and "
            f"--memory is {limit}",
            hint="a larger --memory, or a smaller --object-store",
        )


def require_printable(words: Iterable[str], option: str) -> None:
    """Check words of a command line. Raises UsageError ``kubernetes_value``."""
    for word in words:
        if not word.isprintable():
            raise _wrong(option, word, "… without control characters")


def _quantity(text: str) -> tuple[Fraction, str] | None:
    """Return the number that the text means, and its unit."""
    found = QUANTITY.fullmatch(text)
    return (Fraction(found[1]) * SCALES[found[2]], found[2]) if found else None


def _wrong(option: str, text: str, example: str) -> UsageError:
    return UsageError(
        "kubernetes_value", f"{option} {text[:80]!r} is not valid in Kubernetes", hint=f"{option} {example}"
    )
