"""Headers of proxied exchanges: what a program and a browser receive of one another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray.web.proxy_headers import Mount, limited_cookie, moved, policy, to_browser, to_program

MOUNT = Mount("https://head:51888", "/serve/gpu/8350", "http://10.99.0.2:8350")


@pytest.mark.parametrize(
    ("cookie", "limited"),
    [
        ("a=1", "a=1; Path=/serve/gpu/8350; Secure"),
        ("a=1; Path=/app; SameSite=Lax", "a=1; SameSite=Lax; Path=/serve/gpu/8350/app; Secure"),
        ("a=1; Path=/serve/gpu/8350/app", "a=1; Path=/serve/gpu/8350/app; Secure"),
        ("a=1; path=/../../", "a=1; Path=/serve/gpu/8350; Secure"),
        ("a=1; Domain=head; Secure", "a=1; Path=/serve/gpu/8350; Secure"),
        ("__Host-meshray=1; Path=/; Secure", ""),
        (" __hOsT-meshray =1", ""),
        ("ray-authentication-token=secret; Path=/", ""),
        ("=1", ""),
        ("no pair", ""),
    ],
)
def test_a_cookie_is_limited_to_the_prefix(cookie: str, limited: str) -> None:
    assert limited_cookie(cookie, MOUNT.prefix) == limited


@given(st.text(max_size=40), st.sampled_from(["", "/", "//", "https://head:51888/", "\\", "/serve/gpu/8350/"]))
def test_no_redirect_of_a_program_leads_to_the_page(text: str, start: str) -> None:
    from urllib.parse import unquote, urljoin, urlsplit

    seen = moved(start + text, MOUNT, "/serve/gpu/8350/a/b")
    # As a browser reads it.
    cleaned = "".join(char for char in seen if char not in "\t\r\n").strip().replace("\\", "/")
    url = urlsplit(urljoin("https://head:51888/serve/gpu/8350/a/b", cleaned))
    if url.netloc == "head:51888":
        path = urlsplit(urljoin("https://head:51888/", unquote(url.path))).path
        assert path.startswith("/serve/gpu/8350/"), seen


def test_bytes_that_are_not_text_pass() -> None:
    odd = b"caf\xe9".decode(errors="surrogateescape")
    assert dict(to_program([("X-Name", odd)], MOUNT, "192.0.2.1"))["X-Name"].encode()
    assert dict(to_browser([("X-Name", odd)], MOUNT, strict=False))["X-Name"].encode()


def test_a_referer_of_another_place_does_not_reach_the_program() -> None:
    for referer, seen in (
        ("https://head:51888/serve/gpu/8350/a?b", "http://10.99.0.2:8350/a?b"),
        ("https://head:51888/nodes/gpu", None),
        ("https://example.org/", None),
    ):
        headers = dict(to_program([("Referer", referer)], MOUNT, "192.0.2.1"))
        assert headers.get("Referer") == seen


def test_the_policy_never_names_the_whole_page() -> None:
    for strict in (False, True):
        words = policy(MOUNT, strict=strict).replace(";", " ").split()
        urls = [word for word in words if "://" in word]
        assert urls
        assert all(url.endswith("://head:51888/serve/gpu/8350/") for url in urls)
        assert "*" not in words
    # Only the ancestors are of the page's origin.
    assert policy(MOUNT, strict=True).count("'self'") == 1
