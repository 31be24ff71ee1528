"""What a process can know about the pod of Kubernetes in which it runs.

>>> in_pod({"KUBERNETES_SERVICE_HOST": "10.96.0.1"})
True
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path

#: Set in every container of a pod: the address of the API server's Service.
SERVICE_HOST = "KUBERNETES_SERVICE_HOST"
_ROOT = Path("/")
#: Every pod with a ServiceAccount has this folder.
_ACCOUNT = "var/run/secrets/kubernetes.io/serviceaccount"
#: The kubelet's name for the cgroups of pods.
_CGROUP = "kubepods"


def in_pod(environ: Mapping[str, str], root: Path = _ROOT) -> bool:
    """Return whether this process runs in a pod.

    Args:
        root: the machine's file system.
    """
    if environ.get(SERVICE_HOST) or (root / _ACCOUNT).is_dir():
        return True
    try:
        return _CGROUP in (root / "proc/self/cgroup").read_text()
    except OSError:
        return False


def cluster_addresses(environ: Mapping[str, str], root: Path = _ROOT) -> dict[IPv4Address, str]:
    """Return the addresses of the cluster on which this pod depends, with their purpose."""
    found = {_address(environ.get(SERVICE_HOST, "")): "the API server"}
    try:
        lines = (root / "etc/resolv.conf").read_text().splitlines()
    except OSError:
        lines = []
    for words in map(str.split, lines):
        if words[:1] == ["nameserver"] and len(words) > 1:
            found.setdefault(_address(words[1]), "the cluster's name server")
    return {address: purpose for address, purpose in found.items() if address is not None and not address.is_loopback}


def _address(text: str) -> IPv4Address | None:
    try:
        return IPv4Address(text)
    except AddressValueError:
        return None
