"""Faults that one part knows and another suffers from: a hub that does not forward, and a cloned disk.

                 switch wan 203.0.113.0/24
     ┌──────────────┬────────┴──────┬──────────────┐
   head            nat-1          nat-2           copy       in no mesh; gets w1's disk
203.0.113.10        │ .30           │ .40      203.0.113.50
coordinator, hub   w1              w2

Both NATs are symmetric: all traffic between w1 and w2 passes through the hub.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from meshray.model.node import HUB_FORWARDS, ONE_IDENTITY
from tests.lab.cluster import Cluster
from tests.lab.faults import Fault
from tests.lab.host import Host, Result
from tests.lab.world import World

#: The time until every node's status knows, seconds.
KNOWN_S = 40


@dataclass(frozen=True)
class HubStage:
    """The mesh, without Ray, and a machine that is not a node."""

    cluster: Cluster
    head: Host
    w1: Host
    w2: Host
    copy: Host

    @classmethod
    def build(cls, world: World) -> HubStage:
        """Build the mesh; see the module's docstring."""
        wan = world.switch("wan", "203.0.113.0/24")
        head = world.host("head", wan, "203.0.113.10")
        one = world.router("nat-1", wan, "203.0.113.30", lan="192.168.7.0/24", kind="symmetric")
        two = world.router("nat-2", wan, "203.0.113.40", lan="192.168.8.0/24", kind="symmetric")
        w1, w2 = world.host("w1", one.lan, "192.168.7.10"), world.host("w2", two.lan, "192.168.8.10")
        copy = world.host("copy", wan, "203.0.113.50")
        return cls(Cluster.without_ray(head, [w1, w2]), head, w1, w2, copy)

    def health(self, host: Host) -> list[dict[str, Any]]:
        """Return the problems of `meshray status --json` on that host."""
        answer = host.run(["meshray", "status", "--json"], check=False).json()
        return list(answer.get("health", []))

    def codes(self, host: Host) -> set[tuple[str, str]]:
        """Return code and node of each."""
        return {(entry["code"], entry["node"]) for entry in self.health(host)}

    def clone(self) -> Result:
        """Start another machine with w1's disk."""
        self.w1.shell("tar -C /var/lib -cf /tmp/disk.tar --exclude=meshray/log meshray")
        shutil.copy(self.w1.path("/tmp/disk.tar"), self.copy.path("/tmp/disk.tar"))
        self.copy.shell("tar -C /var/lib -xf /tmp/disk.tar")
        return self.copy.run(["meshray", "up", "--json"], check=False, deadline_s=60)

    def give_up_the_copy(self) -> None:
        """Follow the fix, except for the token."""
        self.copy.run(["meshray", "leave", "--local", "--yes"], check=False)


Do = Callable[[HubStage], None]


def _clone(stage: HubStage) -> None:
    stage.clone()
    for host in (stage.head, stage.w1):
        host.wait_until(lambda host=host: (ONE_IDENTITY, "w1") in stage.codes(host), KNOWN_S, "the conflict")  # type: ignore[misc]


def _read_only(stage: HubStage) -> None:
    """Make it read-only as in a container: the switch is off and /proc/sys cannot be written."""
    # The switch is turned off only when nothing can write any more: the agent is notified of the change and turns it on
    # again at once. The file is opened below the mount that is read-only afterwards.
    stage.head.shell(
        "exec 9>/proc/sys/net/ipv4/conf/meshray0/forwarding;"
        "mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys; echo 0 >&9;" + _POKE
    )
    for host in (stage.head, stage.w1):
        host.wait_until(lambda host=host: (HUB_FORWARDS, "head") in stage.codes(host), KNOWN_S, "the hub's fault")  # type: ignore[misc]


def _writable(stage: HubStage) -> None:
    """Run the command that status prints."""
    fix = next((entry["fix"] for entry in stage.health(stage.head) if entry["code"] == HUB_FORWARDS), "")
    stage.head.shell(f"{fix.partition(' (')[0]}; umount /proc/sys; {_POKE}", check=False)


#: The agent checks the rules when they change.
_POKE = "nft add table ip poke; nft delete table ip poke"
#: Forwarded packets have one hop less; no reader of the rules can know whether it matches.
_UNREADABLE = (
    "table ip other { chain c { type filter hook forward priority -300; policy accept;\n"
    'iifname "meshray0" oifname "meshray0" ip ttl < 64 drop\n}; }'
)


def _drop(stage: HubStage) -> None:
    stage.head.run(["nft", "-f", "-"], stdin=_UNREADABLE)


def _drop_no_more(stage: HubStage) -> None:
    stage.head.run(["nft", "delete", "table", "ip", "other"], check=False)


def _asked(name: str, inject: Do, heal: Do, code: str, node: str, *hosts: str) -> list[Fault[HubStage]]:
    return [Fault(f"{name}-asked-on-{host}", "path", inject, heal, code, node, host) for host in hosts]


FAULTS: tuple[Fault[HubStage], ...] = (
    *_asked("hub-may-not-forward", _read_only, _writable, HUB_FORWARDS, "head", "head", "w1"),
    *_asked("hub-drops-unseen", _drop, _drop_no_more, HUB_FORWARDS, "head", "head"),
    *_asked("cloned-disk", _clone, HubStage.give_up_the_copy, ONE_IDENTITY, "w1", "head", "w1"),
)


def describe(checks: list[dict[str, Any]]) -> str:
    """Return the state, for a failed assertion."""
    return json.dumps(checks, indent=1, ensure_ascii=False)
