"""An error as one process reports it to another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

from meshray.errors import MeshrayError, error_from_json
from meshray.protocol.codec import convert

if TYPE_CHECKING:
    from meshray.protocol.orders import OrderResult


class _Reported(Struct):
    error: dict[str, Any]
    exit_code: Annotated[int, Meta(ge=0, le=255)] = 1


def reported_error(answer: Mapping[str, object]) -> MeshrayError:
    """Return the error in the answer as an exception. Raises WireError if it has another form."""
    reported = convert(answer, _Reported)
    return error_from_json(reported.error, reported.exit_code)


def error_of(result: OrderResult) -> MeshrayError:
    """Return the error with which an order ended as an exception."""
    reported = {"code": result.code, "message": result.message, "hint": result.hint}
    return error_from_json(reported, result.exit_code)
