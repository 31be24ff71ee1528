"""``--env`` and ``--env-file``, and the environment of the session in which meshray was called.

>>> given = read(app, ("match", "EPOCHS=3"), file=None)
>>> given.match, given.environment.chosen
(True, {'EPOCHS': '3'})
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshray.cli.options import F
from meshray.cli.user_file import read_as_user
from meshray.cli.variables import option
from meshray.errors import UsageError

if TYPE_CHECKING:
    from meshray.cli.app import App
    from meshray.home import Home
    from meshray.node.enrolment import Enrolment
    from meshray.raynode.user_environment import UserEnvironment

#: The maximum size of a file of variables.
_LONGEST_FILE = 1024 * 1024


@dataclass(frozen=True)
class Given:
    """The parsed options, and the environment of the session.

    Attributes:
        match: ``--env match``: Ray runs from an environment that is built to match the head's.
    """

    match: bool
    environment: UserEnvironment


def environment_options(function: F) -> F:
    """Add ``--env`` and ``--env-file``."""
    for decorator in (
        option(
            "--env-file",
            metavar="FILE",
            help="Environment variables for Ray, one NAME=VALUE per line.",
        ),
        option(
            "--env",
            multiple=True,
            metavar="NAME[=VALUE]|match",
            help="An environment variable for Ray and its programs, kept over restarts; NAME alone takes the value "
            "from your environment. May be repeated. match (join only): build an environment with the head's Ray "
            "and Python, and what `meshray env lock` recorded there, and run Ray from it. Needs uv.",
        ),
    ):
        function = decorator(function)
    return function


def read(app: App, items: tuple[str, ...], file: str | None) -> Given:
    """Read the options and the session, and use the session's proxy in this process. Raises UsageError."""
    from meshray.client.https_proxy import configure_proxy
    from meshray.node.enrolment import MATCH
    from meshray.raynode.user_environment import UserEnvironment, parse_assignments, parse_file, select_session
    from meshray.runtime.session import session_environment

    session = session_environment(app.environ)
    if app.environ is os.environ:
        configure_proxy(os.environ, session)
    assignments = [item for item in items if item != MATCH]
    from_file = parse_file(_text_of(app, file), file) if file is not None else {}
    chosen = {**from_file, **parse_assignments(assignments, session)}
    return Given(len(assignments) < len(items), UserEnvironment(select_session(session), chosen))


def record_session(app: App, home: Home, enrolment: Enrolment) -> Enrolment:
    """Record this session's environment if it is a session of the user who runs Ray; return the changed enrolment.

    `up` thus follows changes of the session.
    """
    from dataclasses import replace

    from meshray.linux.user import User
    from meshray.raynode.user_environment import select_session
    from meshray.runtime.session import session_environment

    if User.invoking(app.environ).uid != enrolment.user_uid:
        return enrolment
    session = select_session(session_environment(app.environ))
    if session != enrolment.environment.session:
        enrolment = replace(enrolment, environment=replace(enrolment.environment, session=session))
        enrolment.save(home)
    return enrolment


def _text_of(app: App, file: str) -> str:
    try:
        return read_as_user(file, app.environ, _LONGEST_FILE)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError("env_file", f"{file} cannot be read: {reason}", hint="--env-file FILE") from None
