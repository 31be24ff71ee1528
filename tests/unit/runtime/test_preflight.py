"""The examination before any change."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from meshray.defaults import INTERFACE
from meshray.errors import MeshrayError, UsageError
from meshray.home import Home
from meshray.model.address import OverlayNetwork
from meshray.runtime import preflight
from meshray.runtime.agent_service import BACKGROUND, SYSTEMD, choose, last_logged_error, passed_on
from meshray.runtime.preflight import (
    Route,
    choose_network,
    clash,
    overlap,
    pod_addresses,
    require_no_clash,
    routes_here,
)

OVERLAY = OverlayNetwork.parse("10.99.0.0/16")


def routes(*networks: str, interface: str = "eth0") -> list[Route]:
    return [Route(IPv4Network(network), interface) for network in networks]


@pytest.mark.parametrize("network", ["10.99.0.0/16", "10.99.3.0/24", "10.0.0.0/8", "10.99.255.255/32", "8.0.0.0/6"])
def test_what_overlaps(network: str) -> None:
    assert overlap(OVERLAY.cidr, routes("192.168.0.0/24", network)) == Route(IPv4Network(network), "eth0")


@pytest.mark.parametrize("network", ["0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "10.98.0.0/16", "172.17.0.0/16"])
def test_other_networks_do_not_overlap(network: str) -> None:
    assert overlap(OVERLAY.cidr, routes(network)) is None


def test_our_own_interface_is_not_an_obstacle() -> None:
    assert overlap(OVERLAY.cidr, routes("10.99.0.0/16", interface=INTERFACE)) is None


def test_the_hint_offers_a_network_that_is_free() -> None:
    with pytest.raises(MeshrayError, match=r"10\.99\.0\.0/16 on tun0") as caught:
        require_no_clash(OVERLAY, routes("10.99.0.0/16", "10.201.0.0/16", interface="tun0"))
    assert caught.value.hint == "meshray init --network 172.29.0.0/16"
    with pytest.raises(MeshrayError) as caught:
        require_no_clash(OVERLAY, routes("10.99.0.0/24"), new_mesh=False)
    assert "on the head" in caught.value.hint


@pytest.mark.parametrize("network", ["10.99.0.0/16", "10.99.3.0/24", "10.99.255.255/32"])
def test_an_equal_or_narrower_route_clashes(network: str) -> None:
    assert clash(OVERLAY.cidr, routes(network)) == Route(IPv4Network(network), "eth0")


@pytest.mark.parametrize("network", ["10.0.0.0/8", "10.96.0.0/12", "8.0.0.0/6", "192.168.0.0/16"])
def test_a_wider_route_does_not_clash(network: str) -> None:
    """10.0.0.0/8 of an office's VPN, 10.96.0.0/12 of minikube."""
    assert clash(OVERLAY.cidr, routes(network)) is None
    # A VPN's own table has precedence over the main one.
    assert clash(OVERLAY.cidr, [Route(IPv4Network(network), "tun0", is_main=False)]) == (
        Route(IPv4Network(network), "tun0", is_main=False) if network != "192.168.0.0/16" else None
    )


@pytest.mark.parametrize(
    ("taken", "network"),
    [
        ((), "10.99.0.0/16"),
        (("192.168.0.0/24",), "10.99.0.0/16"),
        (("10.96.0.0/12",), "10.201.0.0/16"),
        (("10.0.0.0/8",), "172.29.0.0/16"),
        (("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"), "10.99.0.0/16"),
        (("10.0.0.0/8", "10.99.0.0/24", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"), "10.201.0.0/16"),
    ],
)
def test_a_new_mesh_takes_a_network_that_is_free(taken: tuple[str, ...], network: str) -> None:
    chosen, because = choose_network(routes(*taken))
    assert str(chosen) == network
    assert (because is None) == (network == "10.99.0.0/16")


@pytest.mark.parametrize(
    ("environ", "systemd", "euid", "kind"),
    [
        ({}, True, 0, SYSTEMD),
        ({}, False, 0, BACKGROUND),
        ({}, True, 1000, BACKGROUND),
        ({"MESHRAY_HOME": "/srv/mesh"}, True, 0, BACKGROUND),
        ({"MESHRAY_HOME": "/srv/mesh", "MESHRAY_SERVICE": "systemd"}, True, 0, SYSTEMD),
        ({"MESHRAY_SERVICE": "background"}, True, 0, BACKGROUND),
    ],
)
def test_unit_or_background(environ: dict[str, str], systemd: bool, euid: int, kind: str) -> None:
    assert choose(environ, systemd_runs=systemd, euid=euid) == kind


def test_another_word_is_refused() -> None:
    with pytest.raises(UsageError):
        choose({"MESHRAY_SERVICE": "cron"}, systemd_runs=False, euid=0)


def test_a_unit_holds_no_passwords() -> None:
    environ = {"HTTPS_PROXY": "http://ann:secret@proxy:3128", "NO_PROXY": "10.0.0.0/8", "PATH": "/bin"}
    assert passed_on(environ) == {"NO_PROXY": "10.0.0.0/8"}


def test_the_last_lines_are_errors(tmp_path: Path) -> None:
    home = Home(tmp_path, tmp_path / "run")
    assert last_logged_error(home) == ""
    home.logs.mkdir()
    (home.logs / "agent.log").write_text("x INFO all is well\nerror: the store is damaged\nhint: restore it\n")
    assert last_logged_error(home) == "the store is damaged"


def test_in_a_pod_each_address_of_the_cluster_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network plugin may give a pod one address, and no route to the others."""
    found = {IPv4Address("10.99.4.7"): "this pod (eth0)", IPv4Address("10.96.0.10"): "the cluster's name server"}
    monkeypatch.setattr(preflight, "pod_addresses", lambda environ: found)
    monkeypatch.setattr(preflight, "routes", lambda: [Route(IPv4Network("0.0.0.0/0"), "eth0")])
    with pytest.raises(MeshrayError, match=r"10\.99\.4\.7/32 on this pod"):
        require_no_clash(OverlayNetwork.parse("10.99.0.0/16"), routes_here({}))
    require_no_clash(OverlayNetwork.parse("10.201.0.0/16"), routes_here({}))


def test_outside_of_a_pod_no_address_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshray.linux.pod.in_pod", lambda environ: False)
    assert pod_addresses({}) == {}
