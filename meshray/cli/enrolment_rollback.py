"""The withdrawal of a failed join's enrolment at the coordinator, even if the answer did not arrive.

request sent ──► answer              the node exists, and leaves with its credential
               ──► refusal             there is no node
               ──► Ctrl-C, no answer   the node may exist: it is withdrawn with the key that it would have

If the coordinator cannot be reached either, this machine keeps its key: its next join becomes that node.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from meshray.errors import MeshrayError, UnreachableError
from meshray.protocol.codec import WireError

if TYPE_CHECKING:
    from meshray.cli.app import App
    from meshray.cli.enrolment_route import EnrolmentRoute
    from meshray.cli.rollback import Rollback
    from meshray.model.keys import PrivateKey
    from meshray.model.token import Token

#: The step of `Rollback` that withdraws an enrolment.
ENROLMENT = "the enrolment"


class Withdrawal:
    """The step of `Rollback` that withdraws an enrolment, in place from the request until its outcome is known.

    Args:
        key: the key whose public half is in the request.
        via: the route of the enrolment; None: directly to the coordinator.
    """

    def __init__(self, app: App, rollback: Rollback, token: Token, key: PrivateKey, via: EnrolmentRoute | None) -> None:
        self._app = app
        self._rollback = rollback
        self._token = token
        self._key = key
        self._via = via
        self._drop: Callable[[], None] | None = None

    def sent(self) -> None:
        """Record that the request is about to leave: the node may exist from now on."""
        self._drop = self._rollback.add(ENROLMENT, lambda: withdraw_enrolment(self._withdraw))

    def settled(self) -> None:
        """Record that nothing is left to withdraw: the coordinator refused, or another step withdraws the enrolment."""
        if self._drop is not None:
            self._drop()
            self._drop = None

    @contextlib.contextmanager
    def unless_refused(self) -> Iterator[None]:
        """In the block, send the request: a refusal settles the withdrawal, a missing answer does not."""
        try:
            yield
        except (UnreachableError, WireError):
            raise
        except MeshrayError:
            self.settled()
            raise

    def _withdraw(self) -> None:
        import asyncio

        from meshray.cli.enrolment_route import withdraw_via
        from meshray.client import coordinator

        if self._via is not None:
            withdraw_via(self._app, self._via, self._token, self._key)
        else:
            asyncio.run(coordinator.withdraw(self._token, self._key))


def withdraw_enrolment(step: Callable[[], object]) -> None:
    """Withdraw an enrolment.

    Raises:
        MeshrayError: the step's error; if the coordinator cannot be reached, with the consequence for the node.
    """
    try:
        step()
    except UnreachableError as error:
        raise MeshrayError(
            error.code,
            f"{error.message}; the next join of this machine becomes the same node; to remove that node, on the head: "
            "meshray node rm NODE",
            hint=error.hint,
        ) from None
