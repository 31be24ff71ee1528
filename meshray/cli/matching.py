"""`--env match` for the command line: request the head's environment, build it, and report progress.

>>> matched = match_with_token(app, progress, token, via=None)
>>> matched.ray
PosixPath('/home/ada/.cache/meshray/envs/3f0c…/bin/ray')
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from meshray.cli.app import App
from meshray.errors import InterruptedByUser, MeshrayError
from meshray.home import Home
from meshray.model.environment import Environment
from meshray.model.node import Versions
from meshray.model.release import PATCH, ray_difference
from meshray.protocol.api import PresentedToken
from meshray.protocol.codec import to_json

if TYPE_CHECKING:
    from meshray.cli.enrolment_route import EnrolmentRoute
    from meshray.environment.matched import Matched
    from meshray.linux.user import User
    from meshray.model.token import Token
    from meshray.node.enrolment import Enrolment
    from meshray.runtime.base import Progress

_STAGE = "environment"
_PATH = "/v1/environment"


def match_with_token(app: App, progress: Progress, token: Token, via: EnrolmentRoute | None) -> Matched:
    """Return the environment for a machine that is not a node yet; this does not use up the token.

    Raises:
        UnreachableError: the coordinator does not answer. RefusedError: it does not accept the token.
        MeshrayError: as `match` does.
    """
    from meshray.linux.user import User

    return match(app, progress, request_environment(app, progress, token, via), User.invoking(app.environ))


def match_again(app: App, home: Home, enrolment: Enrolment) -> None:
    """Match the head's current versions and recorded packages again, before a node with ``--env match`` starts.

    If the coordinator does not answer yet, or the build fails, the node starts with its existing environment; its agent
    builds what is required before Ray starts, or reports why it cannot.
    """
    from meshray.client.coordinator import Coordinator
    from meshray.linux.user import User

    coordinator = Coordinator(enrolment.coordinators, bytes.fromhex(enrolment.fingerprint), enrolment.credential)
    try:
        environment = Environment.from_json(asyncio.run(coordinator.call("GET", _PATH)))
        with app.progress() as progress:
            matched = match(app, progress, environment, User.by_uid(enrolment.user_uid))
    except InterruptedByUser:
        raise
    except MeshrayError as error:
        app.warn(f"{error.message}; Ray's environment stays as it is")
        return
    if str(matched.ray) != enrolment.ray:
        replace(enrolment, ray=str(matched.ray)).save(home)


def request_environment(app: App, progress: Progress, token: Token, via: EnrolmentRoute | None) -> Environment:
    """Return the head's environment. Raises as `match_with_token` does."""
    from meshray.client.coordinator import Coordinator

    coordinator = Coordinator(token.coordinators, token.fingerprint)
    body: Mapping[str, object] = to_json(PresentedToken(token.mesh_id, token.token_id, token.secret))
    if via is not None:
        from meshray.cli.enrolment_route import PostRequest

        return Environment.from_json(via.call(app, PostRequest(coordinator, _PATH, body)))
    return Environment.from_json(
        asyncio.run(coordinator.call("POST", _PATH, body, on_wait=lambda words: progress.stage(_STAGE, "run", words)))
    )


def match(app: App, progress: Progress, environment: Environment, user: User) -> Matched:
    """Return the environment in this user's cache, which is built if it does not exist.

    Raises:
        MeshrayError: why it cannot be built; nothing remains of it.
    """
    from meshray.environment.matched import Build

    what = f"Ray {environment.ray}, Python {environment.python}"
    progress.stage(_STAGE, "run", what)
    since = time.monotonic()
    build = Build(environment, user, app.environ)
    matched = build.run(lambda words: progress.stage(_STAGE, "run", words))
    took = f"built in {time.monotonic() - since:.0f} s" if matched.built else "already built"
    progress.stage(_STAGE, "ok", f"{what}: {took}, {matched.folder}")
    return matched


def warn_of_patch(app: App, mine: Versions, head: Versions) -> None:
    """Warn of a difference that Ray accepts."""
    if ray_difference(mine, head) == PATCH:
        app.warn(
            f"this node has Python {mine.python}, the head {head.python}: Ray {head.ray} accepts another patch "
            "level, but pickled objects may not load"
        )
