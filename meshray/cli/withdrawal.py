"""What a join that fails undoes at the coordinator: its enrolment, also where the answer did not arrive.

request leaves ──► answer              the node exists, and leaves with its credential
               ──► refusal             there is no node
               ──► Ctrl-C, no answer   the node may exist: it is withdrawn with the key that it would have

Where the coordinator cannot be reached either, this machine keeps its key: its next join becomes that node.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshray.errors import MeshrayError, UnreachableError
from meshray.model import wire

if TYPE_CHECKING:
    from meshray.cli.app import App
    from meshray.cli.undo import Undo
    from meshray.cli.via import Via
    from meshray.model.keys import PrivateKey
    from meshray.model.token import Token

#: The step of `Undo` that takes an enrolment back.
ENROLMENT = "the enrolment"


@dataclass(frozen=True)
class Asked:
    """One enrolment, as it is asked for.

    Attributes:
        via: how it travels; None: straight to the coordinator.
    """

    app: App
    token: Token
    key: PrivateKey
    via: Via | None

    @contextlib.contextmanager
    def withdrawn_where_unanswered(self, undo: Undo) -> Iterator[Callable[[], None]]:
        """Within the block the coordinator is asked; it yields what is to be called just before the request leaves.

        Where the block ends without the coordinator's word, the enrolment is withdrawn when all else is undone.
        """
        settled: list[Callable[[], None]] = []

        def sent() -> None:
            settled.append(undo.add(ENROLMENT, lambda: taken_back(self._withdraw)))

        try:
            yield sent
        except (UnreachableError, wire.WireError):
            raise
        except MeshrayError:
            _each(settled)
            raise
        _each(settled)

    def _withdraw(self) -> None:
        import asyncio

        from meshray.agent import client
        from meshray.cli.via import withdraw_via

        if self.via is not None:
            withdraw_via(self.app, self.via, self.token, self.key)
        else:
            asyncio.run(client.withdraw(self.token, self.key))


def taken_back(step: Callable[[], object]) -> None:
    """Take an enrolment back.

    Raises:
        MeshrayError: what the step raises; where the coordinator cannot be reached, with what becomes of the node.
    """
    try:
        step()
    except UnreachableError as error:
        raise MeshrayError(
            error.code,
            f"{error.message}; the next join of this machine becomes the same node; to give it up, on the head: "
            "meshray node rm NODE",
            hint=error.hint,
        ) from None


def _each(steps: list[Callable[[], None]]) -> None:
    for step in steps:
        step()
