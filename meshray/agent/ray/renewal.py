"""The check before Ray starts on a worker: does this node's Ray still match the head's?

The head may have been upgraded since this node enrolled. A node that joined with ``--env match`` builds the head's
current environment; any other node checks its installation again, and reports what fixes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from meshray.agent.state import NodeState
from meshray.errors import MeshrayError, UnreachableError
from meshray.linux.user import User
from meshray.model.environment import Environment
from meshray.model.node import Node, Versions
from meshray.model.release import PATCH, ray_difference
from meshray.node.enrolment import MATCH, Enrolment
from meshray.raynode.versions import MATCH_AGAIN, RayInstallation, compare, inspect

log = logging.getLogger(__name__)


class Renewal:
    """Make a node's Ray match the head's; called with the current one.

    Args:
        head: returns the head in the current map.
        enrolment: returns the current enrolment.
        fetch_environment: requests the head's current environment from the coordinator.
        environ: the agent's environment; see `meshray.environment.build_commands.uv_environment`.
        renewed: called with a Ray that differs from the previous one.
    """

    def __init__(
        self,
        head: Callable[[], Node | None],
        enrolment: Callable[[], Enrolment],
        fetch_environment: Callable[[], Awaitable[Environment]],
        environ: Mapping[str, str],
        renewed: Callable[[RayInstallation], None],
    ) -> None:
        self._head = head
        self._enrolment = enrolment
        self._fetch_environment = fetch_environment
        self._environ = environ
        self._renewed = renewed

    async def __call__(self, installed: RayInstallation) -> RayInstallation:
        """Return the Ray to start.

        Raises:
            MeshrayError: ``version_mismatch``, with the command that fixes it; or the reason why the matching
                environment cannot be built.
        """
        head, enrolment = self._head(), self._enrolment()
        if head is None or head.id == enrolment.node_id or not needs_another(installed, head.versions):
            return installed
        user = User.by_uid(enrolment.user_uid)
        if enrolment.env == MATCH:
            found = await self._build(head.versions, user)
        else:
            found = await asyncio.to_thread(inspect, installed.ray, user)
        compare(found.versions, head.versions, MATCH_AGAIN)
        if found != installed:
            log.info("this node's Ray is %s (%s) from now on", found.versions.ray, found.ray)
            self._renewed(found)
        return found

    async def _build(self, head: Versions, user: User) -> RayInstallation:
        from meshray.environment.matched import Build

        log.info("the head has Ray %s on Python %s: building what matches it", head.ray, head.python)
        try:
            environment = replace(await self._fetch_environment(), ray=head.ray, python=head.python)
        except UnreachableError as error:
            raise MeshrayError(
                "environment_unknown",
                f"the head has Ray {head.ray} now, and the coordinator does not report what belongs to it: {error}",
                hint="meshray doctor",
            ) from None
        build = Build(environment, user, self._environ)
        try:
            matched = await asyncio.to_thread(build.run, lambda words: log.info("environment: %s", words))
        except asyncio.CancelledError:
            # Otherwise the agent would not end before its thread.
            build.cancel()
            raise
        return await asyncio.to_thread(inspect, matched.ray, user)


def renewal_of(state: NodeState, environ: Mapping[str, str], renewed: Callable[[RayInstallation], None]) -> Renewal:
    """Return a node's renewal, which asks its coordinator."""

    async def fetch_environment() -> Environment:
        return Environment.from_json(await state.coordinator.call("GET", "/v1/environment"))

    return Renewal(lambda: state.map.head, lambda: state.enrolment, fetch_environment, environ, renewed)


def needs_another(installed: RayInstallation, head: Versions) -> bool:
    """Return whether the head does not accept this Ray, or it is gone."""
    return ray_difference(installed.versions, head) not in ("", PATCH) or not installed.ray.exists()
