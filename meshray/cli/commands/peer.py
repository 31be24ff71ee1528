"""`meshray peer add`: a device that has only wg-quick gets a key, an address and a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

import click

from meshray.cli.app import App
from meshray.cli.options import group, json_option
from meshray.cli.results import PeerAdded, Result
from meshray.cli.tables import child
from meshray.errors import MeshrayError, UsageError
from meshray.model import wire
from meshray.model.address import Endpoint, NodeName
from meshray.model.keys import PresharedKey, PrivateKey, PublicKey
from meshray.settings import DEFAULT_MTU, KEEPALIVE_S


@group("peer")
def peer_command() -> None:
    """Let in a device that has only wg-quick (a phone, a router). On the head."""


@peer_command.command("add")
@click.argument("name")
@click.option("--config", required=True, metavar="FILE", help="The wg-quick file to write; - is standard output.")
@json_option
@click.pass_obj
def add(app: App, name: str, config: str) -> Result:
    """Add a device and write its wg-quick file.

    \b
    Examples:
      sudo meshray peer add phone --config phone.conf
      sudo meshray peer add phone --config - | qrencode -t ansiutf8

    The device's key is made by the coordinator and stored nowhere else: the file is its only copy.
    """
    node = NodeName.parse(name)
    target = None if config == "-" else _reserve(Path(config))
    try:
        answer = app.api("POST", "/v1/peers", {"name": str(node)})
        text = wg_quick(answer)
    except BaseException:
        if target is not None:
            target.unlink()
        raise
    if target is not None:
        target.write_text(text)
    return PeerAdded(str(node), str(answer.get("ip")), config, "" if target else text)


def _reserve(path: Path) -> Path:
    """Makes the file, empty and closed to others, before the key exists of which it will be the only copy."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        raise UsageError("file_exists", f"{path} exists", hint="another --config, or remove the file first") from None
    except OSError as error:
        raise UsageError(
            "file_closed", f"{path} cannot be written: {error.strerror}", hint="another --config"
        ) from None
    return path


def wg_quick(answer: Mapping[str, object]) -> str:
    """The wg-quick file out of the coordinator's answer."""
    from meshray.wireguard.conf import render
    from meshray.wireguard.device import DeviceConfig, PeerConfig

    hub = child(answer, "hub")
    network = IPv4Network(wire.text(answer, "network", 18))
    hub_key = PublicKey.parse(wire.text(hub, "public_key", 44))
    peer = PeerConfig(
        public_key=hub_key,
        allowed_ips=frozenset({network}),
        preshared_key=PresharedKey.parse(wire.text(hub, "preshared_key", 44)),
        endpoint=best_endpoint([Endpoint.parse(item) for item in wire.texts(hub, "endpoints")]),
        keepalive_s=KEEPALIVE_S,
    )
    config = DeviceConfig(
        private_key=PrivateKey.parse(wire.text(answer, "private_key", 44)),
        listen_port=0,
        addresses=(IPv4Interface(f"{wire.text(answer, 'ip', 15)}/{network.prefixlen}"),),
        mtu=DEFAULT_MTU,
        peers={hub_key: peer},
    )
    return render(config, {hub_key: str(hub.get("name", "hub"))}, secrets=True)


def best_endpoint(endpoints: list[Endpoint]) -> Endpoint:
    """What a device reaches most likely from anywhere: a name, a public address, then any.

    Raises:
        MeshrayError: ``no_address``.
    """
    if not endpoints:
        raise MeshrayError("no_address", "the hub has no address that a device could dial", hint="meshray node list")
    return min(endpoints, key=lambda endpoint: 0 if endpoint.ip is None else 1 if endpoint.ip.is_global else 2)
