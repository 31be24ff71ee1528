"""`meshray peer add`: a device that has only wg-quick gets a key, an address and a file."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

import click

from meshray.cli.app import App
from meshray.cli.lock_file import LockFile, open_lock
from meshray.cli.new_file import new_file
from meshray.cli.options import group, json_option, lock_option
from meshray.cli.results import PeerAdded, Result
from meshray.cli.tables import child
from meshray.defaults import DEFAULT_MTU, KEEPALIVE_S
from meshray.errors import MeshrayError
from meshray.model import wire
from meshray.model.address import Endpoint, NodeName
from meshray.model.keys import PresharedKey, PrivateKey, PublicKey


@group("peer")
def peer_command() -> None:
    """Let in a device that has only wg-quick (a phone, a router). On the head."""


@peer_command.command("add")
@click.argument("name")
@click.option("--config", required=True, metavar="FILE", help="The wg-quick file to write; - is standard output.")
@lock_option("The lock file of `init --lock`: it signs the device's key.")
@json_option
@click.pass_obj
def add(app: App, name: str, config: str, lock: str | None) -> Result:
    """Add a device and write its wg-quick file.

    \b
    Examples:
      sudo meshray peer add phone --config phone.conf
      sudo meshray peer add phone --config - | qrencode -t ansiutf8

    The device's key is made by the coordinator and stored nowhere else: the file is its only copy.
    """
    node, signer = NodeName.parse(name), open_lock(lock)
    if config == "-":
        answer, text = _add(app, node, signer)
        return PeerAdded(str(node), str(answer.get("ip")), config, text)
    # The file is there, empty and closed to others, before the key exists of which it will be the only copy.
    with new_file(Path(config), "--config", app.environ) as file:
        answer, text = _add(app, node, signer)
        file.write(text.encode())
    return PeerAdded(str(node), str(answer.get("ip")), config, "")


def _add(app: App, node: NodeName, signer: LockFile | None) -> tuple[Mapping[str, object], str]:
    shown = {"lock": str(signer.key.public())} if signer is not None else {}
    answer = app.api("POST", "/v1/peers", {"name": str(node), **shown})
    _sign(app, answer, signer)
    return answer, wg_quick(answer)


def _sign(app: App, answer: Mapping[str, object], lock: LockFile | None) -> None:
    """Sign the device's key, with the lock or with this node's identity; take the device back where that fails."""
    from meshray.model.attestation import Attestation
    from meshray.node.identity import Identity

    if lock is None and not app.own_home.identity_key.exists():
        return
    mesh_id, name = wire.text(answer, "mesh", 64), wire.text(answer, "name", 63)
    key, ip = PublicKey.parse(wire.text(answer, "public_key", 44)), wire.address(answer, "ip")
    if lock is not None:
        signed = Attestation.sign(lock.key, mesh_id, key, counter=0, ip=ip, static=True)
    else:
        signed = Identity.load_or_make(app.own_home, mesh_id).sign_static(key, ip)
    try:
        app.api("PUT", f"/v1/peers/{name}", {"attestation": signed.to_json()})
    except MeshrayError:
        app.api("DELETE", f"/v1/nodes/{name}")
        raise


def wg_quick(answer: Mapping[str, object]) -> str:
    """The wg-quick file out of the coordinator's answer."""
    from meshray.wireguard.conf import render
    from meshray.wireguard.config import DeviceConfig, PeerConfig

    hub = child(answer, "hub")
    network = IPv4Network(wire.text(answer, "network", 18))
    hub_key = PublicKey.parse(wire.text(hub, "public_key", 44))
    peer = PeerConfig(
        public_key=hub_key,
        allowed_ips=frozenset({network}),
        preshared_key=PresharedKey.parse(wire.text(hub, "preshared_key", 44)),
        keepalive_s=KEEPALIVE_S,
    )
    config = DeviceConfig(
        private_key=PrivateKey.parse(wire.text(answer, "private_key", 44)),
        listen_port=0,
        addresses=(IPv4Interface(f"{wire.text(answer, 'ip', 15)}/{network.prefixlen}"),),
        mtu=DEFAULT_MTU,
        peers={hub_key: peer},
    )
    endpoint = best_endpoint([Endpoint.parse(item) for item in wire.texts(hub, "endpoints")])
    return render(config, {hub_key: str(hub.get("name", "hub"))}, secrets=True, endpoints={hub_key: endpoint})


def best_endpoint(endpoints: list[Endpoint]) -> Endpoint:
    """What a device reaches most likely from anywhere: a name, a public address, then any.

    Raises:
        MeshrayError: ``no_address``.
    """
    if not endpoints:
        raise MeshrayError("no_address", "the hub has no address that a device could dial", hint="meshray node list")
    return min(endpoints, key=lambda endpoint: 0 if endpoint.ip is None else 1 if endpoint.ip.is_global else 2)
