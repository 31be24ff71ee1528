"""The import of aiohttp in an agent, in separate processes, since an imported module stays."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import os, sys
from meshray.client.aiohttp_lean import import_aiohttp
os.environ["SSL_CERT_DIR"] = "/etc/ssl/certs"
before = dict(os.environ)
import_aiohttp()
assert dict(os.environ) == before
import ssl
from aiohttp import connector
contexts = [value for value in vars(connector).values() if isinstance(value, ssl.SSLContext)]
assert len(contexts) == 2, contexts
print(sum(context.cert_store_stats()["x509"] for context in contexts), "frozenlist._frozenlist" in sys.modules)
"""


def test_it_reads_no_authorities_and_leaves_the_environment() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["0", "False"]
