"""What a process knows about its pod, from files and variables."""

from __future__ import annotations

import os
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from meshray.linux.hidden_processes import hides_processes, shares_machines_network
from meshray.linux.pod import cluster_addresses, in_pod

ALL, DEFAULT = "000001ffffffffff", "00000000a80425fb"
MACHINE, OTHER = "pid:[4026531836]", "pid:[4026532601]"


def process(root: Path, capabilities: str, namespace: str) -> None:
    (root / "proc/self/ns").mkdir(parents=True)
    (root / "proc/self/status").write_text(f"Name:\tpython\nCapPrm:\t{ALL}\nCapEff:\t{capabilities}\n")
    (root / "proc/self/ns/pid").symlink_to(namespace)


@pytest.mark.parametrize(
    ("capabilities", "namespace", "hides"),
    [(ALL, MACHINE, False), (DEFAULT, MACHINE, True), (ALL, OTHER, True), (DEFAULT, OTHER, True)],
)
def test_who_sees_the_programs_of_a_network(tmp_path: Path, capabilities: str, namespace: str, hides: bool) -> None:
    process(tmp_path, capabilities, namespace)
    assert hides_processes(tmp_path) is hides


def test_without_proc_nothing_is_assumed(tmp_path: Path) -> None:
    assert not hides_processes(tmp_path)


def test_a_machine_has_a_network_card(tmp_path: Path) -> None:
    (tmp_path / "sys/class/net/eth0").mkdir(parents=True)
    (tmp_path / "sys/class/net/lo").mkdir()
    assert not shares_machines_network(tmp_path)
    (tmp_path / "sys/class/net/eth0/device").mkdir()
    assert shares_machines_network(tmp_path)


POD, ON_THE_MACHINE = "# Kubernetes-managed hosts file.\n", "# Kubernetes-managed hosts file (host network).\n"


def hosts_file(root: Path, text: str, mode: int = 0o644) -> None:
    (root / "etc").mkdir()
    (root / "etc/hosts").write_text(text + "127.0.0.1 localhost\n")
    (root / "etc/hosts").chmod(mode)


def test_the_kubelet_says_whose_network_a_pod_uses(tmp_path: Path) -> None:
    node, pod = tmp_path / "node in a container", tmp_path / "pod with a card"
    (node / "sys/class/net/eth0").mkdir(parents=True)
    (pod / "sys/class/net/net1/device").mkdir(parents=True)
    hosts_file(node, ON_THE_MACHINE)
    hosts_file(pod, POD)
    assert shares_machines_network(node, owner=os.getuid())
    assert not shares_machines_network(pod, owner=os.getuid())


@pytest.mark.parametrize(("mode", "owner"), [(0o666, 0), (0o664, 0), (0o644, 1)])
@pytest.mark.parametrize("text", [POD, ON_THE_MACHINE])
def test_what_others_can_write_is_not_believed(tmp_path: Path, text: str, mode: int, owner: int) -> None:
    hosts_file(tmp_path, text, mode)
    assert not shares_machines_network(tmp_path, owner=os.getuid() + owner)
    (tmp_path / "sys/class/net/eth0/device").mkdir(parents=True)
    assert shares_machines_network(tmp_path, owner=os.getuid() + owner)


def test_a_hosts_file_that_is_a_pipe_decides_nothing(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/hosts", 0o644)
    assert not shares_machines_network(tmp_path, owner=os.getuid())


def test_a_pod_is_known_by_each_of_its_marks(tmp_path: Path) -> None:
    assert not in_pod({}, tmp_path)
    assert in_pod({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, tmp_path)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/system.slice/meshray.service\n")
    assert not in_pod({}, tmp_path)
    (tmp_path / "proc/self/cgroup").write_text("5:memory:/kubepods/burstable/pod7d/1f\n")
    assert in_pod({}, tmp_path)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "var/run/secrets/kubernetes.io/serviceaccount").mkdir(parents=True)
    assert in_pod({}, tmp_path)


def test_the_addresses_on_which_a_pod_depends(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/resolv.conf").write_text("search a.svc\nnameserver 10.96.0.10\nnameserver fd00::1\nnameserver\n")
    assert cluster_addresses({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, tmp_path) == {
        IPv4Address("10.96.0.1"): "the API server",
        IPv4Address("10.96.0.10"): "the cluster's name server",
    }
    assert cluster_addresses({"KUBERNETES_SERVICE_HOST": "kubernetes"}, tmp_path / "none") == {}
