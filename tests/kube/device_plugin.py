"""A device plugin for /dev/net/tun, as clusters have one for pods without access to the machine's devices.

    python -m tests.kube.device_plugin squat.ai/tun

It speaks the kubelet's protocol, v1beta1 of k8s.io/kubelet/pkg/apis/deviceplugin, and ends with its host.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

FOLDER = Path("/var/lib/kubelet/device-plugins")
_SOCKET = "tun.sock"
_TUN = "/dev/net/tun"
#: How many pods of the machine may have the device.
_DEVICES = 8
_START_S = 30.0
#: The tag of an item of a repeated field 1, for messages that have one.
_ITEM = 0x0A


def field(number: int, value: str | bytes) -> bytes:
    """Return a text or a message as a field of protobuf; it must be shorter than 128 bytes."""
    content = value.encode() if isinstance(value, str) else value
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


def watch(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    """Yield the devices, all healthy, and keep the stream."""
    yield b"".join(field(1, field(1, f"tun{number}") + field(2, "Healthy")) for number in range(_DEVICES))
    threading.Event().wait()


def allocate(request: bytes, context: grpc.ServicerContext) -> bytes:
    """Return the device for each container of the request."""
    device = field(1, _TUN) + field(2, _TUN) + field(3, "rw")
    return field(1, field(3, device)) * _items(request)


def _items(message: bytes) -> int:
    found, place = 0, 0
    while place < len(message):
        assert message[place] == _ITEM
        found, place = found + 1, place + 2 + message[place + 1]
    return found


def _empty(request: bytes, context: grpc.ServicerContext) -> bytes:
    return b""


def main(resource: str) -> None:
    """Serve, and register this plugin with the kubelet."""
    methods: dict[str, grpc.RpcMethodHandler] = {
        "ListAndWatch": grpc.unary_stream_rpc_method_handler(watch),
        **{name: grpc.unary_unary_rpc_method_handler(function) for name, function in _UNARY.items()},
    }
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("v1beta1.DevicePlugin", methods),))
    server.add_insecure_port(f"unix://{FOLDER / _SOCKET}")
    server.start()
    with grpc.insecure_channel(f"unix://{FOLDER / 'kubelet.sock'}") as kubelet:
        register = kubelet.unary_unary("/v1beta1.Registration/Register")
        register(field(1, "v1beta1") + field(2, _SOCKET) + field(3, resource), timeout=_START_S, wait_for_ready=True)
    print("registered", flush=True)
    server.wait_for_termination()


_UNARY: dict[str, Callable[[bytes, grpc.ServicerContext], bytes]] = {
    "Allocate": allocate,
    "GetDevicePluginOptions": _empty,
}

if __name__ == "__main__":
    main(sys.argv[1])
