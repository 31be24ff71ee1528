"""The tiers of tests, one folder each, and the requirements of each.

    unit       pure: no sockets, no waiting
    mesh       a real coordinator and many real agents in one process, on fake devices
    install    what pip builds and installs, and what published tools say of files here, with a real index
    kube       a real Kubernetes and KubeRay, in namespaces as hosts
    web        the page, its proxies and the metrics: real browser, Prometheus and Alertmanager, in namespaces as well
    container  a real Docker engine, in namespaces as well
    containerlab  topologies of containerlab, deployed by it or by Docker alone, in namespaces as well
    lab        namespaces as hosts, real WireGuard, real Ray
    chaos      the same, with several kinds of trouble at a time, by a seed
    vm         kernel WireGuard under a real kernel

`tests.scheduling` says which tests are the work of one process, and in which order the processes take them.

`conftest.py` marks every test with its tier, skips a tier whose capability is missing, and prints the table of tiers.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.kube import programs


@dataclass(frozen=True)
class Tier:
    """A folder of tests.

    Attributes:
        timeout_s: the timeout of each test, its fixtures included, unless it is marked otherwise.
        missing: returns the capability that this machine lacks for it; empty if it lacks none.
    """

    name: str
    timeout_s: int
    missing: Callable[[], str]


def _install_misses() -> str:
    """Return what this machine lacks to fill empty environments: a package index, and the proxy of Go's modules."""
    return "git (apt-get install git)" if not _program("git") else index_misses()


def index_misses() -> str:
    """Return the package index if it cannot be reached; empty if it can."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, "hatchling"]
        return "" if _works(pip) else "a package index (pip download hatchling)"


def lab_misses() -> str:
    """Return what this machine lacks for namespaces with real WireGuard and Ray; empty if nothing."""
    if os.geteuid() != 0:
        return "root"
    programs = {
        "ip": "iproute2",
        "nft": "nftables",
        "iptables": "iptables",
        "wg": "wireguard-tools",
        "ping": "iputils-ping",
    }
    packages = [package for program, package in programs.items() if not _program(program)]
    if packages:
        return f"programs (apt-get install {' '.join(packages)})"
    namespaces = ["unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork"]
    if not _works([*namespaces, "true"]):
        return "namespaces (unshare is not permitted here)"
    if not _works([*namespaces, "ip", "tuntap", "add", "meshray-probe", "mode", "tun"]):
        return "/dev/net/tun"
    by_kernel = _works([*namespaces, "ip", "link", "add", "meshray-probe", "type", "wireguard"])
    if not by_kernel and not _program("wireguard-go"):
        return "WireGuard in the kernel, or wireguard-go (apt-get install wireguard-go)"
    if importlib.util.find_spec("ray") is None:
        return "Ray (pip install 'meshray[ray]')"
    return ""


def _lab_tests_miss() -> str:
    wanted = {"tinyproxy": "tinyproxy-bin", "sshd": "openssh-server", "ssh": "openssh-client", "sudo": "sudo"}
    packages = [package for program, package in wanted.items() if not _program(program)]
    return lab_misses() or (f"programs (apt-get install {' '.join(packages)})" if packages else "")


def _web_misses() -> str:
    """Return what is missing for a browser and for Prometheus in hosts of the lab."""
    wanted = {"prometheus": "prometheus", "prometheus-alertmanager": "prometheus-alertmanager", "chromium": "chromium"}
    packages = [package for program, package in wanted.items() if not _program(program)]
    return _lab_tests_miss() or (f"programs (apt-get install {' '.join(packages)})" if packages else "")


def _vm_misses() -> str:
    from tests.vm import machine

    try:
        machine.find()
    except machine.MissingError as missing:
        return str(missing)
    return ""


def _engine_misses() -> str:
    """Return what is missing for a Docker engine in a host of the lab; the machine's own engine is not used."""
    if not all(map(_program, ("dockerd", "containerd", "runc", "docker"))):
        return lab_misses() or "Docker's engine (apt-get install docker.io)"
    if importlib.util.find_spec("docker") is None:
        return lab_misses() or "the package docker (pip install 'meshray[docker]')"
    return lab_misses()


def _container_misses() -> str:
    """Return what is missing for an engine and for Compose."""
    return _engine_misses() or ("" if _program("docker-compose") else "programs (apt-get install docker-compose)")


def _kube_misses() -> str:
    """Return what is missing for a Kubernetes node in a host of the lab, its programs included."""
    if platform.machine() != "x86_64":
        return "an x86_64 processor (kubectl and helm are fetched for it only)"
    wanted = {"etcd": "etcd-server", "ctr": "containerd", "openssl": "openssl"}
    packages = [package for name, package in wanted.items() if not _program(name)]
    if not Path("/usr/lib/cni/bridge").exists():
        packages.append("containernetworking-plugins")
    if packages:
        return _engine_misses() or f"programs (apt-get install {' '.join(packages)})"
    absent = programs.missing()
    return _engine_misses() or (f"{', '.join(absent)} (scripts/setup.sh test builds them)" if absent else "")


TIERS = (
    Tier("unit", 60, str),
    Tier("mesh", 120, str),
    Tier("install", 400, _install_misses),
    Tier("kube", 600, _kube_misses),
    Tier("web", 400, _web_misses),
    Tier("container", 600, _container_misses),
    Tier("containerlab", 900, _engine_misses),
    Tier("lab", 400, _lab_tests_miss),
    Tier("chaos", 600, _lab_tests_miss),
    Tier("vm", 900, _vm_misses),
)


def tier_of(path: Path) -> Tier | None:
    """Return the tier of a test file, by its folder under tests/."""
    here = Path(__file__).parent
    folder = path.relative_to(here).parts[0] if here in path.parents else ""
    return next((tier for tier in TIERS if tier.name == folder), None)


def _program(name: str) -> str | None:
    path = f"{Path(sys.prefix) / 'bin'}:{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    return shutil.which(name, path=path)


def _works(argv: list[str]) -> bool:
    try:
        return subprocess.run(argv, capture_output=True, check=False, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
