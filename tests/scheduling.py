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
        # A folder of another tier may have the same name, such as tests/unit/web.
        tier = module.parent.name if module.parts[:-2] == ("tests",) else ""
        if tier in {"container", "containerlab", "kube", "vm", "web"}:
            return tier
        return "cluster" if tier == "lab" and module.stem in OF_ONE_CLUSTER else str(module)
