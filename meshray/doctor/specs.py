"""All checks, in the order of what depends on what: the first that fails is the cause.

mesh (enrolled, credential) ──► what a tunnel needs ──► agent_running ──► host ──► control ──► path ──► ray
"""

from __future__ import annotations

from meshray.doctor import control, host, mesh, path, ray
from meshray.doctor.report import Spec

SPECS: tuple[Spec, ...] = (
    mesh.ENROLLED,
    control.CREDENTIAL,
    *host.GROUND,
    mesh.AGENT_RUNNING,
    *host.SPECS,
    *control.SPECS,
    *mesh.CONTROL,
    *path.SPECS,
    *mesh.PATH,
    *ray.SPECS,
    *mesh.RAY,
)
