"""The headers of a proxied exchange (pure): what a program behind the page receives, and what a browser receives of it.

A proxied program shares the page's origin, so a browser would let its scripts act with the viewer's session. Three
measures keep it below its own prefix: no cookie of the page reaches it; its cookies, redirects and service workers stay
below the prefix; and a content security policy allows its scripts to contact the prefix only.

>>> mount = Mount("https://head:51888", "/serve/any/8350", "http://10.99.0.2:8350")
>>> moved("/login?next=1", mount)
'/serve/any/8350/login?next=1'
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import urljoin, urlsplit

Headers: TypeAlias = "list[tuple[str, str]]"

#: RFC 9110, section 7.6.1: they concern one connection. A proxy removes them, and those that `Connection` names.
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
#: The proxy or the client library sets these headers.
_NOT_TO_PROGRAM = frozenset(
    {
        "cookie",
        "content-length",
        "expect",
        "forwarded",
        "host",
        "origin",
        "referer",
        "service-worker-navigation-preload",
        "via",
        "x-real-ip",
    }
)
#: Headers of a WebSocket's handshake: the proxy does its own handshake with the program.
_HANDSHAKE = "sec-websocket-"
#: A program must not set these headers for the page's whole origin.
_NOT_TO_BROWSER = frozenset(
    {
        "accept-ch",
        "alt-svc",
        "clear-site-data",
        "content-length",
        "content-location",
        "content-security-policy",
        "content-security-policy-report-only",
        "critical-ch",
        "nel",
        "origin-agent-cluster",
        "public-key-pins",
        "refresh",
        "report-to",
        "reporting-endpoints",
        "service-worker-allowed",
        "speculation-rules",
        "strict-transport-security",
        "x-frame-options",
    }
)
_FAMILIES_NOT_TO_BROWSER = ("access-control-", "cross-origin-")
#: Cookies with these prefixes belong to the whole host; the page's session is one. Browsers ignore the case.
_HOST_COOKIE = "__host-"
#: The header with which Ray accepts its token from proxies, and its cookie.
RAY_AUTHORIZATION, RAY_COOKIE = "x-ray-authorization", "ray-authentication-token"


@dataclass(frozen=True)
class Mount:
    """The addresses of a program, for the browser and for the coordinator.

    Attributes:
        page: the origin of the page, as the browser wrote it.
        prefix: the path below which the program is shown, without a slash at its end.
        program: the origin of the program on the overlay.
    """

    page: str
    prefix: str
    program: str


def to_program(
    headers: Iterable[tuple[str, str]], mount: Mount, client: str, *, own: Mapping[str, str] | None = None
) -> Headers:
    """Return the headers that the program receives.

    Args:
        headers: those of the browser.
        client: the address of the browser.
        own: headers that the proxy sets itself, in lower case, such as Ray's token.
    """
    given = _encodable(headers)
    dropped = _HOP_BY_HOP | _NOT_TO_PROGRAM | _named_by_connection(given) | (own or {}).keys()
    kept = [
        (name, value)
        for name, value in given
        if (lower := name.lower()) not in dropped
        and not lower.startswith(("x-forwarded-", _HANDSHAKE))
        and not (own and lower == RAY_AUTHORIZATION)
    ]
    hidden = {RAY_COOKIE} if own else set()
    cookies = [cookie for name, value in given if name.lower() == "cookie" for cookie in _cookies(value, hidden)]
    kept += [("Cookie", "; ".join(cookies))] if cookies else []
    for name, value in given:
        if name.lower() == "origin":
            kept.append((name, mount.program if value == mount.page else value))
        elif name.lower() == "referer" and (inside := _within(value, mount)) is not None:
            kept.append((name, mount.program + inside))
    _, _, host = mount.page.partition("://")
    return [
        *kept,
        ("X-Forwarded-For", client),
        ("X-Forwarded-Host", host),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Prefix", mount.prefix),
        *(own or {}).items(),
    ]


def to_browser(headers: Iterable[tuple[str, str]], mount: Mount, *, strict: bool, at: str = "") -> Headers:
    """Return the headers that the browser receives.

    Args:
        headers: those of the program.
        at: as `moved`.
        strict: as `policy`.
    """
    given = _encodable(headers)
    dropped = _HOP_BY_HOP | _NOT_TO_BROWSER | _named_by_connection(given)
    found: Headers = []
    for name, value in given:
        lower = name.lower()
        if lower in dropped or lower.startswith(_FAMILIES_NOT_TO_BROWSER):
            continue
        if lower == "set-cookie":
            cookie = limited_cookie(value, mount.prefix)
            found += [(name, cookie)] if cookie else []
        elif lower == "location":
            found.append((name, moved(value, mount, at)))
        else:
            found.append((name, value))
    found += isolation(mount, strict=strict)
    if not any(name.lower() == "referrer-policy" for name, _ in found):
        found.append(("Referrer-Policy", "same-origin"))
    return found


def isolation(mount: Mount, *, strict: bool) -> Headers:
    """Return the headers that keep a program apart from the page; arguments as of `policy`."""
    return [
        ("Content-Security-Policy", policy(mount, strict=strict)),
        # Different from that of the page: a window of one never gets a handle on a window of the other.
        ("Cross-Origin-Opener-Policy", "unsafe-none"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
        ("X-Frame-Options", "SAMEORIGIN"),
    ]


def policy(mount: Mount, *, strict: bool) -> str:
    """Return the content security policy of what a program sends.

    A script of the program can contact the prefix and nothing else, so it cannot use the viewer's session elsewhere.

    Args:
        strict: scripts, styles, images and fonts come from the prefix only as well, and the program opens no windows,
            as in an admin's session.
    """
    https = f"{mount.page}{mount.prefix}/"
    own = f"{https} {https.replace('https:', 'wss:', 1)}"
    rules = [
        f"connect-src {own}",
        f"form-action {own}",
        f"frame-src {own} blob: data:",
        f"worker-src {own} blob:",
        f"manifest-src {own}",
        f"base-uri {own}",
        "object-src 'none'",
        "frame-ancestors 'self'",
    ]
    if strict:
        rules += [
            f"script-src {own} 'unsafe-inline' 'unsafe-eval' blob:",
            f"style-src {own} 'unsafe-inline'",
            f"img-src {own} blob: data:",
            f"font-src {own} data:",
            f"media-src {own} blob: data:",
            f"default-src {own}",
            # Without allow-popups: a window of the same origin would be open to the program's scripts, forms included.
            "sandbox allow-scripts allow-same-origin allow-forms allow-downloads allow-modals",
        ]
    return "; ".join(rules)


def moved(location: str, mount: Mount, at: str = "") -> str:
    """Return where a redirect of the program leads below the prefix; addresses of others stay as they are.

    Args:
        at: the path of the request, as the browser sees it; the start of the prefix if empty.

    >>> mount = Mount("https://head:51888", "/ray", "http://10.99.0.1:8265")
    >>> moved("http://10.99.0.1:8265/nodes", mount), moved("https://head:51888/tokens", mount)
    ('/ray/nodes', '/ray/tokens')
    >>> moved("https://docs.ray.io/", mount), moved("../b?x=1", mount, "/ray/a/c"), moved("../../tokens", mount)
    ('https://docs.ray.io/', '/ray/b?x=1', '/ray/')
    """
    start = f"{mount.prefix}/"
    # Browsers drop these characters, and read a backslash as a slash.
    text = re.sub(r"[\t\r\n]", "", location).strip().replace("\\", "/")
    scheme, absolute, rest = text.partition("://") if not text.startswith("//") else ("https", "//", text[2:])
    if absolute and "/" not in scheme and "?" not in scheme:
        host, slash, path = rest.partition("/")
        origin = f"{scheme}://{host}".lower()
        if origin not in (mount.program.lower(), mount.page.lower()):
            return text if _is_foreign(text, mount) else start
        text = slash + path or "/"
    elif re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", text):  # javascript: and the like
        return start
    if text.startswith("/"):
        text = text if text.startswith(start) else mount.prefix + text
    else:
        text = urljoin(at or start, text)
    return text if _stays(text, mount.prefix) else start


def limited_cookie(value: str, prefix: str) -> str:
    """Return a cookie of the program that the browser sends below the prefix only; empty: it may not be set.

    >>> limited_cookie("id=1; Path=/; Domain=example.org; HttpOnly", "/serve/any/8350")
    'id=1; HttpOnly; Path=/serve/any/8350; Secure'
    >>> limited_cookie("__HOST-meshray=1; Path=/; Secure", "/ray")
    ''
    """
    pair, *attributes = (part.strip() for part in value.split(";"))
    name = pair.partition("=")[0].strip().lower() if "=" in pair else ""
    if not name or name.startswith(_HOST_COOKIE) or name == RAY_COOKIE:
        return ""
    kept, path = [], ""
    for attribute in attributes:
        key, _, text = attribute.partition("=")
        if key.strip().lower() == "path":
            path = text.strip()
        elif key.strip().lower() not in ("domain", "secure", ""):
            kept.append(attribute)
    inner = path if path.startswith("/") and path != "/" and ".." not in path else ""
    below = inner if inner.startswith(f"{prefix}/") else prefix + inner
    return "; ".join([pair, *kept, f"Path={below}", "Secure"])


def _encodable(headers: Iterable[tuple[str, str]]) -> Headers:
    """Return the headers without what aiohttp decodes and cannot encode again: bytes that are not UTF-8."""
    return [(name, value.encode(errors="surrogateescape").decode(errors="replace")) for name, value in headers]


def _cookies(value: str, hidden: set[str]) -> list[str]:
    """Return the cookies of this header that a program may see."""
    cookies = [cookie.strip() for cookie in value.split(";")]
    names = [cookie.partition("=")[0].strip().lower() for cookie in cookies]
    return [
        cookie
        for cookie, name in zip(cookies, names, strict=True)
        if cookie and not name.startswith(_HOST_COOKIE) and name not in hidden
    ]


def _named_by_connection(headers: Iterable[tuple[str, str]]) -> set[str]:
    values = (value for name, value in headers if name.lower() == "connection")
    return {word.strip().lower() for value in values for word in value.split(",")}


def _within(url: str, mount: Mount) -> str | None:
    """Return the path of this URL in the program; None if it is not the program's."""
    start = f"{mount.page}{mount.prefix}/"
    return url[len(start) - 1 :] if url.startswith(start) else None


def _stays(path: str, prefix: str) -> bool:
    """Return whether this absolute path, as a browser resolves it, is below the prefix."""
    found: list[str] = []
    for segment in re.sub("%2e", ".", re.split("[?#]", path)[0], flags=re.IGNORECASE).split("/")[1:]:
        if segment == "..":
            found[-1:] = []
        elif segment != ".":
            found.append(segment)
    return f"/{'/'.join(found)}/".startswith(f"{prefix}/")


def _is_foreign(url: str, mount: Mount) -> bool:
    """Return whether this URL, which is absolute, belongs to neither the page nor a scheme that runs scripts."""
    try:
        parts, page = urlsplit(url if not url.startswith("//") else f"https:{url}"), urlsplit(mount.page)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return False
        return (parts.hostname, parts.port or 443) != (page.hostname, page.port or 443)
    except ValueError:
        return False
