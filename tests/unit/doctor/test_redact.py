"""No secret passes the redactor, whatever surrounds it."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray.doctor.redact import REMOVED, Redactor
from meshray.model.keys import PrivateKey

BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_="
SECRETS = st.lists(st.text(BASE64, min_size=8, max_size=60), min_size=1, max_size=4)
AROUND = st.text(st.sampled_from("abc 09.:/@\n\"'[]=%-meshray1_"), max_size=12)


@given(st.data(), SECRETS)
def test_no_secret_passes(data: st.DataObject, secrets: list[str]) -> None:
    pieces = data.draw(st.lists(AROUND | st.sampled_from(secrets), max_size=12))
    shown = Redactor(secrets).text("".join(pieces))
    assert not [secret for secret in secrets if secret in shown]


def plainly_public(ip: IPv4Address | IPv6Address) -> bool:
    if isinstance(ip, IPv6Address) and (ip.ipv4_mapped is not None or ip.sixtofour is not None):
        return False
    return ip.is_global and not ip.is_multicast


GLOBAL_IPV4 = st.ip_addresses(v=4).filter(plainly_public)
GLOBAL_IPV6 = st.ip_addresses(v=6).filter(plainly_public)
#: The surroundings of addresses in logs: an interface's name, brackets, ports, words with a colon.
BEFORE = st.sampled_from(["", " ", "udp:", "from ", "[", "src=", "endpoint: ", "ab:", "(", "51888:", "//"])
AFTER = st.sampled_from(["", " ", "]:51888", ":51888", "/64", "%eth0", ",", ")", ".", ": up"])


@given(GLOBAL_IPV4, BEFORE, AFTER)
def test_no_public_ipv4_address_passes(ip: IPv4Address | IPv6Address, before: str, after: str) -> None:
    shown = Redactor().text(f"{before}{ip}{after}")
    assert str(ip) not in shown
    assert "public-1" in shown


@given(GLOBAL_IPV6, BEFORE, AFTER, st.sampled_from(["compressed", "exploded"]))
def test_no_public_ipv6_address_passes(ip: IPv4Address | IPv6Address, before: str, after: str, form: str) -> None:
    text = getattr(ip, form)
    assert text not in Redactor().text(f"{before}{text}{after}")


@given(
    st.sampled_from(
        [
            "10.99.0.7",
            "127.0.0.1",
            "192.168.1.4",
            "172.17.0.1",
            "100.64.3.2",
            "169.254.1.1",
            "fe80::1",
            "fd00::7",
            "::1",
        ]
    ),
    st.sampled_from(["", "/24", "]:51888", " "]),
)
def test_private_addresses_stay(ip: str, after: str) -> None:
    assert Redactor().text(f"at {ip}{after}") == f"at {ip}{after}"


def test_an_address_keeps_its_name_and_its_forms_have_one() -> None:
    redactor = Redactor(names=["Head.Example.org"])
    assert redactor.text("8.8.8.8 2606:4700::1111 8.8.4.4") == "public-2 public-1 public-3"
    assert redactor.text("[2606:4700:0:0:0:0:0:1111]:51888 8.8.8.8") == "[public-1]:51888 public-2"
    assert redactor.text("head.example.org:51888") == "public-4:51888"
    assert redactor.text("::ffff:8.8.8.8 and ::ffff:10.0.0.1").endswith("and ::ffff:10.0.0.1")
    assert "8.8.8.8" not in redactor.text("::ffff:8.8.8.8")


def test_a_bundle_with_addresses_has_no_secrets() -> None:
    redactor = Redactor(["a-credential"], names=["head.example.org"], with_addresses=True)
    assert redactor.text("8.8.8.8 head.example.org a-credential") == f"8.8.8.8 head.example.org {REMOVED}"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("meshray join meshray1_eyJhIjoxfQ_abc-DEF", "eyJhIjoxfQ"),
        ("HTTPS_PROXY=http://user:p@ss@proxy:3128/", "p@ss"),
        ("HTTPS_PROXY=http://user:word@proxy:3128", "user"),
        ("Authorization: Bearer abcdefgh12345678", "abcdefgh12345678"),
        ("-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMG\n-----END PRIVATE KEY-----", "MIGHAgEAMBMG"),
        ("-----BEGIN EC PRIVATE KEY-----\nMIGHAgEAMBMG\n(cut here)", "MIGHAgEAMBMG"),
    ],
)
def test_texts_that_look_like_secrets_are_removed(text: str, secret: str) -> None:
    shown = Redactor().text(text)
    assert secret not in shown
    assert REMOVED in shown


def test_public_keys_stay_and_all_others_go() -> None:
    key = PrivateKey.generate()
    public = str(key.public())
    text = f"private key: {key.reveal()}\npeer: {public}\npreshared={PrivateKey.generate().reveal()}"
    shown = Redactor(public_keys=[public]).text(text)
    assert shown == f"private key: {REMOVED}\npeer: {public}\npreshared={REMOVED}"


def test_times_and_hardware_addresses_stay() -> None:
    text = "2026-11-21 12:50:33,123 INFO link/ether 02:42:ac:11:00:02 brd ff:ff:ff:ff:ff:ff"
    assert Redactor().text(text) == text
