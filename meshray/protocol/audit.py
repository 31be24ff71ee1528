"""The records of the coordinator's audit log, and the answer of `meshray audit` with ``--json``."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct


class AuditRecord(Struct, frozen=True):
    """One record of the audit log.

    Attributes:
        number: counted from 1.
        at: unix seconds.
        event: ``node_enrolled``, ``enrolment_withdrawn``, ``node_left``, ``node_removed``, ``node_renamed``,
            ``node_drained``, ``node_undrained``, ``peer_added``, ``peer_signed``, ``address_advertised``,
            ``environment_locked``, ``token_created``, ``token_revoked``, ``secrets_rotated``, ``key_rotation_ordered``,
            ``pass_created``, ``pass_revoked``, ``pass_used``, ``pass_refused``, ``link_created``, ``order``,
            ``order_ended``, ``order_refused``, ``backup_created``, ``mesh_restored``,
            or ``log_continued`` (the first record of a file).
        by: the token, pass, node or administrator that caused it.
        source: the address from which the request came; empty: the coordinator acted itself.
        node: the node that it concerns; empty: none.
        details: more about it, by name: the token's id, roles, the order and its arguments, the result.
        hash: SHA-256 over this record and the hash of the one before.
    """

    number: int
    at: float
    event: str
    by: str
    source: str
    node: str
    details: Mapping[str, str]
    hash: str


class Audit(Struct, frozen=True):
    """``audit``.

    Attributes:
        records: the newest records, the oldest first.
        total: the number of all records that were ever written.
        newest: the hash of the last record.
        intact: the hashes of all records match.
        broken: the first fault of the chain; empty if there is none.
    """

    records: tuple[AuditRecord, ...]
    total: int
    newest: str
    intact: bool
    broken: str


AUDIT_EXAMPLE = Audit(
    records=(
        AuditRecord(
            number=1,
            at=1767225600.0,
            event="node_enrolled",
            by="token 1f2e3d4c",
            source="198.51.100.7",
            node="gpu-1",
            details={"token": "1f2e3d4c", "ip": "10.99.0.2"},
            hash="9c3e…",
        ),
    ),
    total=1,
    newest="9c3e…",
    intact=True,
    broken="",
)
