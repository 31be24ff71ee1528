"""Orders of the mesh's administrator to a node: their arguments, and the messages of /v1/orders.

    meshray node … ──► agent of the head ──► GET /v1/orders ──► coordinator ──► agent of the node
    meshray node … --pass ──────────────────► GET /orders ─────────┘
                  OrderForm, then binary messages with the output, then OrderResult ◄──

>>> OrderForm("gpu-1", LOGS, {"part": "ray"}).order
'logs'
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from meshray.errors import RefusedError
from meshray.protocol.fields import SIGNATURE_CHARACTERS, Name, Seconds, Text64, Word

#: The orders: show a log; restart the agent or Ray; create the doctor's archive and send it; run another version of
#: meshray.
LOGS, RESTART, BUNDLE, UPGRADE = "logs", "restart", "bundle", "upgrade"
#: The orders that a pass of level admin may give. `UPGRADE` makes a program run as root.
PASS_ORDERS = frozenset({LOGS, RESTART, BUNDLE})
#: The output of `UPGRADE`: the node runs this build already; the agent is replaced by the new version now.
ALREADY, SWITCHING = "already", "switching"
#: The code of the refusal of a node with ``join --no-remote``.
REMOTE_REFUSED = "remote_refused"
#: The largest message of the WebSocket in either direction, bytes.
MAX_ORDER_BYTES = 64 * 1024
#: The most lines of a log.
MAX_LINES = 10_000_000

#: A wheel is smaller than this, bytes.
MAX_WHEEL_BYTES = 256 * 2**20

#: A node uses it as the name of a file.
Digest = Annotated[str, Meta(min_length=64, max_length=64, pattern="^[0-9a-f]{64}$")]
LogPart = Literal["agent", "engine", "coordinator", "ray"]


class OrderForm(Struct, frozen=True):
    """The first message: the order.

    Attributes:
        node: the name of the node.
        order: `LOGS`, `RESTART`, `BUNDLE` or `UPGRADE`.
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


class UpgradeArguments(Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments of `UPGRADE`; the output is `ALREADY` or `SWITCHING`.

    Attributes:
        sha256: of the wheel, which the node fetches from GET /v1/wheel.
        size: of the wheel, bytes.
        version: of meshray in it.
        build: identifies its files.
        signature: of the wheel by the lock of the mesh; empty: the mesh has none.
    """

    sha256: Digest
    size: Annotated[int, Meta(ge=1, le=MAX_WHEEL_BYTES)]
    version: Text64
    build: Text64
    signature: Annotated[str, Meta(max_length=SIGNATURE_CHARACTERS)] = ""


class WheelForm(Struct, frozen=True):
    """The only message to /v1/wheel; the answer is the wheel in binary messages, or one `OrderResult` with an error.

    Attributes:
        sha256: of the wanted wheel.
    """

    sha256: Digest


class UpgradeReport(Struct, frozen=True):
    """The answer of a node to the question `meshray.protocol.connection.UPGRADE`.

    Attributes:
        build: of the running meshray.
        version: of the running meshray.
        state: ``trial``, ``kept`` or ``returned`` of the last upgrade; empty: there was none.
        tried: the build of the last upgrade.
        reason: why the last upgrade was returned.
    """

    build: str = ""
    version: str = ""
    state: str = ""
    tried: str = ""
    reason: str = ""


def needs_root(order: str) -> RefusedError:
    """Return the error for an order that no pass may give."""
    return RefusedError(
        "order_needs_root",
        f"a pass cannot give the order {order}: it needs root on the head",
        hint="with a pass: meshray node logs, restart or bundle",
    )
