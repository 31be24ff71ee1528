"""Names and addresses are parsed at the boundary."""

import contextlib
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray.errors import UsageError
from meshray.model.address import Endpoint, NodeName, OverlayNetwork


@pytest.mark.parametrize("text", ["gpu-1", "a", "A-B", "x" * 63, "0"])
def test_host_name_labels_are_names(text: str) -> None:
    assert NodeName.parse(text) == text.lower()


@pytest.mark.parametrize("text", ["", "-a", "a-", "a_b", "a.b", "x" * 64, "ä", "a b", "../etc"])
def test_other_texts_are_not(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        NodeName.parse(text)
    assert caught.value.code == "bad_name"


@given(st.text(max_size=300))
def test_every_host_name_has_a_nearest_valid_name(hostname: str) -> None:
    assert NodeName.parse(NodeName.from_hostname(hostname))


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("203.0.113.7:51888", "203.0.113.7", 51888),
        ("[2001:db8::7]:443", "2001:db8::7", 443),
        ("head.example.org:1", "head.example.org", 1),
        ("head", "head", 51888),
        ("2001:db8::7", "2001:db8::7", 51888),
        ("[::1]", "::1", 51888),
        ("[fe80::1%eth0.7]:1", "fe80::1%eth0.7", 1),
    ],
)
def test_endpoints(text: str, host: str, port: int) -> None:
    endpoint = Endpoint.parse(text, 51888)
    assert endpoint == Endpoint(host, port)
    assert Endpoint.parse(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "host:",
        "host:0",
        "host:65536",
        "host:x",
        "10.0.0.300:1",
        "a b:1",
        "[::1]:x",
        "[fe80::1%a\nb]:1",
        "[fe80::1%a b]:1",
        "[fe80::1%\u2028]:1",
        "[fe80::1%]:1",
        "[fe80::1%0123456789abcdef]:1",
        "\u212a.example:1",
    ],
)
def test_invalid_endpoints_are_rejected(text: str) -> None:
    with pytest.raises(UsageError):
        Endpoint.parse(text, 51888)


@given(st.text(max_size=80))
def test_no_text_breaks_the_parser(text: str) -> None:
    with contextlib.suppress(UsageError):
        Endpoint.parse(text, 1)


def test_invalid_endpoints_of_one_node_are_left_out() -> None:
    assert Endpoint.parse_readable(["192.0.2.7:1", "[fe80::1%a\nb]:1", "", "vm.example.org:2"]) == (
        Endpoint("192.0.2.7", 1),
        Endpoint("vm.example.org", 2),
    )


def test_the_upper_half_mirrors_the_lower() -> None:
    network = OverlayNetwork.parse("10.99.0.0/16")
    assert str(network.node_half) == "10.99.0.0/17"
    assert network.probe_address(IPv4Address("10.99.0.7")) == IPv4Address("10.99.128.7")
    assert next(network.node_addresses()) == IPv4Address("10.99.0.1")


@pytest.mark.parametrize(
    "text", ["10.99.0.0", "10.99.0.1/16", "10.0.0.0/29", "0.0.0.0/0", "8.8.8.0/24", "fd00::/64", "x"]
)
def test_unusable_networks(text: str) -> None:
    with pytest.raises(UsageError):
        OverlayNetwork.parse(text)


def test_carrier_grade_addresses_are_usable() -> None:
    assert IPv4Address("100.64.0.9") in OverlayNetwork.parse("100.64.0.0/16")
