"""`meshray peer add`: a device with wg-quick only gets a key, an address and a file."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import ClassVar

import click

from meshray.cli.app import App
from meshray.cli.lock_file import LockFile, open_lock
from meshray.cli.new_file import new_file
from meshray.cli.options import group, json_option, lock_option
from meshray.cli.result import Result
from meshray.cli.tables import Paint, plain
from meshray.defaults import DEFAULT_MTU, KEEPALIVE_S
from meshray.errors import MeshrayError
from meshray.model.address import Endpoint, NodeName, overlay_address
from meshray.model.keys import PresharedKey, PrivateKey, PublicKey
from meshray.protocol import api
from meshray.protocol.answers import PeerAdd
from meshray.protocol.codec import convert


@dataclass(frozen=True)
class PeerResult(Result[PeerAdd]):
    """``peer add``."""

    keeps_lines: ClassVar[bool] = True

    def text(self, paint: Paint = plain) -> str:
        """Return the device's file if it goes to standard output, else its path."""
        answer = self.answer
        return answer.text or f"{answer.name} is {answer.ip}; its file {answer.config} holds its only copy of the key"


@group("peer")
def peer_command() -> None:
    """Add a device that has only wg-quick (a phone, a router). On the head."""


@peer_command.command("add")
@click.argument("name")
@click.option("--config", required=True, metavar="FILE", help="The wg-quick file to write; - is standard output.")
@lock_option("The lock file of `init --lock`: it signs the device's key.")
@json_option
@click.pass_obj
def add(app: App, name: str, config: str, lock: str | None) -> PeerResult:
    """Add a device and write its wg-quick file.

    \b
    Examples:
      sudo meshray peer add phone --config phone.conf
      sudo meshray peer add phone --config - | qrencode -t ansiutf8

    The coordinator generates the device's key and does not store it: the file is its only copy.
    """
    node, signer = NodeName.parse(name), open_lock(lock)
    if config == "-":
        answer, text = _add(app, node, signer)
        return PeerResult(PeerAdd(str(node), answer.ip, config, text))
    # The file is created first, empty and private, because it will hold the only copy of the key.
    with new_file(Path(config), "--config", app.environ) as file:
        answer, text = _add(app, node, signer)
        file.write(text.encode())
    return PeerResult(PeerAdd(str(node), answer.ip, config, ""))


def _add(app: App, node: NodeName, signer: LockFile | None) -> tuple[api.PeerAdded, str]:
    shown = {"lock": str(signer.key.public())} if signer is not None else {}
    answer = convert(app.api("POST", "/v1/peers", {"name": str(node), **shown}), api.PeerAdded)
    _sign(app, answer, signer)
    return answer, wg_quick(answer)


def _sign(app: App, added: api.PeerAdded, lock: LockFile | None) -> None:
    """Sign the device's key with the lock or with this node's identity; remove the device if that fails."""
    from meshray.model.attestation import Attestation
    from meshray.node.identity import Identity

    if lock is None and not app.own_home.identity_key.exists():
        return
    mesh_id, key, ip = added.mesh, PublicKey.parse(added.public_key), overlay_address(added.ip)
    if lock is not None:
        signed = Attestation.sign(lock.key, mesh_id, key, counter=0, ip=ip, static=True)
    else:
        signed = Identity.load_or_create(app.own_home, mesh_id).sign_static(key, ip)
    try:
        app.api("PUT", f"/v1/peers/{added.name}", {"attestation": signed.to_json()})
    except MeshrayError:
        app.api("DELETE", f"/v1/nodes/{added.name}")
        raise


def wg_quick(added: api.PeerAdded) -> str:
    """Return the wg-quick file for the coordinator's answer."""
    from meshray.wireguard.conf import render
    from meshray.wireguard.config import DeviceConfig, PeerConfig

    hub, network = added.hub, IPv4Network(added.network)
    hub_key = PublicKey.parse(hub.public_key)
    peer = PeerConfig(
        public_key=hub_key,
        allowed_ips=frozenset({network}),
        preshared_key=PresharedKey.parse(hub.preshared_key),
        keepalive_s=KEEPALIVE_S,
    )
    config = DeviceConfig(
        private_key=PrivateKey.parse(added.private_key),
        listen_port=0,
        addresses=(IPv4Interface(f"{added.ip}/{network.prefixlen}"),),
        mtu=DEFAULT_MTU,
        peers={hub_key: peer},
    )
    endpoint = best_endpoint(list(map(Endpoint.parse, hub.endpoints)))
    return render(config, {hub_key: hub.name}, secrets=True, endpoints={hub_key: endpoint})


def best_endpoint(endpoints: list[Endpoint]) -> Endpoint:
    """Return the endpoint that a device most likely reaches from anywhere: a name, a public address, then any.

    Raises:
        MeshrayError: ``no_address``.
    """
    if not endpoints:
        raise MeshrayError("no_address", "the hub has no address that a device could dial", hint="meshray node list")
    return min(endpoints, key=lambda endpoint: 0 if endpoint.ip is None else 1 if endpoint.ip.is_global else 2)
