from __future__ import annotations

from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st

from meshray.wireguard.routes import SetMtu, changes

ROUTES = st.dictionaries(
    st.sampled_from([IPv4Address(f"10.99.0.{n}") for n in range(5)]), st.sampled_from([1200, 1280])
)


@given(ROUTES, ROUTES)
def test_the_changes_make_the_one_into_the_other(
    observed: dict[IPv4Address, int], wanted: dict[IPv4Address, int]
) -> None:
    made = dict(observed)
    for step in changes(observed, wanted):
        if step.mtu is None:
            del made[step.ip]
        else:
            made[step.ip] = step.mtu
    assert made == wanted
    assert changes(wanted, wanted) == ()


def test_a_change_in_words() -> None:
    assert str(SetMtu(IPv4Address("10.99.0.7"), 1280)) == "packets to 10.99.0.7: at most 1280 bytes"
    assert str(SetMtu(IPv4Address("10.99.0.7"), None)) == "packets to 10.99.0.7: as all others"
