"""One example of each command's answer, for the reference; tests compare the fields of ``--json`` with them.

>>> BY_COMMAND["token revoke"].to_json()
{'id': '1f2e3d4c', 'revoked': True}
"""

from __future__ import annotations

from collections.abc import Mapping

from meshray.cli.forward_results import Forwarded
from meshray.cli.results import (
    Dashboard,
    DoctorResult,
    EnvResult,
    FileText,
    InitResult,
    JoinResult,
    Left,
    Locked,
    NodeChanged,
    NodeList,
    NodeRemoved,
    PeerAdded,
    PingResult,
    Result,
    SecretsRotated,
    StatusResult,
    Stopped,
    TokenCreated,
    TokenList,
    TokenRevoked,
)
from meshray.cli.web_results import PageAddress, PassList, PassRevoked
from meshray.model.ray_ports import RayPorts
from meshray.protocol.answers import NodeEntry, TokenEntry
from meshray.protocol.api import Restored
from meshray.protocol.codec import convert
from meshray.protocol.control import OtherPath
from meshray.protocol.doctor import Check
from meshray.protocol.status import PathStatus, Status
from meshray.protocol.web_answers import PassEntry

_PATH: Mapping[str, object] = {
    "kind": "direct",
    "transport": "udp",
    "endpoint": "203.0.113.7:51888",
    "rtt_ms": 12.4,
    "loss": 0.0,
    "mtu": 1420,
    "handshake_age_s": 31.0,
    "rx_bytes": 184302,
    "tx_bytes": 90210,
    "throughput_mbit_s": None,
    "reason": "",
}
_SELF: Mapping[str, object] = {
    **_PATH,
    "kind": "self",
    "transport": None,
    "endpoint": None,
    "rtt_ms": None,
    "loss": None,
    "handshake_age_s": None,
    "rx_bytes": 0,
    "tx_bytes": 0,
    "throughput_mbit_s": None,
}
_OTHER: Mapping[str, object] = {"kind": "hub", "to": "hub-1", "rtt_ms": 18.9, "reason": ""}
_RESOURCES = {"CPU": 8.0, "GPU": 1.0, "memory": 34359738368.0, "object_store_memory": 10737418240.0}
_SUMMARY: Mapping[str, object] = {
    "mesh": "lab",
    "node": {"name": "gpu-1", "ip": "10.99.0.2"},
    "path": {"kind": "direct", "transport": "udp"},
    "ray": {"alive": True, "nodes": 2},
    "ray_address": "10.99.0.1:6379",
    "dashboard": "http://10.99.0.1:8265",
}
_USED: Mapping[str, float] = {"CPU": 2.0, "GPU": 0.0, "memory": 0.0}
_STATUS: Mapping[str, object] = {
    "mesh": "lab",
    "revision": 7,
    "self": "gpu-1",
    "coordinator": {"reachable": True},
    "nodes": [
        {
            "name": "head",
            "ip": "10.99.0.1",
            "role": "head",
            "online": True,
            "path": _PATH,
            "ray": {
                "alive": True,
                "resources": _RESOURCES,
                "used": _USED,
                "last_known": None,
                "ports": RayPorts().to_json(head=True),
            },
            "drained": False,
            "down": False,
            "silent": False,
            "since": 1767225600.0,
        },
        {
            "name": "gpu-1",
            "ip": "10.99.0.2",
            "role": "worker",
            "online": True,
            "path": _SELF,
            "ray": {
                "alive": True,
                "resources": _RESOURCES,
                "used": _USED,
                "last_known": None,
                "ports": RayPorts.of({"metrics_export": 8500}).to_json(head=False),
            },
            "drained": False,
            "down": False,
            "silent": False,
            "since": 1767225600.0,
        },
    ],
    "totals": {name: 2 * amount for name, amount in _RESOURCES.items()},
    "open": [],
    "environment": ["HF_TOKEN"],
    "unguarded": True,
    "problems": ["Ray's ports are open to every network that this machine is in: nft: Operation not permitted"],
    "health": [
        {
            "code": "guard",
            "text": "Ray's ports are open to every network that this machine is in: nft: Operation not permitted",
            "node": "gpu-1",
            "fix": "meshray doctor",
        }
    ],
    "notices": ["new hubs, which read what they forward: gpu-2 (10.99.0.3) since 2026-01-01 12:00"],
}
_CHECK: Mapping[str, object] = {
    "code": "handshake_fresh",
    "title": "the last WireGuard handshake is fresh",
    "status": "fail",
    "node": "head",
    "peer": "gpu-1",
    "evidence": "there was none",
    "fix": "on head: meshray status; between here and there: is the mesh's UDP port open?",
    "repair": None,
    "depends_on": ["agent_running"],
}
_TOKEN: Mapping[str, object] = {
    "id": "1f2e3d4c",
    "uses": 1,
    "used": 0,
    "expires": 1767225600.0,
    "ephemeral": False,
    "created": 1767139200.0,
    "revoked": False,
    "roles": [],
    "name": "gpu-1",
    "replace": True,
}
_PASS: Mapping[str, object] = {
    "id": "5d0c9e1b",
    "name": "ana",
    "level": "read",
    "created": 1767225600.0,
    "expires": 1767254400.0,
    "used": 1767225660.0,
    "revoked": False,
}
_NODE: Mapping[str, object] = {
    "id": "5d41402abc4b2a76",
    "name": "gpu-1",
    "ip": "10.99.0.2",
    "public_key": "gN65BkIKy1eCE9pP1wdc8ROUtkHLF2PfAqYdyYBz6EA=",
    "roles": ["worker"],
    "endpoints": ["192.0.2.7:40000"],
    "seen": "198.51.100.7:40000",
    "hubs": ["0cc175b9c0f1b6a8"],
    "online": True,
    "ephemeral": False,
    "drained": False,
    "down": False,
    "ended": False,
    "silence": "",
    "labels": {"zone": "lab-2"},
    "versions": {"meshray": "0.1.0", "ray": "2.60.0", "python": "3.11.7"},
    "ray_instance": "",
    "enrolled": 1767139200.0,
}
_RESTORED: Mapping[str, object] = {
    "at": 1767225600.0,
    "serial": 41,
    "whole": True,
    "had": 37,
    "added": ["gpu-1"],
    "removed": [],
}

