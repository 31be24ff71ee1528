"""The doctor on ten nodes, from the head and from two others: it soon reports a healthy mesh.

The picture is that of `topologies.ten`.
"""

from __future__ import annotations

from tests.lab.cluster import Cluster
from tests.lab.doctoring import Doctor, until_well
from tests.lab.topologies import ten
from tests.lab.world import World

#: 5 s are promised on ten machines; here ten nodes and other tests share two cores. The closing table has the number,
#: and `python -m tests.bench doctor` measures it without other load.
WITHIN_S = 10.0


def test_ten_nodes(doctor: Doctor) -> None:
    with World("doctor-ten") as world:
        head, *workers = ten(world)
        Cluster.without_ray(head, workers)
        until_well([head])
        doctor.passes("ten nodes: open, easy and symmetric routers, no UDP", head, workers[7], workers[8])
        doctor.answers("ten nodes", head, WITHIN_S)
