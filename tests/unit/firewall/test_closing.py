"""The closed ports: all of Ray's, and none of other programs, down to the address and the family."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_address
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from meshray.firewall import Listening, decide
from meshray.firewall.closing import IPV4, IPV6, Closed, Ranges, Scoped, ranges, without

PORTS = st.integers(1, 60)
ADDRESSES = st.sampled_from(
    ["0.0.0.0", "::", "192.168.1.1", "10.99.0.1", "127.0.0.1", "::1", "::ffff:127.0.0.1", "fe80::1"]
)
SOCKETS = st.lists(st.builds(Listening, PORTS, ADDRESSES, st.sampled_from([True, False, None]), st.booleans()))
NETWORK = IPv4Network("10.99.0.0/16")
#: The addresses at which another machine tries: each address of the node.
KNOCKS = ("192.168.1.1", "10.99.0.1", "fe80::1", "fe80::2")


def members(found: Ranges) -> set[int]:
    return {port for first, last in found for port in range(first, last + 1)}


def named(found: Scoped, address: str, port: int) -> bool:
    family = IPV6 if ip_address(address).version == 6 else IPV4
    return any(scope in (family, address) and port in members(ports) for scope, ports in found)


def is_closed(closed: Closed, address: str, port: int) -> bool:
    """Decide as the rules do, in their order."""
    if named(closed.in_use, address, port):
        return True
    return not named(closed.exempt, address, port) and port in members(closed.always)


def answers(socket: Listening, address: str) -> bool:
    """Decide as the kernel does: whether this socket gets a connection to this address."""
    version = ip_address(address).version
    if socket.address == "::":
        return version == 6 or not socket.only_ipv6
    return socket.address == ("0.0.0.0" if version == 4 and socket.address == "0.0.0.0" else address)


@given(st.sets(PORTS), SOCKETS, st.sets(PORTS))
def test_what_is_closed(always: set[int], listening: list[Listening], never: set[int]) -> None:
    closed = decide(always, listening, never)
    assert members(closed.always) == always - never
    for address in KNOCKS:
        for port in {socket.port for socket in listening} | always:
            there = [socket for socket in listening if socket.port == port and answers(socket, address)]
            shut = is_closed(closed, address, port)
            if port in never:
                assert not shut
            elif any(socket.of_ray for socket in there):
                assert shut
            elif any(socket.of_ray is False for socket in there) and len(there) == 1:
                alone = not any(socket.of_ray for socket in listening if socket.port == port)
                assert not shut or not alone
            elif not there and port not in always:
                assert not shut


@given(st.sets(PORTS))
def test_ranges_hold_the_same_ports(ports: set[int]) -> None:
    found = ranges(ports)
    assert members(found) == ports
    assert all(before[1] + 1 < after[0] for before, after in pairwise(found))


@given(st.sets(PORTS), st.sets(PORTS))
def test_ranges_without_ports(ports: set[int], gone: set[int]) -> None:
    assert without(ranges(ports), gone) == ranges(ports - gone)


def test_a_web_server_of_another_program_stays() -> None:
    web = Listening(8000, "0.0.0.0", of_ray=False)
    closed = decide([8000], [web], ())
    assert not is_closed(closed, "192.168.1.1", 8000)
    assert closed.foreign == {8000}
    assert is_closed(closed, "fe80::1", 8000)  # Ray Serve might still get it there.
    # On the loopback it serves only this machine.
    assert decide([8000], [Listening(8000, "127.0.0.1", of_ray=False)], ()).exempt == ()
    # Both have it, on different addresses.
    both = [Listening(8000, "192.168.1.1", of_ray=False), Listening(8000, "192.168.2.1", of_ray=True)]
    for ports in ([8000], []):
        closed = decide(ports, both, ())
        assert not is_closed(closed, "192.168.1.1", 8000)
        assert is_closed(closed, "192.168.2.1", 8000)


def test_a_port_of_one_family_closes_nobodys_of_the_other() -> None:
    """The attack: listen on IPv6 where a database listens on IPv4, and claim to be Ray."""
    database, claims = Listening(5432, "0.0.0.0", of_ray=False), Listening(5432, "::", of_ray=True, only_ipv6=True)
    closed = decide([], [database, claims], ())
    assert not is_closed(closed, "192.168.1.1", 5432)
    assert is_closed(closed, "fe80::1", 5432)


def test_ports_that_members_reach() -> None:
    database, claims = Listening(5432, "0.0.0.0", of_ray=False), Listening(5432, "::", of_ray=True, only_ipv6=True)
    elsewhere = Listening(7000, "192.168.1.1", of_ray=True)
    listening = [
        *(database, claims, elsewhere, Listening(8000, "10.99.0.1", of_ray=False)),
        *(Listening(29500, "::", of_ray=True), Listening(40000, "0.0.0.0", of_ray=False)),
        *(Listening(40001, "0.0.0.0", of_ray=None), Listening(40002, "127.0.0.1", of_ray=False)),
    ]
    closed = decide([6379, 8000], listening, (), network=NETWORK, chosen=range(39999, 40004))
    assert closed.members == ((6379, 6379), (29500, 29500), (39999, 39999), (40002, 40003))
    assert decide([6379], listening, ()).members is None


def test_an_exposed_port_stays_open_and_members_reach_it() -> None:
    """Whether it is one of Ray's configured ports, one on which Ray listens, or one that another program has."""
    listening = [Listening(8265, "0.0.0.0", of_ray=True), Listening(8001, "0.0.0.0", of_ray=True)]
    closed = decide([6379, 8265], listening, (), network=NETWORK, exposed=(8265, 8001))
    assert (closed.always, closed.in_use, closed.exempt) == (((6379, 6379),), (), ())
    assert closed.members is not None
    assert {port for pair in closed.members for port in pair} == {6379, 8001, 8265}
    web = [Listening(8000, "0.0.0.0", of_ray=False)]
    assert decide([8000], web, (), exposed=(8000,)).exempt == ()


def test_the_kernels_own_port_stays() -> None:
    """An NFS server has no process; in Ray's range it is closed as long as nobody is known to have it."""
    nfs = Listening(2049, "0.0.0.0", of_ray=None)
    assert not decide([], [nfs], ())
    assert decide([2049], [nfs], ()).always == ((2049, 2049),)


def test_other_ports_have_another_digest() -> None:
    one, two = decide([1], [], ()), decide([2], [], ())
    assert one.digest != two.digest
    assert one.digest == decide([1], [], ()).digest
