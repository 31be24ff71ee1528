"""What a program must send to change something on the coordinator's page, as the page's own forms do.

>>> headers = {CSRF_HEADER: csrf_token(secret)}
"""

from __future__ import annotations

import hashlib
import hmac

#: The header with the session's CSRF token.
CSRF_HEADER = "X-CSRF-Token"
#: The WebSocket for one order with a session of level admin; the messages are those of `meshray.protocol.orders`.
ORDERS_PATH = "/orders"


def csrf_token(secret: str) -> str:
    """Return the CSRF token of the session whose cookie has this value; scripts of other programs cannot read it."""
    return hmac.new(secret.encode(), b"meshray csrf v1", hashlib.sha256).hexdigest()
