from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray.model.address import Endpoint
from meshray.model.link_labels import link_labels, rtt_class, site_of
from meshray.model.path import PathKind, Transport
from meshray.raynode.command import check_labels


@pytest.mark.parametrize(
    ("rtt_ms", "name"),
    [
        (0.0, "lt1ms"), (0.999, "lt1ms"), (1.0, "lt10ms"), (9.99, "lt10ms"), (10.0, "lt50ms"), (50.0, "lt150ms"),
        (149.9, "lt150ms"), (150.0, "ge150ms"), (2000.0, "ge150ms"),
    ],
)  # fmt: skip
def test_classes_of_round_trips(rtt_ms: float, name: str) -> None:
    assert rtt_class(rtt_ms) == name


@pytest.mark.parametrize(
    ("kind", "transport", "label"),
    [
        (PathKind.DIRECT, Transport.UDP, "direct"),
        (PathKind.HUB, Transport.UDP, "hub"),
        (PathKind.HUB, Transport.WSS, "wss"),
        (PathKind.DIRECT, Transport.WSS, "wss"),
        (PathKind.SELF, None, "direct"),
    ],
)
def test_a_path_is_summarized_in_one_word(kind: PathKind, transport: Transport | None, label: str) -> None:
    assert link_labels(0.4, kind, transport, "") == {"meshray.io/rtt": "lt1ms", "meshray.io/path": label}


def test_unknown_values_are_not_labels() -> None:
    assert link_labels(None, PathKind.NONE, None, "") == {}


@pytest.mark.parametrize(
    ("seen", "site"),
    [
        ("203.0.113.7:51888", "203.0.113.7"),
        ("192.168.7.10:51888", "192.168.7.0-24"),
        ("[2001:db8::7]:51888", "2001-0db8-0000-0000"),
        ("head.example.org:51888", ""),
    ],
)
def test_a_site_is_named_by_what_neighbours_have_in_common(seen: str, site: str) -> None:
    assert site_of({}, Endpoint.parse(seen)) == site
    assert site_of({"site": "lab-2", "zone": "a"}, Endpoint.parse(seen)) == "lab-2"
    assert site_of({}, None) == ""


@given(st.ip_addresses(), st.text(), st.one_of(st.none(), st.floats(0, 1e6)))
def test_ray_accepts_every_label(address: object, given: str, rtt_ms: float | None) -> None:
    for labels in ({}, {"site": given}):
        site = site_of(labels, Endpoint(str(address), 51888))
        check_labels(link_labels(rtt_ms, PathKind.HUB, Transport.UDP, site))
