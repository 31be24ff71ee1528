"""Orders of the mesh's administrator to a node: their arguments, and the messages of /v1/orders.

    meshray node … ──► agent of the head ──► GET /v1/orders ──► coordinator ──► agent of the node
                  OrderForm, then binary messages with the output, then OrderResult ◄──

>>> OrderForm("gpu-1", LOGS, {"part": "ray"}).order
'logs'
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from meshray.protocol.fields import Name, Seconds, Text64, Word

#: The orders: show a log; restart the agent or Ray; create the doctor's archive and send it.
LOGS, RESTART, BUNDLE = "logs", "restart", "bundle"
#: The code of the refusal of a node with ``join --no-remote``.
REMOTE_REFUSED = "remote_refused"
#: The largest message of the WebSocket in either direction, bytes.
MAX_ORDER_BYTES = 64 * 1024
#: The most lines of a log.
MAX_LINES = 10_000_000

LogPart = Literal["agent", "engine", "coordinator", "ray"]


class OrderForm(Struct, frozen=True):
    """The first message: the order.

    Attributes:
        node: the name of the node.
        order: `LOGS`, `RESTART` or `BUNDLE`.
        arguments: those of the order, see below.
    """

    node: Name
    order: Word
    arguments: dict[str, Any] = {}


class OrderResult(Struct, frozen=True, tag_field="type", tag="order_result"):
    """The last message: an error, or empty texts if the order was carried out."""

    code: Text64 = ""
    message: str = ""
    hint: str = ""
    exit_code: int = 0


class LogArguments(Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments of `LOGS`; the output is the text of the log.

    Attributes:
        part: whose log.
        lines: how many lines from the end.
        since_s: only lines of the last seconds; None: all.
        follow: continue with new lines until the order is cancelled.
    """

    part: LogPart = "agent"
    lines: Annotated[int, Meta(ge=0, le=MAX_LINES)] = 100
    since_s: Seconds | None = None
    follow: bool = False


class RestartArguments(Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments of `RESTART`; the output is a sentence.

    Attributes:
        ray: restart Ray instead of the agent, which adopts a running Ray.
    """

    ray: bool = False


class BundleArguments(Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments of `BUNDLE`: none. The output is the archive."""
