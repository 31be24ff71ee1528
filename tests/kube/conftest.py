"""One world for the whole tier: a Kubernetes cluster behind a cloud's firewall, a head outside, a laptop behind a NAT.

                switch wan 203.0.113.0/24
      ┌───────────────────┼───────────────────┐
    head                kube                 nat
203.0.113.10        203.0.113.20         203.0.113.30
                          │ pods 10.244.0.0/16    │ 192.168.7.0/24
                     ┌────┴────┐               laptop
                    pod       pod           192.168.7.10
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.go_programs import CACHE
from tests.kube import images
from tests.kube.kubernetes import Kubernetes
from tests.lab.host import Host
from tests.lab.leftovers import RunId
from tests.lab.world import World


@dataclass(frozen=True)
class Ground:
    """The environment that all tests share.

    Attributes:
        other: a host like the head, for a second mesh.
    """

    world: World
    head: Host
    other: Host
    laptop: Host
    kubernetes: Kubernetes


@pytest.fixture(scope="package")
def ground() -> Iterator[Ground]:
    """Create the hosts and the cluster, with its images; they end with the last test of this folder."""
    with World("kube", keep=[CACHE]) as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head = world.host("head", wan, "203.0.113.10")
        host = world.host("kube", wan, "203.0.113.20")
        other = world.host("other", wan, "203.0.113.40")
        nat = world.router("nat", wan, "203.0.113.30", lan="192.168.7.0/24")
        laptop = world.host("laptop", nat.lan, "192.168.7.10")
        tar = images.build(host, f"{RunId.mine()}-images")
        kubernetes = Kubernetes.start(host, f"{RunId.mine()}-kube")
        try:
            kubernetes.import_image(tar)
            host.path(tar).unlink()
            yield Ground(world, head, other, laptop, kubernetes)
        finally:
            kubernetes.stop()
