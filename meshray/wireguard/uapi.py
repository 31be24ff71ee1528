"""The text protocol of a user-space engine's socket (wireguard.com/xplatform). Pure.

>>> request(SetListenPort(51888))
'set=1\\nlisten_port=51888\\n\\n'
>>> parse("listen_port=51888\\nerrno=0\\n\\n").listen_port
51888
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from ipaddress import IPv4Network, ip_address, ip_network

from meshray.errors import MeshrayError, UsageError
from meshray.linux.clock import UnixSeconds
from meshray.model.address import Endpoint
from meshray.model.keys import KEY_BYTES, PresharedKey, PrivateKey, PublicKey
from meshray.wireguard.config import PeerConfig, PeerState, WireGuardState
from meshray.wireguard.plan import (
    AddPeer,
    PeerField,
    RemovePeer,
    SetListenPort,
    SetPrivateKey,
    UpdatePeer,
    WireGuardStep,
)

READ = "get=1\n\n"
#: All zeros means "no key" in both directions.
_NO_KEY = bytes(KEY_BYTES)


def request(step: WireGuardStep) -> str:
    """Return the request that carries out one step; it contains secrets."""
    return "\n".join(("set=1", *_lines(step), "", ""))


def parse(answer: str) -> WireGuardState:
    """Parse the answer to `READ`. Unknown keys are skipped, as the protocol requires.

    Raises:
        OSError: with the number that the engine reports.
        MeshrayError: the answer is truncated, or not an engine's.
    """
    check(answer)
    try:
        return _state(answer)
    except (ValueError, KeyError, UsageError):
        # The answer may contain keys, so no part of it is repeated.
        raise MeshrayError("engine_failed", "the WireGuard engine's answer cannot be read") from None


def _state(answer: str) -> WireGuardState:
    device: dict[str, str] = {}
    peers: list[list[tuple[str, str]]] = []
    for line in answer.splitlines():
        key, _, value = line.partition("=")
        if key == "public_key":
            peers.append([])
        if peers:
            peers[-1].append((key, value))
        else:
            device[key] = value
    private = bytes.fromhex(device.get("private_key", ""))
    states = [_peer(pairs) for pairs in peers]
    return WireGuardState(
        private_key=PrivateKey(private) if private not in (b"", _NO_KEY) else None,
        listen_port=int(device.get("listen_port", 0)),
        peers={state.config.public_key: state for state in states},
    )


def check(answer: str) -> None:
    """Raise OSError with the number that the engine reports, or MeshrayError if it reports none."""
    for line in answer.splitlines():
        key, _, value = line.partition("=")
        if key == "errno" and value == "0":
            return
        if key == "errno" and re.fullmatch("-?[0-9]{1,5}", value):
            number = abs(int(value))
            raise OSError(number, os.strerror(number))
    raise MeshrayError("engine_failed", "the WireGuard engine's answer is incomplete")


def _lines(step: WireGuardStep) -> Iterator[str]:
    match step:
        case SetPrivateKey(key):
            yield f"private_key={key.hex}"
        case SetListenPort(port):
            yield f"listen_port={port}"
        case RemovePeer(public_key):
            yield from (f"public_key={public_key.hex}", "remove=true")
        case AddPeer(peer):
            yield f"public_key={peer.public_key.hex}"
            yield "replace_allowed_ips=true"
            yield from _field_lines(peer, ("preshared_key", "endpoint", "keepalive_s", "allowed_ips"))
        case UpdatePeer(peer, fields, replace_allowed_ips):
            yield from (f"public_key={peer.public_key.hex}", "update_only=true")
            if replace_allowed_ips:
                yield "replace_allowed_ips=true"
            yield from _field_lines(peer, fields)


def _field_lines(peer: PeerConfig, fields: tuple[PeerField, ...]) -> Iterator[str]:
    if "preshared_key" in fields:
        yield f"preshared_key={peer.preshared_key.hex if peer.preshared_key else _NO_KEY.hex()}"
    if "endpoint" in fields and peer.endpoint is not None:
        yield f"endpoint={peer.endpoint}"
    if "keepalive_s" in fields:
        yield f"persistent_keepalive_interval={peer.keepalive_s}"
    if "allowed_ips" in fields:
        yield from (f"allowed_ip={network}" for network in sorted(peer.allowed_ips))


def _peer(pairs: list[tuple[str, str]]) -> PeerState:
    value = dict(pairs)
    preshared = bytes.fromhex(value.get("preshared_key", ""))
    seconds = int(value.get("last_handshake_time_sec", 0))
    # meshray routes IPv4 only; an IPv6 range that a user set by hand is ignored.
    networks = (ip_network(text) for key, text in pairs if key == "allowed_ip")
    return PeerState(
        PeerConfig(
            PublicKey.from_hex(value["public_key"]),
            frozenset(network for network in networks if isinstance(network, IPv4Network)),
            preshared_key=PresharedKey(preshared) if preshared not in (b"", _NO_KEY) else None,
            endpoint=endpoint(value["endpoint"]) if "endpoint" in value else None,
            keepalive_s=int(value.get("persistent_keepalive_interval", 0)),
        ),
        last_handshake=UnixSeconds(seconds + int(value.get("last_handshake_time_nsec", 0)) / 1e9) if seconds else None,
        rx_bytes=int(value.get("rx_bytes", 0)),
        tx_bytes=int(value.get("tx_bytes", 0)),
    )


def endpoint(text: str) -> Endpoint:
    """Parse ``1.2.3.4:5`` and ``[fe80::1%eth0]:5`` as WireGuard writes them."""
    host, _, port = text.rpartition(":")
    return Endpoint(str(ip_address(host.strip("[]"))), int(port))