_ROTATION: Mapping[str, object] = {"epoch": 2, "started": True, "away": ["gpu-3"], "static": [], "too_old": []}

#: Command, as typed after `meshray` → its answer.
BY_COMMAND: Mapping[str, Result] = {
    "init": InitResult(
        token="meshray1_…",  # noqa: S106 - no token
        mesh="lab",
        name="lab",
        ip="10.99.0.1",
        ray_address="10.99.0.1:6379",
        dashboard="http://10.99.0.1:8265",
        port=51888,
        endpoints=("203.0.113.7:51888",),
        open_commands=("ufw allow 51888/udp", "ufw allow 51888/tcp"),
    ),
    "join": JoinResult.read(_SUMMARY),
    "up": JoinResult.read(_SUMMARY, fresh=False),
    "down": Stopped("gpu-1", was_running=True),
    "leave": Left("gpu-1", unenrolled=True),
    "status": StatusResult(convert(_STATUS, Status), _STATUS),
    "doctor": DoctorResult((convert(_CHECK, Check),)),
    "ping": PingResult("head", (12.6, None, 12.4), convert(_PATH, PathStatus), (convert(_OTHER, OtherPath),)),
    "token create": TokenCreated("meshray1_…", "1f2e3d4c", 1, 1767225600.0, name="gpu-1", replace=True),
    "token list": TokenList((convert(_TOKEN, TokenEntry),)),
    "token revoke": TokenRevoked("1f2e3d4c"),
    "forward": Forwarded("127.0.0.1", 8350, "gpu-1", 8350),
    "web invite": PageAddress(
        "https://203.0.113.7:51888/enter#…", "read", 1767254400.0, "8F:3A:…", "5d0c9e1b", "ana", 51888
    ),
    "web list": PassList((convert(_PASS, PassEntry),)),
    "web revoke": PassRevoked("5d0c9e1b", "ana"),
    "web open": PageAddress("https://203.0.113.7:51888/enter#…", "use", 1767225720.0, "8F:3A:…"),
    "node add": JoinResult.read(_SUMMARY),
    "node list": NodeList((convert(_NODE, NodeEntry),), convert(_RESTORED, Restored)),
    "node rm": NodeRemoved("gpu-1", _ROTATION),
    "node rotate-key": NodeChanged("gpu-1", "rotated", {"public_key": "gN65BkIKy1eCE9pP1wdc8ROUtkHLF2PfAqYdyYBz6EA="}),
    "node rename": NodeChanged("gpu-1", "renamed", {"name": "gpu-7"}),
    "node drain": NodeChanged("gpu-1", "drained", {"ray_node_id": "3f5c…", "deadline_s": 600}),
    "secrets rotate": SecretsRotated(_ROTATION),
    "peer add": PeerAdded("phone", "10.99.0.9", "phone.conf"),
    "env lock": Locked("2.60.0", "3.11.7", ("numpy==2.1.0", "torch==2.9.1"), ("-e /home/ada/models",)),
    "dashboard": Dashboard(
        "http://10.99.0.1:8265",
        "0f2c…",
        "ssh -N -L 8265:10.99.0.1:8265 ada@gpu-1",
        RayPorts().to_json(head=True),
    ),
    "completion": FileText("completion bash", "…"),
    "env": EnvResult({"RAY_ADDRESS": "10.99.0.1:6379", "RAY_AUTH_MODE": "token"}, "/home/ada/ray/bin", leads=True),
    "render wireguard": FileText("wireguard", "# Made by meshray.\n[Interface]\n…"),
    "render systemd": FileText("systemd", "[Unit]\n…"),
    "render slurm": FileText("slurm", "#!/bin/bash\n…"),
    "render prometheus": FileText("prometheus", "global:\n…"),
    "render alerts": FileText("alerts", "groups:\n…"),
    "render grafana": FileText("grafana", "{\n…"),
    "logs": FileText("agent", "2026-01-01 12:00:00,000 INFO connected to the coordinator\n"),
}
