"""The sender of a key must have its private half."""

from __future__ import annotations

from meshray.model.keys import PrivateKey, PublicKey
from meshray.model.proof import is_proven, prove

COORDINATOR, NODE = PrivateKey.generate(), PrivateKey.generate()
BODY = {"public_key": str(NODE.public()), "secret": "s", "labels": {"b": "ü", "a": "1"}, "endpoints": ["h:1"]}
PATH = "/v1/enroll"


def proven(**changes: object) -> bool:
    body = {**BODY, "proof": prove(NODE, COORDINATOR.public(), PATH, BODY), **changes}
    return is_proven(COORDINATOR, NODE.public(), PATH, body)


def test_the_private_half_proves_the_request_and_nothing_else_does() -> None:
    assert proven()
    assert proven(labels={"a": "1", "b": "ü"}), "the order of fields is no part of JSON"
    assert not proven(secret="t")
    assert not proven(added=True)
    assert not is_proven(COORDINATOR, NODE.public(), PATH, BODY)
    for wrong in ("", "00", "ü", 7, None, prove(PrivateKey.generate(), COORDINATOR.public(), PATH, BODY)):
        assert not proven(proof=wrong)


def test_a_proof_is_for_one_path_one_key_and_one_coordinator() -> None:
    shown = {**BODY, "proof": prove(NODE, COORDINATOR.public(), PATH, BODY)}
    assert not is_proven(COORDINATOR, NODE.public(), "/v1/rotate", shown)
    assert not is_proven(COORDINATOR, PrivateKey.generate().public(), PATH, shown)
    assert not is_proven(PrivateKey.generate(), NODE.public(), PATH, shown)


def test_a_point_of_low_order_proves_nothing() -> None:
    assert not is_proven(COORDINATOR, PublicKey(bytes(32)), PATH, {**BODY, "proof": "00" * 32})
