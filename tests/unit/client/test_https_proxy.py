"""Proxies in the forms that users write."""

from __future__ import annotations

import urllib.request

import pytest

from meshray.client.https_proxy import configure_proxy, normalized, unusable_proxy


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("http://proxy:3128", "http://proxy:3128"),
        ("proxy:3128", "http://proxy:3128"),
        ("proxy", "http://proxy"),
        ("http://proxy:3128/", "http://proxy:3128"),
        ("HTTP://Proxy:3128", "http://Proxy:3128"),
        (" 10.1.2.3:8080 ", "http://10.1.2.3:8080"),
        ("ada:pw@proxy:3128", "http://ada:pw@proxy:3128"),
        ("[fd00::1]:3128", "http://[fd00::1]:3128"),
        ("socks5://proxy:1080", ""),
        ("https://proxy:3129", ""),
        ("http://:3128", ""),
        ("http://proxy:port", ""),
    ],
)
def test_common_spellings_are_accepted(value: str, url: str) -> None:
    assert normalized(value) == url


@pytest.mark.parametrize(
    ("environ", "session", "found"),
    [
        ({}, {}, ""),
        ({"HTTPS_PROXY": "proxy:3128"}, {}, "http://proxy:3128"),
        ({"ALL_PROXY": "proxy:3128/"}, {}, "http://proxy:3128"),
        ({"all_proxy": "one:1", "https_proxy": "two:2"}, {}, "http://two:2"),
        ({"https_proxy": "socks5h://x:1", "ALL_PROXY": "http://two:2"}, {}, "http://two:2"),
        ({}, {"https_proxy": "proxy:3128"}, "http://proxy:3128"),
        ({"HTTPS_PROXY": "own:1"}, {"https_proxy": "session:2"}, "http://own:1"),
        ({"ALL_PROXY": "socks5://x:1080"}, {}, ""),
    ],
)
def test_http_clients_find_the_sessions_proxy(
    environ: dict[str, str], session: dict[str, str], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure_proxy(environ, session)
    monkeypatch.setattr("os.environ", environ)
    assert urllib.request.getproxies().get("https", "") == found


def test_one_that_cannot_be_used_is_named_without_its_password() -> None:
    environ = {"ALL_PROXY": "socks5://ada:hunter2@x:1080"}
    configure_proxy(environ)
    assert "'socks5'" in unusable_proxy(environ)
    assert "hunter2" not in unusable_proxy(environ)
    for usable in ({}, {"HTTPS_PROXY": "proxy:1"}):
        configure_proxy(usable)
        assert unusable_proxy(usable) == ""


def test_its_exceptions_come_with_it() -> None:
    environ: dict[str, str] = {}
    configure_proxy(environ, {"https_proxy": "proxy:1", "no_proxy": "intra.example"})
    assert environ["no_proxy"] == "intra.example"
