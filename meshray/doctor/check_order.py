"""All checks, in the order of their dependencies: the first that fails is the cause.

mesh (enrolled, credential) ──► requirements of a tunnel ──► agent_running ──► one_identity ──► host
    ──► one_address ──► outer_addresses ──► control ──► path ──► ray ──► reported
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from meshray.doctor import known_faults, mesh
from meshray.doctor.control import checks as control
from meshray.doctor.device import checks as device
from meshray.doctor.firewall import checks as firewall
from meshray.doctor.lan import checks as lan
from meshray.doctor.machine import checks as machine
from meshray.doctor.machine import clocks
from meshray.doctor.outer import checks as outer
from meshray.doctor.path import checks as path
from meshray.doctor.pod import checks as pod
from meshray.doctor.ray import checks as ray
from meshray.doctor.report import Spec
from meshray.doctor.routes import checks as routes


def _after(causes: Iterable[Spec], specs: Iterable[Spec]) -> tuple[Spec, ...]:
    """Return these checks, each hidden if one of the causes failed as well."""
    codes = tuple(cause.code for cause in causes)
    return tuple(replace(spec, depends_on=(*spec.depends_on, *codes)) for spec in specs)


#: Checks of each node's machine, before and after its agent: the agent's own requirements are also checked without one.
REQUIREMENTS: tuple[Spec, ...] = (*device.REQUIREMENTS, *machine.REQUIREMENTS)
HOST: tuple[Spec, ...] = (*device.SPECS, clocks.SPEC, *machine.SPECS, *routes.SPECS, *firewall.SPECS, *pod.SPECS)
#: What keeps a node from the networks outside the overlay.
_OUTSIDE = (known_faults.IDENTITY, lan.SPEC, outer.SPEC)
_ALL_BUT_REPORTED: tuple[Spec, ...] = (
    mesh.ENROLLED,
    control.CREDENTIAL,
    *REQUIREMENTS,
    mesh.AGENT_RUNNING,
    known_faults.IDENTITY,
    known_faults.NODES,
    *HOST,
    lan.SPEC,
    *_after((known_faults.IDENTITY, lan.SPEC), (outer.SPEC,)),
    *_after(_OUTSIDE, (*control.SPECS, *mesh.CONTROL)),
    known_faults.FORWARDS,
    *_after(_OUTSIDE, (*path.SPECS, *mesh.PATH)),
    *_after((known_faults.IDENTITY,), (*ray.SPECS, *mesh.RAY)),
)
SPECS: tuple[Spec, ...] = (*_ALL_BUT_REPORTED, known_faults.reported(spec.code for spec in _ALL_BUT_REPORTED))
