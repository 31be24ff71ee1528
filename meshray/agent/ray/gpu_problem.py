"""The notice of `meshray status` that Ray counts no GPU on a machine that has one."""

from __future__ import annotations

import time
from collections.abc import Callable

from meshray.doctor.ray import gpu_probe
from meshray.doctor.ray.facts import GpuFacts
from meshray.doctor.ray.gpus import why_uncounted
from meshray.model.ray_state import RayState
from meshray.raynode.supervisor import RayNow

#: The result is cached for this long, seconds: cards and drivers seldom change, and status is requested often.
_CACHE_S = 60.0


class GpuNotice:
    """The notice about this machine's GPUs."""

    def __init__(
        self, measure: Callable[[RayNow], GpuFacts] = gpu_probe.measure, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._measure = measure
        self._clock = clock
        self._cached: GpuFacts | None = None
        self._cached_at = 0.0

    def notices(self, ray: RayNow | None, counted: RayState | None) -> tuple[str, ...]:
        """Return the notice, or nothing.

        Args:
            ray: this node's Ray; None: none should run here.
            counted: its GPUs in the head's table; None: the head did not answer.
        """
        if ray is None or counted is None or not counted.alive or counted.resources.get("GPU"):
            return ()
        if self._cached is None or self._clock() - self._cached_at > _CACHE_S:
            self._cached, self._cached_at = self._measure(ray), self._clock()
        uncounted = why_uncounted(self._cached, 0)
        return (f"{uncounted.text}; to fix it: {uncounted.fix}",) if uncounted is not None else ()
