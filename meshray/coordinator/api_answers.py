"""The answers of the coordinator's API: the envelope, and the HTTP status of each error."""

from __future__ import annotations

import msgspec
from aiohttp import web

from meshray.coordinator.admission import ConflictError, UnknownError
from meshray.errors import MeshrayError, RefusedError, UsageError
from meshray.protocol.api import Error, ErrorDetail
from meshray.protocol.codec import WireError, to_json

#: The HTTP status where the kind of error alone does not determine it.
_STATUS = {
    "credential_unknown": 401,
    "name_taken": 409,
    "head_exists": 409,
    "role_not_granted": 409,
    "attestation_wrong": 409,
    "removal_wrong": 409,
    "lock_needed": 409,
    "lock_other": 409,
    "endpoint_unusable": 409,
    "token_other_name": 409,
    "removal_not_signed": 409,
    "key_taken": 409,
    "version_mismatch": 409,
    "meshray_too_old": 409,
    "network_full": 409,
    "no_hub": 409,
    "request_too_large": 413,
    "busy": 429,
}
_STATUS_OF_KIND: tuple[tuple[type[MeshrayError], int], ...] = (
    (UnknownError, 404),
    (ConflictError, 409),
    (RefusedError, 403),
    (UsageError, 400),
    (WireError, 400),
)


def success(answer: msgspec.Struct) -> web.Response:
    """Return 200 with the answer in its envelope."""
    return web.json_response({"schema": 1, **to_json(answer)})


def status_of(error: MeshrayError) -> int:
    """Return the HTTP status that matches the error."""
    of_kind = (number for kind, number in _STATUS_OF_KIND if isinstance(error, kind))
    return _STATUS.get(error.code) or next(of_kind, 500)


def failure(error: MeshrayError, status: int | None = None) -> web.Response:
    """Return the error in its envelope, with the matching HTTP status."""
    status = status_of(error) if status is None else status
    detail = ErrorDetail(error.code, error.message, error.hint or "")
    return web.json_response(to_json(Error(detail, error.exit_code, 1)), status=status)


def come_again(seconds: int) -> web.Response:
    """Return the answer to an agent that should connect again after so many seconds."""
    text = f"too many agents connect at the same time; come again in {seconds} s"
    answer = failure(MeshrayError("busy", text), 503)
    answer.headers["Retry-After"] = str(seconds)
    return answer
