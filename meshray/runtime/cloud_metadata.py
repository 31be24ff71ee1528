"""The public addresses that a cloud maps to this machine, which the machine itself does not see.

AWS, GCP, Azure and OpenStack publish them at the same link-local address, each in its own format. All formats are
tried at once; a cloud that does not answer in time is not the one on which this machine runs.

>>> await public_addresses()
[IPv4Address('203.0.113.7')]
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import aiohttp

BASE = "http://169.254.169.254"
#: Outside a cloud nothing answers, and `meshray init` waits this long, seconds.
TIMEOUT_S = 1.0
#: Far above any real answer; the rest of a larger one is not read.
_MAX_BYTES = 64 * 1024

_AWS_TOKEN = "/latest/api/token"  # noqa: S105 - a path
_EC2_ADDRESS = "/latest/meta-data/public-ipv4"
_GCP = "/computeMetadata/v1/instance/network-interfaces/?recursive=true"
_AZURE = "/metadata/instance/network?api-version=2021-02-01"
#: Azure lists addresses of the newer kind ("standard SKU") here: it regards them as a load balancer's.
_AZURE_BALANCER = "/metadata/loadbalancer?api-version=2020-10-01"
#: The names of the fields that hold public addresses.
_KEYS = frozenset({"externalIp", "publicIpAddress", "frontendIpAddress"})


async def public_addresses(base: str = BASE, timeout_s: float = TIMEOUT_S) -> list[IPv4Address]:
    """Return what the cloud's metadata service reports, without duplicates; empty outside a cloud.

    Args:
        base: the URL of the service.
        timeout_s: for all requests together.
    """
    import aiohttp

    # Never through a proxy: it would answer with the address of its own machine.
    async with aiohttp.ClientSession(trust_env=False) as session:
        requests = (
            _aws(session, base),
            _ec2(session, base, {}),  # OpenStack speaks the first version of AWS's protocol
            _structured(session, base + _GCP, {"Metadata-Flavor": "Google"}),
            _structured(session, base + _AZURE, {"Metadata": "true"}),
            _structured(session, base + _AZURE_BALANCER, {"Metadata": "true"}),
        )
        answers = await asyncio.gather(
            *(asyncio.wait_for(request, timeout_s) for request in requests), return_exceptions=True
        )
    found: dict[IPv4Address, None] = {}
    for answer in answers:
        if isinstance(answer, BaseException):
            if not isinstance(answer, (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError)):
                raise answer
            continue
        found.update(dict.fromkeys(answer))
    return list(found)


async def _aws(session: aiohttp.ClientSession, base: str) -> list[IPv4Address]:
    lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = await _fetch(session, "PUT", base + _AWS_TOKEN, lifetime)
    return await _ec2(session, base, {"X-aws-ec2-metadata-token": token.strip()})


async def _ec2(session: aiohttp.ClientSession, base: str, headers: Mapping[str, str]) -> list[IPv4Address]:
    return list(_usable(await _fetch(session, "GET", base + _EC2_ADDRESS, headers)))


async def _structured(session: aiohttp.ClientSession, url: str, headers: Mapping[str, str]) -> list[IPv4Address]:
    return list(_addresses_in(json.loads(await _fetch(session, "GET", url, headers))))


async def _fetch(session: aiohttp.ClientSession, method: str, url: str, headers: Mapping[str, str]) -> str:
    # A redirect comes from a captive portal, not from a metadata service.
    async with session.request(method, url, headers=headers, allow_redirects=False, raise_for_status=True) as response:
        content = await response.content.read(_MAX_BYTES)
        while len(content) < _MAX_BYTES and (more := await response.content.read(_MAX_BYTES - len(content))):
            content += more
    return content.decode()


def _addresses_in(value: object, depth: int = 12) -> Iterator[IPv4Address]:
    """Yield every address in a field with one of the known names, at any depth."""
    if depth == 0:
        return
    if isinstance(value, dict):
        for key, item in value.items():
            if key in _KEYS and isinstance(item, str):
                yield from _usable(item)
            else:
                yield from _addresses_in(item, depth - 1)
    elif isinstance(value, list):
        for item in value:
            yield from _addresses_in(item, depth - 1)


def _usable(text: str) -> Iterator[IPv4Address]:
    try:
        address = IPv4Address(text.strip())
    except ValueError:
        return
    if not (address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified):
        yield address
