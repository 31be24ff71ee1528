"""The operations of `meshray.agent.connection.order_runner`: show a log, restart, create the doctor's archive.

>>> RemoteOrders(agent).operations[LOGS]({"part": "ray", "follow": True})
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path

from meshray.agent.connection.order_runner import Operation
from meshray.agent.dependencies import Dependencies
from meshray.agent.device.reconciler import Reconciler
from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.node.log_reader import read_log
from meshray.protocol.codec import convert
from meshray.protocol.orders import BUNDLE, LOGS, RESTART, BundleArguments, LogArguments, RestartArguments

#: `meshray doctor --bundle` must finish within this, seconds.
_BUNDLE_S = 180.0
#: The answer to a restart is sent before the agent ends, seconds.
_RESTART_AFTER_S = 0.5
_READ_BYTES = 64 * 1024
#: They name the user behind a sudo, who must not own the archive.
_SUDO = "SUDO_"


class RemoteOrders:
    """The orders that this node's agent carries out.

    Args:
        restart: ends the agent so that it starts again.
    """

    def __init__(self, home: Home, parts: Dependencies, reconciler: Reconciler, restart: Callable[[], None]) -> None:
        self._home = home
        self._parts = parts
        self._reconciler = reconciler
        self._restart = restart

    @property
    def operations(self) -> Mapping[str, Operation]:
        """The operations, by the names of their orders."""
        return {LOGS: self._logs, RESTART: self._restarted, BUNDLE: self._bundle}

    async def _logs(self, arguments: Mapping[str, object]) -> AsyncGenerator[bytes, None]:
        wanted = convert(arguments, LogArguments)
        path = self._home.logs / f"{wanted.part}.log"
        if not path.exists():
            raise MeshrayError("no_log", f"{wanted.part} has written no log on that node", hint="meshray status")
        async for data in read_log(path, lines=wanted.lines, since_s=wanted.since_s, follow=wanted.follow):
            yield data

    async def _restarted(self, arguments: Mapping[str, object]) -> AsyncGenerator[bytes, None]:
        if convert(arguments, RestartArguments).ray:
            from meshray.agent.repair_actions import run_repair

            yield (await run_repair("ray", self._parts, self._reconciler)).encode()
            return
        asyncio.get_running_loop().call_later(_RESTART_AFTER_S, self._restart)
        yield b"the agent restarts now"

    async def _bundle(self, arguments: Mapping[str, object]) -> AsyncGenerator[bytes, None]:
        convert(arguments, BundleArguments)
        with tempfile.TemporaryDirectory(dir=self._home.run, prefix="bundle-") as folder:
            path = Path(folder) / "bundle.tar.gz"
            await create_bundle(self._home, path)
            with path.open("rb") as file:
                while data := await asyncio.to_thread(file.read, _READ_BYTES):
                    yield data


async def create_bundle(home: Home, path: Path) -> None:
    """Run `meshray doctor --bundle` of this node in a separate process, because the doctor's modules are large.

    Raises:
        MeshrayError: ``bundle_failed``.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith(_SUDO)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-m", "meshray", "doctor", "--bundle", str(path), "--json"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**environ, "MESHRAY_HOME": str(home.state), "MESHRAY_RUN": str(home.run)},
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _BUNDLE_S)
    except asyncio.TimeoutError:
        raise _failed(f"it did not finish within {_BUNDLE_S:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    # 3: the archive exists, and a check failed.
    if process.returncode not in (0, 3):
        raise _failed(_cause(output))


def _cause(output: bytes) -> str:
    try:
        return str(json.loads(output)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return "it wrote no archive"


def _failed(why: str) -> MeshrayError:
    return MeshrayError(
        "bundle_failed", f"meshray doctor failed on that node: {why}", hint="there: meshray doctor --bundle FILE"
    )
