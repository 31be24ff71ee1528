"""The packets that ask an Ethernet who has an address."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray.linux.arp import claim, probe

MAC, ADDRESS = bytes.fromhex("020000000001"), IPv4Address("192.168.7.10")
#: An answer as Linux sends it (RFC 826).
ANSWER = bytes.fromhex("0001 0800 06 04 0002 020000000002 c0a8070a 020000000001 00000000")


def test_a_probe_has_the_form_of_rfc_5227() -> None:
    assert probe(MAC, ADDRESS) == bytes.fromhex(
        "0001 0800 06 04 0001 020000000001 00000000 000000000000 c0a8070a",
    )


def test_an_answer_and_an_announcement_claim_the_senders_address() -> None:
    claimed = (ADDRESS, bytes.fromhex("020000000002"))
    assert claim(ANSWER) == claimed
    request = ANSWER[:6] + b"\x00\x01" + ANSWER[8:]
    assert claim(request) == claimed
    # Ethernet frames have at least 46 bytes of data.
    assert claim(ANSWER + bytes(18)) == claimed


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        ANSWER[:-1],
        probe(MAC, ADDRESS),
        b"\x00\x06" + ANSWER[2:],
        ANSWER[:2] + b"\x86\xdd" + ANSWER[4:],
        ANSWER[:4] + b"\x08\x04" + ANSWER[6:],
        ANSWER[:6] + b"\x00\x09" + ANSWER[8:],
        ANSWER[:8] + bytes(6) + ANSWER[14:],
    ],
    ids=["empty", "short", "probe", "hardware", "protocol", "sizes", "operation", "no-mac"],
)
def test_other_packets_claim_nothing(packet: bytes) -> None:
    assert claim(packet) is None


@given(st.binary(max_size=60))
def test_no_packet_raises(packet: bytes) -> None:
    claim(packet)
