"""The networks and the mesh on which drawn faults are injected, without Ray.

                    switch wan 203.0.113.0/24
         ┌───────────────────┬───────────────────┐
       isp (.9)          near-nat (.20)      far-nat (.30)     home routers: nothing new comes in
         │ .12/30            │ 192.168.7.0/24    │ 192.168.8.0/24
       head (.14)         near, twin            far            near and far join with --transport udp
       coordinator, hub

twin is in no mesh.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.lab.cluster import Cluster
from tests.lab.doctoring import Answer, ask
from tests.lab.drawn_fault import DrawnFault, Step
from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.lab.world import World

#: The time until a fault has its effect, seconds.
EFFECT_S = 60

HEAD, ISP, GATEWAY = "203.0.113.14", "203.0.113.9", "203.0.113.13"
NEAR_NAT, FAR_NAT = "203.0.113.20", "203.0.113.30"
NEAR, FAR = "192.168.7.10", "192.168.8.10"
NEAR_LAN, FAR_LAN = "192.168.7.1", "192.168.8.1"
PORT = 51888


@dataclass
class DrawnStage:
    """The mesh; see the module's docstring."""

    world: World
    cluster: Cluster

    @classmethod
    def build(cls, world: World) -> DrawnStage:
        """Create the networks and the mesh."""
        wan = world.switch("wan", "203.0.113.0/24")
        line = world.line("isp", wan, ISP, inside="203.0.113.12/30", mtu=1500)
        head = world.host("head", line, HEAD)
        near_nat = world.router("near-nat", wan, NEAR_NAT, lan="192.168.7.0/24")
        far_nat = world.router("far-nat", wan, FAR_NAT, lan="192.168.8.0/24")
        near, far = world.host("near", near_nat.lan, NEAR), world.host("far", far_nat.lan, FAR)
        world.host("twin", near_nat.lan, "192.168.7.66")
        return cls(world, Cluster.without_ray(head, [near, far], join=["--transport", "udp"]))

    def inject(self, fault: DrawnFault) -> None:
        """Cause the fault, and wait until it has its effect."""
        for step in fault.inject:
            self._run(step)
        wait_until(lambda: self._run(fault.effect, check=False), EFFECT_S, f"the effect of {fault.name}")

    def heal(self, fault: DrawnFault) -> None:
        """Remove the fault; a step whose counterpart was not reached may fail."""
        for step in fault.heal:
            self._run(step, check=False)

    def answer(self, fault: DrawnFault) -> Answer:
        """Return the doctor's answer, asked once."""
        return ask(self.world.hosts[fault.asked])

    def hosts_to_check(self, fault: DrawnFault) -> list[Host]:
        """Return the hosts at which all must be well again: the head, which asks all nodes, and the one asked."""
        return [self.cluster.head, self.world.hosts[fault.asked]]

    def _run(self, step: Step, *, check: bool = True) -> bool:
        text = step.shell
        for host in self.cluster.hosts:
            if f"{{{host.name}}}" in text:
                text = text.replace(f"{{{host.name}}}", self._overlay_address(host))
        text = text.replace("{token}", str(self.cluster.answers["head"]["token"]))
        command = ["bash", "-c", text]
        return self.world.hosts[step.host].run(command, check=check, deadline_s=120).returncode == 0

    def _overlay_address(self, host: Host) -> str:
        # A node that was removed and joined again may have another one.
        (link,) = host.run(["ip", "-json", "-4", "address", "show", "dev", "meshray0"]).json()
        return str(link["addr_info"][0]["local"])
