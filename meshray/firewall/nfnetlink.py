"""nf_tables messages as bytes (linux/netfilter/nf_tables.h), for a table of ours without the program nft. Pure.

It can write the rules of `meshray.firewall.own_rules` and no others: conditions on interfaces, addresses, ports and
flags, and a verdict. Numbers of nf_tables are big-endian; those of netlink itself are in host byte order.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_network

from meshray.firewall.closing import IPV4, IPV6, family_of
from meshray.firewall.own_rules import ACCEPT, OwnRule
from meshray.linux.netlink import ACK, attribute, messages, request

_NFGENMSG = struct.Struct("!BBH")
_NESTED = 0x8000
_CREATE, _APPEND = 0x400, 0x800
_SUBSYSTEM = 10
_NEW_TABLE, _DELETE_TABLE, _NEW_CHAIN, _NEW_RULE = 0, 2, 3, 6
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
#: NFPROTO_INET: IPv4 and IPv6.
_INET = 1
#: Attributes of tables, chains and rules; each set counts from 1.
_TABLE_NAME, _TABLE_FLAGS = 1, 2
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 1, 3, 4, 5, 7
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS, _RULE_USERDATA = 1, 2, 4, 7
_ELEMENT, _EXPRESSION_NAME, _EXPRESSION_DATA = 1, 1, 2
_VALUE, _VERDICT, _VERDICT_CODE = 1, 2, 1
#: NFT_TABLE_F_OWNER: no other socket can change or flush the table, and it ends with the socket that created it (Linux
#: 5.12).
_OWNER = 2
_HOOKS = {"input": 1, "forward": 2, "output": 3}
#: As in `nft.own_table_script`.
_PRIORITY = -5
_META_IIFNAME, _META_OIFNAME, _META_NFPROTO, _META_L4PROTO = 6, 7, 15, 16
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_EQUAL, _UNEQUAL = 0, 1
_REGISTER, _VERDICT_REGISTER = 1, 0
_CT_STATE, _ESTABLISHED_OR_RELATED = 0, 2 | 4
_INTERFACE_BYTES = 16
_PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "icmp": socket.IPPROTO_ICMP}
_NFPROTO = {IPV4: socket.AF_INET, IPV6: socket.AF_INET6}
#: The offsets of the addresses in a packet: source, destination.
_ADDRESSES = {IPV4: (12, 16), IPV6: (8, 24)}
_TCP_FLAGS, _SYN, _SYN_FIN_RST_ACK = 13, 0x02, 0x17
_ICMP_REDIRECT = 5


def owned_table(name: str, chains: Mapping[str, Sequence[OwnRule]], *, replaces: bool) -> tuple[bytes, int]:
    """Return a batch that creates this table and its chains, owned by the sender, and the number of its last message.

    Args:
        replaces: the sender already owns a table of this name; the same transaction removes it.
    """
    table = _text(_TABLE_NAME, name)
    steps = [(_DELETE_TABLE, ACK, table)] if replaces else []
    steps.append((_NEW_TABLE, _CREATE, table + _number(_TABLE_FLAGS, _OWNER)))
    for chain in chains:
        hook = _number(_HOOK_NUMBER, _HOOKS[chain]) + _number(_HOOK_PRIORITY, _PRIORITY & 0xFFFFFFFF)
        body = _text(_CHAIN_TABLE, name) + _text(_CHAIN_NAME, chain) + _nested(_CHAIN_HOOK, hook)
        steps.append((_NEW_CHAIN, _CREATE, body + _number(_CHAIN_POLICY, 1) + _text(_CHAIN_TYPE, "filter")))
    for chain, rules in chains.items():
        for rule in rules:
            for expressions in _rule(rule):
                body = _text(_RULE_TABLE, name) + _text(_RULE_CHAIN, chain)
                body += _nested(_RULE_EXPRESSIONS, b"".join(_nested(_ELEMENT, item) for item in expressions))
                steps.append((_NEW_RULE, _CREATE | _APPEND, body + attribute(_RULE_USERDATA, _comment(rule))))
    parts = [_message(_BATCH_BEGIN, 0, 0, b"", resource=_SUBSYSTEM)]
    for number, (kind, flags, body) in enumerate(steps, start=1):
        ack = ACK if number == len(steps) else 0
        parts.append(_message(_SUBSYSTEM << 8 | kind, flags | ack, number, body))
    parts.append(_message(_BATCH_END, 0, len(steps) + 1, b"", resource=_SUBSYSTEM))
    return b"".join(parts), len(steps)


def _rule(rule: OwnRule) -> Iterator[list[bytes]]:
    """Yield the expressions of a rule: one list for each range of ports."""
    before = [*_interfaces(rule), *_addresses(rule)]
    verdict = _expression(
        "immediate",
        _number(1, _VERDICT_REGISTER),
        _nested(2, _nested(_VERDICT, _number(_VERDICT_CODE, 1 if rule.verdict == ACCEPT else 0))),
    )
    protocol = "icmp" if rule.redirect else rule.protocol
    if protocol:
        before += [_meta(_META_L4PROTO), _compare(bytes([_PROTOCOLS[protocol]]))]
    after = [*_flags(rule), verdict]
    for first, last in rule.ports or [(0, 0)]:
        yield [*before, *(_port(first, last) if rule.ports else []), *after]


def _interfaces(rule: OwnRule) -> Iterator[bytes]:
    for key, name, operation in (
        (_META_IIFNAME, rule.iif, _EQUAL),
        (_META_OIFNAME, rule.oif, _EQUAL),
        (_META_IIFNAME, "lo" if rule.outside else "", _UNEQUAL),
        (_META_IIFNAME, rule.outside, _UNEQUAL),
    ):
        if name:
            yield _meta(key)
            yield _compare(name.encode().ljust(_INTERFACE_BYTES, b"\0"), operation)


def _addresses(rule: OwnRule) -> Iterator[bytes]:
    family = family_of(rule.target or rule.source) if rule.target or rule.source else rule.family
    if rule.redirect:
        family = IPV4
    if family:
        yield _meta(_META_NFPROTO)
        yield _compare(bytes([_NFPROTO[family]]))
    for place, text, operation in (
        (0, rule.source, _EQUAL),
        (1, rule.target, _UNEQUAL if rule.elsewhere else _EQUAL),
    ):
        if text:
            network = ip_network(text)
            length = len(network.network_address.packed)
            yield _payload(_NETWORK_HEADER, _ADDRESSES[family][place], length)
            yield _masked(network.netmask.packed)
            yield _compare(network.network_address.packed, operation)


def _port(first: int, last: int) -> Iterator[bytes]:
    yield _payload(_TRANSPORT_HEADER, 2, 2)
    if first == last:
        yield _compare(struct.pack("!H", first))
        return
    low, high = (_nested(place, _data(struct.pack("!H", port))) for place, port in ((3, first), (4, last)))
    yield _expression("range", _number(1, _REGISTER), _number(2, _EQUAL), low, high)


def _flags(rule: OwnRule) -> Iterator[bytes]:
    if rule.opens is not None:
        yield _payload(_TRANSPORT_HEADER, _TCP_FLAGS, 1)
        yield _masked(bytes([_SYN_FIN_RST_ACK]))
        yield _compare(bytes([_SYN]), _EQUAL if rule.opens else _UNEQUAL)
    if rule.redirect:
        yield _payload(_TRANSPORT_HEADER, 0, 1)
        yield _compare(bytes([_ICMP_REDIRECT]))
    if rule.known:
        yield _expression("ct", _number(1, _REGISTER), _number(2, _CT_STATE))
        yield _masked(struct.pack("=I", _ESTABLISHED_OR_RELATED))
        yield _compare(bytes(4), _UNEQUAL)


def _meta(key: int) -> bytes:
    return _expression("meta", _number(1, _REGISTER), _number(2, key))


def _payload(base: int, offset: int, length: int) -> bytes:
    return _expression("payload", _number(1, _REGISTER), _number(2, base), _number(3, offset), _number(4, length))


def _masked(mask: bytes) -> bytes:
    registers = _number(1, _REGISTER) + _number(2, _REGISTER) + _number(3, len(mask))
    return _expression("bitwise", registers, _nested(4, _data(mask)), _nested(5, _data(bytes(len(mask)))))


def _compare(value: bytes, operation: int = _EQUAL) -> bytes:
    return _expression("cmp", _number(1, _REGISTER), _number(2, operation), _nested(3, _data(value)))


def _data(value: bytes) -> bytes:
    return attribute(_VALUE, value)


def _expression(name: str, *data: bytes) -> bytes:
    return _text(_EXPRESSION_NAME, name) + _nested(_EXPRESSION_DATA, b"".join(data))


def _comment(rule: OwnRule) -> bytes:
    """Return the comment as nft stores and shows it: type 0, length, text."""
    text = rule.comment.encode()[:127] + b"\0"
    return bytes([0, len(text)]) + text


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value))


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _nested(kind: int, body: bytes) -> bytes:
    return attribute(kind | _NESTED, body)


def _message(kind: int, flags: int, number: int, body: bytes, *, resource: int = 0) -> bytes:
    family = 0 if resource else _INET
    general = _NFGENMSG.pack(family, 0, resource)
    return request(kind, flags, general + body, number)


def answered(data: bytes, last: int) -> tuple[bool, int]:
    """Return whether this datagram completes the kernel's answer to a batch, and the errno if the batch was refused.

    Args:
        last: the number of the batch's last message.
    """
    done = False
    for message in messages(data):
        if message.refused:
            return True, message.refused
        done = done or message.sequence == last
    return done, 0
