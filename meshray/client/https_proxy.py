"""The HTTP proxy between node and coordinator: the forms of its URL, and its errors, never with its password.

>>> configure_proxy(os.environ, session)          # before the first connection
>>> if describe_proxy_error(error):                     # "" if the error is not the proxy's
...     raise proxy_error(endpoint, error)
"""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping, MutableMapping
from urllib.parse import urlsplit

from meshray.errors import UnreachableError
from meshray.model.address import Endpoint

_AUTHENTICATION_REQUIRED = 407
#: In curl's order: lower case first, the general one last.
_VARIABLES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
_EXCEPTIONS = ("no_proxy", "NO_PROXY")
#: A connection to a proxy over TLS would need TLS within TLS.
_USABLE = frozenset({"http"})


def normalized(value: str) -> str:
    """Return the URL of a proxy that curl, pip or wget accept, such as ``host:port`` or ``HTTP://host:port/``.

    Return an empty text if meshray cannot use it (SOCKS).
    """
    text = value.strip()
    parts = urlsplit(text if "//" in text else f"http://{text}")
    try:
        has_host = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return ""
    return f"http://{parts.netloc}" if parts.scheme.lower() in _USABLE and has_host else ""


def configure_proxy(environ: MutableMapping[str, str], session: Mapping[str, str] | None = None) -> None:
    """Set the environment variables by which HTTP clients of this process find the proxy.

    Args:
        session: the user's environment, which this process may lack (sudo, systemd).
    """
    for source in (environ, session or {}):
        configured = {name: source[name] for name in _VARIABLES if source.get(name, "").strip()}
        if not configured:
            continue
        url = next((url for url in map(normalized, configured.values()) if url), "")
        # An empty https_proxy takes precedence over HTTPS_PROXY, which keeps the user's value
        # (urllib.request.getproxies).
        environ["https_proxy"] = url
        if not url:
            environ["HTTPS_PROXY"] = next(iter(configured.values()))
        for name in _EXCEPTIONS:
            if source.get(name) and not environ.get(name):
                environ[name] = source[name]
        return


def unusable_proxy(environ: Mapping[str, str]) -> str:
    """Return a message if an unusable proxy is set, else an empty one. To be called after `configure_proxy`."""
    configured = environ.get("HTTPS_PROXY", "").strip()
    if not configured or environ.get("https_proxy", "x"):
        return ""
    scheme = configured.partition("://")[0] if "://" in configured else "?"
    return f"a proxy of kind {scheme[:12]!r} is set, and only HTTP proxies can be used"


def proxy_for(endpoint: Endpoint) -> str:
    """Return ``HOST:PORT`` of the proxy for this endpoint; empty if there is none, or NO_PROXY excludes the host."""
    url = urllib.request.getproxies().get("https", "")
    if not url or urllib.request.proxy_bypass(endpoint.host):
        return ""
    # User and password come before the last @.
    return urlsplit(url if "//" in url else f"//{url}").netloc.rpartition("@")[2]


def describe_proxy_error(error: Exception) -> str:
    """Describe a proxy's failure in a few words; empty if the error is not the proxy's."""
    import aiohttp

    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return "it is unreachable"
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"it answered {error.status} {error.message}".strip()[:120]
    if isinstance(error, aiohttp.ClientResponseError) and error.request_info.method == "CONNECT":
        return "it is not an HTTP proxy"
    return ""


def proxy_error(endpoint: Endpoint, error: Exception) -> UnreachableError:
    """Return the error for the user."""
    import aiohttp

    proxy = proxy_for(endpoint)
    hint = f"is HTTPS_PROXY right, and {endpoint} allowed there? Without the proxy: NO_PROXY={endpoint.host}"
    if isinstance(error, aiohttp.ClientHttpProxyError) and error.status == _AUTHENTICATION_REQUIRED:
        hint = f"the proxy requires a name and a password: HTTPS_PROXY=http://USER:PASSWORD@{proxy}"
    return UnreachableError(
        "proxy_refused", f"the proxy {proxy} does not connect to {endpoint}: {describe_proxy_error(error)}", hint=hint
    )
