"""The coordinator's identity: a self-signed certificate whose SHA-256 is in every token.

No certificate authority is involved, so the certificate names no host and does not expire; a joining machine whose
clock is wrong by years can still enrol.

>>> certificate, key = make_certificate()
>>> fingerprint(certificate).hex()
'5f0c…'
"""

from __future__ import annotations

import hashlib
import ssl
from datetime import datetime, timezone
from pathlib import Path

#: "No well-defined expiration date" (RFC 5280, section 4.1.2.5).
_NEVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc)
_ALWAYS = datetime(2000, 1, 1, tzinfo=timezone.utc)


def make_certificate() -> tuple[str, str]:
    """Return a new certificate and its private key, PEM. P-256: a handshake costs a tenth of RSA's."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "meshray coordinator")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_ALWAYS)
        .not_valid_after(_NEVER)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
    )


def fingerprint(certificate: str) -> bytes:
    """Return the SHA-256 of the certificate's DER form, which clients compare."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate)).digest()


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return a TLS 1.3 context with this certificate. Raises OSError or ssl.SSLError if the files are unusable."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Agents stay connected for days: session tickets would cost more than they save.
    context.num_tickets = 0
    context.load_cert_chain(certificate, key)
    return context
