"""Import aiohttp without what meshray never uses.

aiohttp reads all certificate authorities of the machine twice when it is imported, but the coordinator's certificate is
pinned, and nothing else is asked over TLS. The compiled part of frozenlist needs C++'s standard library, and aiohttp
has such lists only where requests are traced. Together they take 2.7 MB of an agent's memory, and a twentieth of a
second of a command.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

#: Where OpenSSL looks for authorities, and the setting of frozenlist for its Python implementation.
_VARIABLES = {"SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": os.devnull, "FROZENLIST_NO_EXTENSIONS": "1"}


def import_aiohttp() -> None:
    """Import aiohttp; nothing happens if it was imported before. The process must have no other threads yet.

    A default context for certificates that authorities signed accepts none afterwards.
    """
    with _environment(_VARIABLES):
        import aiohttp  # noqa: F401


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
