"""The tests that one process runs under pytest-xdist: those that share an environment."""

from __future__ import annotations

from pathlib import PurePath

from xdist.scheduler import LoadScopeScheduling

#: The modules that continue with the one cluster, in this order, in one process: a second cluster would take its time
#: again. They come after the rest of the lab; the last module ends the cluster.
OF_ONE_CLUSTER = ("test_main_job", "test_guard", "test_doctor_ray", "test_reliability", "test_teardown")


class ByEnvironment(LoadScopeScheduling):  # type: ignore[misc]
    """Schedule a module at a time, since its tests share fixtures; modules with a common environment count as one."""

    def _split_scope(self, nodeid: str) -> str:
        module = PurePath(nodeid.partition("::")[0])
        if module.parent.name in {"container", "containerlab", "kube", "vm", "web"}:
            return module.parent.name
        return "cluster" if module.parent.name == "lab" and module.stem in OF_ONE_CLUSTER else str(module)
