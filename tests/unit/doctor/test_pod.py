"""Kubernetes under a node: the networks of its cluster, and what a NetworkPolicy drops."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from meshray.doctor.context import Context
from meshray.doctor.pod import probe
from meshray.doctor.pod.checks import kube_proxy, pod_network
from meshray.doctor.pod.facts import Clash, PodFacts
from meshray.doctor.pod.probe import clashes, service_networks
from meshray.doctor.report import SKIP
from meshray.firewall.host_programs import Answer
from meshray.home import Home
from meshray.model.address import OverlayNetwork
from meshray.runtime.preflight import Route

OVERLAY = IPv4Network("10.99.0.0/16")
#: As nft prints the chain of kube-proxy 1.34.
TABLE = """table ip kube-proxy {
	comment "rules for kube-proxy"
	chain cluster-ips-check {
		ip daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"
		ip daddr { 10.96.0.0/12, 172.30.0.0/16 } drop comment "Drop traffic to unallocated ClusterIPs"
	}
}
"""


def test_the_network_of_services_is_read_from_kube_proxys_table() -> None:
    assert service_networks(TABLE) == (IPv4Network("10.96.0.0/12"), IPv4Network("172.30.0.0/16"))
    one = TABLE.replace("{ 10.96.0.0/12, 172.30.0.0/16 }", "10.96.0.0/12")
    assert service_networks(one) == (IPv4Network("10.96.0.0/12"),)
    counted = one.replace("10.96.0.0/12 drop", "10.96.0.0/12 counter packets 4 bytes 240 drop")
    assert service_networks(counted) == (IPv4Network("10.96.0.0/12"),)
    assert service_networks("table ip kube-proxy {\n}\n") == ()


def test_only_addresses_inside_the_overlay_clash() -> None:
    addresses = {IPv4Address("10.99.4.7"): "this pod (eth0)", IPv4Address("10.96.0.1"): "the API server"}
    assert clashes(addresses, OVERLAY) == (Clash("10.99.4.7", "this pod (eth0)"),)
    assert clashes(addresses, None) == ()


def context(tmp_path: Path, **environ: str) -> Context:
    return Context(Home(tmp_path, tmp_path / "run"), environ=environ)


def test_a_pod_with_kube_proxys_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "pod_addresses", lambda environ: {IPv4Address("10.99.4.7"): "this pod (eth0)"})
    monkeypatch.setattr(probe, "routes_here", lambda: [Route(IPv4Network("10.99.4.7/32"), "this pod (eth0)")])
    found = probe.measure(
        context(tmp_path, KUBERNETES_SERVICE_HOST="10.96.0.1"), lambda argv, stdin: Answer(0, TABLE, "")
    )
    assert (found.in_pod, found.kube_proxy, found.service_networks) == (True, True, ("10.96.0.0/12", "172.30.0.0/16"))
    assert OverlayNetwork.parse(found.free).cidr.overlaps(IPv4Network("10.99.4.7/32")) is False


def test_elsewhere_there_is_nothing_to_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshray.linux.pod.in_pod", lambda environ: False)
    found = probe.measure(context(tmp_path), lambda argv, stdin: Answer(1, "", "No such file or directory"))
    assert (found.in_pod, found.kube_proxy, found.free) == (False, False, "")
    assert (pod_network(found).status, kube_proxy(found).status) == (SKIP, SKIP)
    assert pod_network(PodFacts(in_pod=True)).status == SKIP
