"""The proof that the sender of a request has the private half of the WireGuard key in it.

    node:         HMAC(HKDF(X25519(node's private key, coordinator's public key)), request)
    coordinator:  HMAC(HKDF(X25519(coordinator's private key, node's public key)), request)

Every member can read public keys in the map; a machine that could enrol with another node's key would get that node's
credential. The coordinator creates its key for this purpose alone, at each start, and publishes it by GET /v1/hello.

>>> body = {"public_key": str(node.public())}
>>> proof = prove(node, coordinator.public(), "/v1/enroll", body)
>>> is_proven(coordinator, node.public(), "/v1/enroll", {**body, "proof": proof})
True
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping

from meshray.model.keys import PrivateKey, PublicKey

#: The field of the request with the proof, which covers all other fields.
FIELD = "proof"


def prove(own: PrivateKey, coordinator: PublicKey, path: str, body: Mapping[str, object]) -> str:
    """Return the proof for this request, hexadecimal.

    Args:
        own: the private half of the key in the request.
        coordinator: the key from `GET /v1/hello`.
        path: the path of the request, so that a proof is not valid for another one.
    """
    return _mac(own.shared_with(coordinator), path, body)


def is_proven(coordinator: PrivateKey, claimed: PublicKey, path: str, body: Mapping[str, object]) -> bool:
    """Return whether the request's proof shows that its sender has the private half of ``claimed``."""
    proof = body.get(FIELD)
    if not isinstance(proof, str) or not proof.isascii():
        return False
    try:
        shared = coordinator.shared_with(claimed)
    except ValueError:  # A point of low order: every key would give the same secret (RFC 7748, section 6.1).
        return False
    return hmac.compare_digest(_mac(shared, path, body), proof)


def _mac(shared: bytes, path: str, body: Mapping[str, object]) -> str:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    key = HKDF(SHA256(), 32, salt=None, info=b"meshray proof of key v1 " + path.encode()).derive(shared)
    fields = {name: value for name, value in body.items() if name != FIELD}
    return hmac.new(key, json.dumps(fields, sort_keys=True).encode(), "sha256").hexdigest()
