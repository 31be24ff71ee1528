"""wg-quick files, verified by wgconfig's reader here and by wg-quick and wg in the lab."""

from __future__ import annotations

import io
from ipaddress import IPv4Interface, IPv4Network

from wgconfig import WGConfig

from meshray.model.address import Endpoint
from meshray.model.keys import PresharedKey, PrivateKey, PublicKey
from meshray.wireguard.conf import render
from meshray.wireguard.config import DeviceConfig, PeerConfig

HEAD, OTHER = PublicKey(b"\x0a" * 32), PublicKey(b"\x0d" * 32)
SECRET = PresharedKey(b"\x0b" * 32)
CONFIG = DeviceConfig(
    PrivateKey(b"\x0c" * 32),
    51888,
    (IPv4Interface("10.99.0.9/16"), IPv4Interface("10.99.128.9/32")),
    1420,
    {
        HEAD: PeerConfig(
            HEAD,
            frozenset([IPv4Network("10.99.0.0/16"), IPv4Network("10.98.0.0/16")]),
            SECRET,
            Endpoint("203.0.113.7", 51888),
            20,
        ),
        OTHER: PeerConfig(OTHER, frozenset()),
    },
)
EXPECTED = f"""# Made by meshray.
[Interface]
PrivateKey = {CONFIG.private_key.reveal()}
ListenPort = 51888
Address = 10.99.0.9/16, 10.99.128.9/32
MTU = 1420

# head
[Peer]
PublicKey = {HEAD}
PresharedKey = {SECRET.reveal()}
AllowedIPs = 10.98.0.0/16, 10.99.0.0/16
Endpoint = 203.0.113.7:51888
PersistentKeepalive = 20

[Peer]
PublicKey = {OTHER}
"""


def test_the_whole_file() -> None:
    assert render(CONFIG, {HEAD: "head"}, secrets=True) == EXPECTED


def test_without_secrets_the_output_has_none_and_says_so() -> None:
    text = render(CONFIG, {HEAD: "head"}, secrets=False)
    assert "left out" in text.splitlines()[0]
    assert "PrivateKey" not in text
    assert "PresharedKey" not in text
    assert SECRET.reveal() not in text
    assert CONFIG.private_key.reveal() not in text


def test_a_name_cannot_break_out_of_its_comment() -> None:
    text = render(CONFIG, {HEAD: "head\n[Peer]\nPublicKey = x", OTHER: "\n"}, secrets=True)
    assert "\n# head[Peer]PublicKey = x\n" in text
    reader = WGConfig()
    reader.read_from_fileobj(io.StringIO(text))
    assert reader.get_peers() == [str(HEAD), str(OTHER)]
