"""What went wrong at the proxy that HTTPS_PROXY names, told so that a person can mend it. Never its password.

>>> if fault(error):                     # "" where the error is not the proxy's
...     raise refusal(endpoint, error)
"""

from __future__ import annotations

import urllib.request
from urllib.parse import urlsplit

from meshray.errors import UnreachableError
from meshray.model.address import Endpoint

_AUTHENTICATION_REQUIRED = 407


def proxy_for(endpoint: Endpoint) -> str:
    """``HOST:PORT`` of the proxy on the way there, empty where there is none (or NO_PROXY excludes the host)."""
    url = urllib.request.getproxies().get("https", "")
    if not url or urllib.request.proxy_bypass(endpoint.host):
        return ""
    # User and password stand before the last @.
    return urlsplit(url if "//" in url else f"//{url}").netloc.rpartition("@")[2]


def fault(error: Exception) -> str:
    """In a few words what the proxy did instead of connecting; empty where the error is not one of a proxy."""
    import aiohttp

    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return "it cannot be reached"
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"it answered {error.status} {error.message}".strip()[:120]
    if isinstance(error, aiohttp.ClientResponseError) and error.request_info.method == "CONNECT":
        return "what answered is no HTTP proxy"
    return ""


def refusal(endpoint: Endpoint, error: Exception) -> UnreachableError:
    """The error for the person."""
    import aiohttp

    proxy = proxy_for(endpoint)
    hint = f"is HTTPS_PROXY right, and {endpoint} allowed there? Without the proxy: NO_PROXY={endpoint.host}"
    if isinstance(error, aiohttp.ClientHttpProxyError) and error.status == _AUTHENTICATION_REQUIRED:
        hint = f"the proxy wants name and password: HTTPS_PROXY=http://USER:PASSWORD@{proxy}"
    return UnreachableError(
        "proxy_refused", f"the proxy {proxy} does not connect to {endpoint}: {fault(error)}", hint=hint
    )
