from __future__ import annotations

import asyncio
from ipaddress import IPv4Address

from meshray.agent.device.forwards import Forwards
from meshray.linux.tasks import Tasks
from meshray.model.ray_ports import RayPorts


def test_both_directions_are_carried_and_a_taken_port_yields_the_next() -> None:
    async def scene() -> tuple[bytes, dict[str, str], int]:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write((await reader.read()).upper())
            writer.close()

        head = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = head.sockets[0].getsockname()[1]
        made = Forwards(lambda: IPv4Address("127.0.0.1"), ports=RayPorts.of({"dashboard": port}))
        tasks = Tasks()
        tasks.start(made.run(), "forwards")
        await asyncio.sleep(0)  # Its first step binds the ports.
        reader, writer = await asyncio.open_connection("127.0.0.1", made.dashboard)
        writer.write(b"hello")
        writer.write_eof()
        output = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        await tasks.close()
        head.close()
        return output, made.urls(), port

    output, urls, taken = asyncio.run(scene())
    assert output == b"HELLO"
    assert urls["dashboard"] != f"http://127.0.0.1:{taken}"
    assert urls["dashboard"].startswith("http://127.0.0.1:")
    assert urls["ray_client"].startswith("ray://127.0.0.1:100")


def test_without_a_head_a_connection_ends_at_once() -> None:
    async def scene() -> bytes:
        made = Forwards(lambda: None)
        tasks = Tasks()
        tasks.start(made.run(), "forwards")
        await asyncio.sleep(0)  # Its first step binds the ports.
        reader, writer = await asyncio.open_connection("127.0.0.1", made.dashboard)
        output = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        await tasks.close()
        return output

    assert asyncio.run(scene()) == b""
