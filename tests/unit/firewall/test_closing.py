"""Which ports are closed: Ray's, whatever they are; nobody else's."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from meshray.firewall import Listening, decide
from meshray.firewall.closing import Ranges, ranges

PORTS = st.integers(1, 60)
ADDRESSES = st.sampled_from(["0.0.0.0", "::", "192.168.1.1", "127.0.0.1", "::1", "::ffff:127.0.0.1", "fe80::1"])
SOCKETS = st.lists(st.builds(Listening, PORTS, ADDRESSES, st.sampled_from([True, False, None])))


def members(found: Ranges) -> set[int]:
    return {port for first, last in found for port in range(first, last + 1)}


@given(st.sets(PORTS), SOCKETS, st.sets(PORTS))
def test_what_is_closed(always: set[int], listening: list[Listening], never: set[int]) -> None:
    closed = decide(always, listening, never)
    shut, heard = members(closed.always), members(closed.heard)
    outward = [socket for socket in listening if not socket.is_local]
    rays = {socket.port for socket in outward if socket.of_ray}
    others = {socket.port for socket in outward if socket.of_ray is False}

    assert not shut & never
    assert heard == rays - always - never
    assert always & rays - never <= shut
    # What nobody but Ray has is closed where it is Ray's to use, and nothing is closed that never was Ray's.
    assert always - others - never <= shut
    assert shut <= always
    assert not shut & (others - rays)


@given(st.sets(PORTS))
def test_ranges_hold_the_same_ports(ports: set[int]) -> None:
    found = ranges(ports)
    assert members(found) == ports
    assert all(before[1] + 1 < after[0] for before, after in pairwise(found))


def test_a_web_server_of_somebody_else_stays() -> None:
    web = Listening(8000, "0.0.0.0", of_ray=False)
    assert decide([8000], [web], ()).always == ()
    # On the loopback it serves nobody outside, so Ray Serve might still get the port on another address.
    assert decide([8000], [Listening(8000, "127.0.0.1", of_ray=False)], ()).always == ((8000, 8000),)
    # Both have it, on different addresses.
    both = [Listening(8000, "192.168.1.1", of_ray=False), Listening(8000, "192.168.2.1", of_ray=True)]
    assert decide([8000], both, ()).always == ((8000, 8000),)
    assert decide([], both, ()).heard == ((8000, 8000),)


def test_the_kernels_own_port_stays() -> None:
    """An NFS server has no process; in Ray's range it is closed as long as nobody is known to have it."""
    nfs = Listening(2049, "0.0.0.0", of_ray=None)
    assert not decide([], [nfs], ())
    assert decide([2049], [nfs], ()).always == ((2049, 2049),)


def test_other_ports_have_another_digest() -> None:
    one, two = decide([1], [], ()), decide([2], [], ())
    assert one.digest != two.digest
    assert one.digest == decide([1], [], ()).digest
