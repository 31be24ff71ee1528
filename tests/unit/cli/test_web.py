"""`meshray web …` in front of a fake agent."""

from __future__ import annotations

import json

import pytest

from meshray.cli.page_address import as_browsers_show
from meshray.errors import RefusedError
from tests.unit.cli.fakes import FakeAgent, type_in

FINGERPRINT = "8f3a" * 16
MADE: dict[str, object] = {
    "secret": "s" * 43,
    "id": "5d0c9e1b",
    "name": "ana",
    "level": "read",
    "expires": 1767254400.0,
    "endpoints": ["203.0.113.7:51888", "[2001:db8::7]:51888"],
    "port": 51888,
    "fingerprint": FINGERPRINT,
}
ENTRY: dict[str, object] = {
    "id": "5d0c9e1b",
    "name": "ana",
    "level": "read",
    "created": 1.0,
    "expires": 4e9,
    "used": None,
    "revoked": False,
}


def test_invite_prints_the_url_alone_and_explains_the_warning_beside_it() -> None:
    outcome = type_in("web", "invite", "ana", agent=FakeAgent({"api": MADE}))
    assert outcome.code == 0
    assert outcome.out == f"https://203.0.113.7:51888/enter#{'s' * 43}.{FINGERPRINT}\n"
    assert len(outcome.err.splitlines()) == 2
    assert as_browsers_show(FINGERPRINT) in outcome.err
    assert "s" * 43 not in outcome.err
    assert outcome.agent.asked == [
        (
            "api",
            {"method": "POST", "path": "/v1/web/passes", "body": {"name": "ana", "ttl_s": 28800, "level": "read"}},
        )
    ]


@pytest.mark.parametrize(
    ("options", "level", "ttl_s"),
    [(["--use"], "use", 28800), (["--admin", "--use"], "admin", 28800), (["--ttl", "7d"], "read", 604800)],
)
def test_the_options_of_invite_reach_the_coordinator(options: list[str], level: str, ttl_s: int) -> None:
    asked = type_in("web", "invite", "ana", *options, agent=FakeAgent({"api": MADE})).agent.asked
    assert asked[0][1]["body"] == {"name": "ana", "ttl_s": ttl_s, "level": level}


@pytest.mark.parametrize(
    ("host", "shown"),
    [("head.example.org", "head.example.org:51888"), ("[2001:db8::1]:443", "[2001:db8::1]:443")],
)
def test_the_host_of_the_url_can_be_chosen(host: str, shown: str) -> None:
    outcome = type_in("web", "invite", "ana", "--host", host, "--json", agent=FakeAgent({"api": MADE}))
    answer = json.loads(outcome.out)
    assert answer["url"].startswith(f"https://{shown}/enter#")
    assert answer["fingerprint"] == as_browsers_show(FINGERPRINT)
    assert (answer["id"], answer["name"], answer["port"], answer["level"]) == ("5d0c9e1b", "ana", 51888, "read")


@pytest.mark.parametrize(
    "words",
    [
        ["invite", "a b"],
        ["invite", "-"],
        ["invite", "x" * 65],
        ["invite", "ana\n"],
        ["invite", "ana", "--ttl", "never"],
        ["invite", "ana", "--ttl", "30s"],
        ["invite", "ana", "--ttl", "400d"],
        ["invite", "ana", "--host", "a b"],
        ["revoke", "../tokens"],
        ["open", "--admin"],
        ["open", "--ttl", "8h"],
        ["open", "--via", "head"],
    ],
    ids=" ".join,
)
def test_a_mistake_is_a_usage_error_before_any_request(words: list[str]) -> None:
    outcome = type_in("web", *words, agent=FakeAgent({"api": MADE}))
    assert outcome.code == 2, outcome.err
    assert "hint:" in outcome.err
    assert outcome.agent.asked == []
    assert outcome.out == ""


def test_list_and_revoke() -> None:
    outcome = type_in("web", "list", agent=FakeAgent({"api": {"passes": [ENTRY, {**ENTRY, "revoked": True}]}}))
    assert [line.split()[:3] for line in outcome.out.splitlines()[1:]] == [["5d0c9e1b", "ana", "read"]] * 2
    assert outcome.out.splitlines()[1].endswith("valid")
    assert outcome.out.splitlines()[2].endswith("revoked")
    outcome = type_in("web", "revoke", "ana", "--json", agent=FakeAgent({"api": {**ENTRY, "revoked": True}}))
    assert json.loads(outcome.out) == {"schema": 1, "id": "5d0c9e1b", "name": "ana", "revoked": True}
    assert outcome.agent.asked[0][1]["path"] == "/v1/web/passes/ana"


def test_a_refusal_of_the_coordinator_is_shown() -> None:
    refused = RefusedError("not_admin", "only head, which runs the coordinator, may do this", hint="run it on head")
    outcome = type_in("web", "invite", "ana", agent=FakeAgent({"api": refused}))
    assert (outcome.code, "only head" in outcome.err) == (4, True)
