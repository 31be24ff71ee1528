"""A route that another program removes is restored at once, and then less and less often."""

from __future__ import annotations

import math
from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from meshray.agent.device.route_repairs import FIRST_PAUSE_S, IMMEDIATE_REPAIRS, LONGEST_PAUSE_S, STABLE_S, RouteRepairs
from meshray.wireguard.config import Route
from meshray.wireguard.plan import CreateDevice, RemoveRoute, SetMtu, SetRoute

ROUTE = Route(IPv4Network("10.99.0.0/16"), IPv4Address("10.99.0.2"))
SET = SetRoute(ROUTE)


def test_the_first_repairs_run_at_once_and_are_not_reported() -> None:
    repairs = RouteRepairs()
    for moment in range(IMMEDIATE_REPAIRS + 1):
        assert repairs.due([SetMtu(1420), SET], float(moment)) == (SetMtu(1420), SET)
        assert repairs.complaints(float(moment)) == ()


def test_then_pauses_grow_and_a_problem_is_shown_until_it_is_calm() -> None:
    repairs = RouteRepairs()
    now, taken = 0.0, []
    while now < 600.0:
        if repairs.due([SET], now):
            taken.append(now)
        now += 0.5
    assert 100 <= len(taken) <= 170
    assert taken[-1] - taken[-2] >= LONGEST_PAUSE_S
    (told,) = repairs.complaints(now)
    assert told.startswith("another program keeps removing the route 10.99.0.0/16 of the overlay")
    repairs.record_culprit("systemd-networkd")
    repairs.due([SetRoute(ROUTE, "dev eth0")], now)
    (told,) = repairs.complaints(now)
    assert told.startswith("systemd-networkd keeps replacing (by dev eth0) the route 10.99.0.0/16 of the overlay")
    assert repairs.complaints(now + STABLE_S) == ()
    assert repairs.due([SET], now + STABLE_S) == (SET,)


def test_changes_by_meshray_itself_are_not_reported() -> None:
    repairs = RouteRepairs()
    peer = IPv4Network("10.99.0.7/32")
    for moment in range(100):
        wider = SetRoute(Route(peer, ROUTE.source, 1200 + moment % 2))
        assert repairs.due([wider], float(moment)) == (wider,)
        assert repairs.due([RemoveRoute(peer)], float(moment)) == (RemoveRoute(peer),)
        assert repairs.due([CreateDevice(), SET], float(moment)) == (CreateDevice(), SET)
    assert repairs.complaints(100.0) == ()


def test_after_forgive_the_route_is_restored_at_once() -> None:
    repairs = RouteRepairs()
    while repairs.due([SET], 1.0):
        assert repairs.wait_s(1.0) == math.inf
    assert repairs.wait_s(1.0) == FIRST_PAUSE_S
    assert repairs.wait_s(9.0) == 0
    repairs.reset()
    assert repairs.due([SET], 1.0) == (SET,)


@given(st.lists(st.floats(0, 20), min_size=1, max_size=300))
def test_the_work_is_bounded(gaps: list[float]) -> None:
    repairs = RouteRepairs()
    now, taken = 0.0, 0
    for gap in gaps:
        now += gap
        taken += len(repairs.due([SET], now))
    assert taken <= IMMEDIATE_REPAIRS + 4 + now / FIRST_PAUSE_S
