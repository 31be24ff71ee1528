"""Public addresses from fakes of the clouds' metadata services."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import IPv4Address

import pytest
from aiohttp import web

from meshray.linux.addresses import interface_addresses
from meshray.model.address import Endpoint
from meshray.runtime import own_endpoints
from meshray.runtime.cloud_metadata import public_addresses

PUBLIC = IPv4Address("203.0.113.7")
Cloud = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def service(cloud: Cloud) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", cloud)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def aws(request: web.Request) -> web.StreamResponse:
    """Version 2 only, as on new machines."""
    if request.path == "/latest/api/token":
        is_asked_well = request.method == "PUT" and request.headers["X-aws-ec2-metadata-token-ttl-seconds"] == "60"
        return web.Response(text="t0ken") if is_asked_well else web.Response(status=400)
    if request.headers.get("X-aws-ec2-metadata-token") != "t0ken":
        return web.Response(status=401)
    return (
        web.Response(text=str(PUBLIC)) if request.path == "/latest/meta-data/public-ipv4" else web.Response(status=404)
    )


async def gcp(request: web.Request) -> web.StreamResponse:
    if request.headers.get("Metadata-Flavor") != "Google":
        return web.Response(status=403)
    if request.path == "/computeMetadata/v1/instance/network-interfaces/" and request.query_string == "recursive=true":
        access = [{"externalIp": str(PUBLIC), "type": "ONE_TO_ONE_NAT"}]
        return web.json_response([{"ip": "10.128.0.2", "accessConfigs": access}])
    return web.Response(status=404)


async def azure(request: web.Request) -> web.StreamResponse:
    if request.headers.get("Metadata") != "true" or request.path != "/metadata/instance/network":
        return web.Response(status=404)
    addresses = [{"privateIpAddress": "10.0.0.4", "publicIpAddress": str(PUBLIC)}]
    return web.json_response({"interface": [{"ipv4": {"ipAddress": addresses}, "macAddress": "00"}]})


async def azure_standard(request: web.Request) -> web.StreamResponse:
    """Answer with the newer kind of public address, which is reported as a load balancer's."""
    if request.headers.get("Metadata") != "true":
        return web.Response(status=400)
    if request.path == "/metadata/loadbalancer":
        pair = {"frontendIpAddress": str(PUBLIC), "privateIpAddress": "10.0.0.4"}
        return web.json_response({"loadbalancer": {"publicIpAddresses": [pair]}})
    addresses = [{"privateIpAddress": "10.0.0.4", "publicIpAddress": ""}]
    return web.json_response({"interface": [{"ipv4": {"ipAddress": addresses}}]})


async def openstack(request: web.Request) -> web.StreamResponse:
    if request.method == "GET" and request.path == "/latest/meta-data/public-ipv4":
        return web.Response(text=f"{PUBLIC}\n")
    return web.Response(status=404)


@pytest.mark.parametrize("cloud", [aws, gcp, azure, azure_standard, openstack])
async def test_each_cloud_reports_the_public_address(cloud: Cloud) -> None:
    async with service(cloud) as base:
        assert await public_addresses(base) == [PUBLIC]


async def captive(request: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>Please log in", content_type="text/html")


async def redirecting(request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("http://127.0.0.1:1/")


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        for _ in range(100):
            await response.write(b"1" * 65536)
    return response


async def nonsense(request: web.Request) -> web.StreamResponse:
    return web.json_response({"externalIp": ["x"], "publicIpAddress": "127.0.0.1", "a": [[[{"externalIp": 7}]]]})


@pytest.mark.parametrize("stranger", [captive, redirecting, endless, nonsense])
async def test_an_unknown_cloud_reports_nothing(stranger: Cloud) -> None:
    async with service(stranger) as base:
        assert await public_addresses(base) == []


async def test_a_silent_node_is_not_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    release = asyncio.Event()

    async def slow_but_openstack(request: web.Request) -> web.StreamResponse:
        if request.path == "/latest/meta-data/public-ipv4":
            return web.Response(text=str(PUBLIC))
        await release.wait()
        return web.Response()

    # Proxies would report their own machine's address.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with service(slow_but_openstack) as base:
        started = time.monotonic()
        assert await public_addresses(base, timeout_s=0.5) == [PUBLIC]
        assert time.monotonic() - started < 2
        release.set()


async def test_no_server_there() -> None:
    assert await public_addresses("http://127.0.0.1:1") == []


async def test_endpoints_are_the_public_address_and_those_of_the_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    async def one() -> list[IPv4Address]:
        return [PUBLIC]

    monkeypatch.setattr(own_endpoints, "public_addresses", one)
    own = await asyncio.to_thread(interface_addresses)
    endpoints = await own_endpoints.find_endpoints(51888)
    assert endpoints[0] == Endpoint(str(PUBLIC), 51888)
    assert endpoints[1:] == tuple(Endpoint(str(ip), 51888) for ip in own)
    assert not any(endpoint.ip is None or endpoint.ip.is_loopback for endpoint in endpoints)
