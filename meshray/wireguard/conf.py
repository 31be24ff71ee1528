"""wg-quick files, for devices that have WireGuard but not meshray, and for users who want to inspect them.

>>> print(render(config, {peer_key: "head"}, secrets=True))
# Made by meshray.
[Interface]
PrivateKey = ...
Address = 10.99.0.9/16
MTU = 1420
# head
[Peer]
PublicKey = gN65BkIKy1eCE9pP1wdc8ROUtkHLF2PfAqYdyYBz6EA=
...
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from meshray.model.address import Endpoint
from meshray.model.keys import PublicKey
from meshray.wireguard.config import DeviceConfig, PeerConfig


def render(
    config: DeviceConfig,
    names: Mapping[PublicKey, str],
    *,
    secrets: bool,
    endpoints: Mapping[PublicKey, Endpoint] = MappingProxyType({}),
) -> str:
    """Return the file that ``wg-quick`` reads.

    Args:
        names: the peers' names, written above their sections; a peer may have none.
        endpoints: the peers' endpoints, in place of the device's; wg-quick also accepts DNS names.
        secrets: False omits private and preshared keys, with a comment that says so.
    """
    lines = [] if secrets else ["# Private and preshared keys are left out."]
    lines += _interface(config, secrets=secrets)
    for key, peer in config.peers.items():
        lines += _peer(peer, names.get(key, ""), endpoints.get(key, peer.endpoint), secrets=secrets)
    return "\n".join(lines) + "\n"


def _interface(config: DeviceConfig, *, secrets: bool) -> list[str]:
    from wgconfig import WGConfig

    section = WGConfig()
    section.initialize_file("# Made by meshray.")
    if secrets:
        section.add_attr(None, "PrivateKey", config.private_key.reveal())
    if config.listen_port:
        section.add_attr(None, "ListenPort", config.listen_port)
    for address in config.addresses:
        section.add_attr(None, "Address", address)
    section.add_attr(None, "MTU", config.mtu)
    return list(section.lines)


def _peer(peer: PeerConfig, name: str, endpoint: Endpoint | None, *, secrets: bool) -> list[str]:
    # Each section is rendered separately: wgconfig parses the whole text again for every attribute that is added.
    from wgconfig import WGConfig

    key = str(peer.public_key)
    section = WGConfig()
    section.lines = []
    section.invalidate_data()
    # Whatever a name contains, the comment remains one line.
    printable = "".join(letter for letter in name if letter.isprintable()).strip()
    section.add_peer(key, f"# {printable}" if printable else None)
    if secrets and peer.preshared_key is not None:
        section.add_attr(key, "PresharedKey", peer.preshared_key.reveal())
    for network in sorted(peer.allowed_ips):
        section.add_attr(key, "AllowedIPs", network)
    if endpoint is not None:
        section.add_attr(key, "Endpoint", endpoint)
    if peer.keepalive_s:
        section.add_attr(key, "PersistentKeepalive", peer.keepalive_s)
    return list(section.lines)
