"""Upgrade this node's meshray by order of the administrator, and keep the new version once it works.

    Order(upgrade) ──► wheel ──► version beside this one ──► pointer: trial ──► agent of the new version
                                                                               connected, paths, Ray ──► pointer: kept

`meshray.runtime.upgrade` has the parts that work without this agent.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable, Mapping

from meshray import __version__
from meshray.agent.status.snapshot import Sources, current_path
from meshray.agent.status.startup_progress import Progress
from meshray.client.wheel import fetch_wheel
from meshray.errors import MeshrayError, RefusedError
from meshray.linux.files import make_folder
from meshray.model.attestation import is_release_signed
from meshray.model.path import PathKind
from meshray.protocol.codec import convert, to_json
from meshray.protocol.orders import ALREADY, SWITCHING, UpgradeArguments, UpgradeReport
from meshray.runtime.upgrade import pointer as pointers
from meshray.runtime.upgrade import watchdog
from meshray.runtime.upgrade.current import current_build, require_upgradable, versions_folder
from meshray.runtime.upgrade.launch import own_stamp

log = logging.getLogger(__name__)

#: A new version must work within this, seconds.
TRIAL_S = 60.0
#: It works when it has worked for this long, seconds: a coordinator that ends at its start answers for a moment.
_STEADY_S = 1.0
_POLL_S = 0.1
#: The answer is sent before the agent ends, seconds.
_SWITCH_AFTER_S = 0.5


class Upgrades:
    """The upgrades of this node.

    Args:
        restart: ends the agent so that the version starts to which the pointer leads.
    """

    def __init__(self, sources: Sources, progress: Progress, restart: Callable[[], None]) -> None:
        self._sources = sources
        self._home = sources.state.home
        self._progress = progress
        self._restart = restart
        self._running = False

    async def upgrade(self, arguments: Mapping[str, object]) -> AsyncGenerator[bytes, None]:
        """Install the wheel and switch to it. The output is `ALREADY` or `SWITCHING`."""
        wanted = convert(arguments, UpgradeArguments)
        if wanted.build == await asyncio.to_thread(current_build):
            yield ALREADY.encode()
            return
        self._require_signed(wanted)
        self._require_possible()
        self._running = True
        # From here on the watchdog starts this agent again if it is killed.
        await asyncio.to_thread(watchdog.start, self._home, sys.executable, os.environ)
        try:
            python = await self._install(wanted)
            # It may have been killed meanwhile.
            watchdog.ensure(self._home, sys.executable, os.environ)
            await asyncio.to_thread(pointers.begin, self._home, self._trial(wanted, python))
        finally:
            self._running = False
        log.info("switching to meshray %s (build %s)", wanted.version, wanted.build)
        asyncio.get_running_loop().call_later(_SWITCH_AFTER_S, self._restart)
        yield SWITCHING.encode()

    async def watch_trial(self) -> None:
        """Keep this version once it works, if it is on trial."""
        pointer = await asyncio.to_thread(pointers.read, self._home)
        if pointer is None or pointer.state != pointers.TRIAL or pointer.python != sys.executable:
            return
        # The one that the previous agent started may have been killed.
        watchdog.ensure(self._home, pointer.previous, os.environ)
        since = time.monotonic()
        while time.monotonic() - since < _STEADY_S:
            if not self._works(pointer):
                since = time.monotonic()
            await asyncio.sleep(_POLL_S)
        if await asyncio.to_thread(pointers.keep, self._home):
            log.info("meshray %s (build %s) works and is kept", pointer.version, pointer.build)

    async def report(self) -> Mapping[str, object]:
        """Return the running build and the result of the last upgrade."""
        pointer = await asyncio.to_thread(pointers.read, self._home)
        report = UpgradeReport(await asyncio.to_thread(current_build), __version__)
        if pointer is not None:
            report = UpgradeReport(report.build, __version__, pointer.state, pointer.build, pointer.reason)
        return to_json(report)

    def _require_signed(self, wanted: UpgradeArguments) -> None:
        """Raise RefusedError unless the lock, if the mesh has one, signed the wheel.

        The lock protects nodes from a compromised coordinator, which could otherwise send them any program.
        """
        mesh = self._sources.state.map.mesh
        if mesh.lock is None or (
            wanted.signature and is_release_signed(mesh.lock, mesh.id, wanted.sha256, wanted.signature)
        ):
            return
        raise RefusedError(
            "upgrade_unsigned",
            "the lock of this mesh did not sign the wheel",
            hint="on the head: sudo meshray node upgrade --all --lock FILE",
        )

    def _require_possible(self) -> None:
        require_upgradable(ephemeral=self._sources.state.enrolment.ephemeral)
        pointer = pointers.read(self._home)
        is_tried = pointer is not None and pointer.state == pointers.TRIAL
        if self._running or is_tried:
            raise MeshrayError("busy", "another upgrade of this node is in progress", hint="try again in a minute")
        if not self._progress.up:
            raise MeshrayError(
                "upgrade_not_up",
                "this node is not up, so a new version could not show that it works",
                hint="meshray doctor",
            )

    async def _install(self, wanted: UpgradeArguments) -> str:
        """Install the wheel in a separate process; return the interpreter of the new version."""
        make_folder(self._home.wheels)
        path = self._home.wheels / f".{wanted.sha256}"
        path.unlink(missing_ok=True)
        try:
            await fetch_wheel(self._sources.state.coordinator, wanted.sha256, wanted.size, path)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-m", "meshray.runtime.upgrade.installer"),
                *(str(path), wanted.sha256, str(versions_folder(self._home))),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
            )
            try:
                output, _ = await asyncio.wait_for(process.communicate(), watchdog.INSTALL_S / 2)
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        except asyncio.TimeoutError:
            raise _failed("it took too long") from None
        finally:
            path.unlink(missing_ok=True)
        try:
            result = json.loads(output)
        except ValueError:
            raise _failed("the installer was ended") from None
        if "python" not in result:
            raise MeshrayError(result["code"], result["message"], hint=result["hint"])
        return str(result["python"])

    def _trial(self, wanted: UpgradeArguments, python: str) -> pointers.Pointer:
        before = pointers.read(self._home)
        own, now = sys.executable, pointers.Moment.now()
        reached = [node.id for node in self._sources.state.others if self._has_path(node.id)]
        return pointers.Pointer(
            pointers.TRIAL,
            python,
            previous=own,
            launcher=before.launcher if before is not None else own,
            stamp=before.stamp if before is not None else own_stamp(),
            version=wanted.version,
            build=wanted.build,
            boot=now.boot,
            deadline_s=now.seconds + TRIAL_S,
            peers=tuple(reached),
        )

    def _works(self, pointer: pointers.Pointer) -> bool:
        sources, coordinator = self._sources, self._sources.parts.coordinator
        if not (self._progress.up and sources.connection.is_open):
            return False
        if coordinator is not None and not coordinator.is_current:
            return False
        expected = [node.id for node in sources.state.others if node.id in pointer.peers and node.online]
        return all(map(self._has_path, expected))

    def _has_path(self, node_id: str) -> bool:
        node = self._sources.state.map.nodes.get(node_id)
        return node is not None and current_path(self._sources, node).kind != PathKind.NONE


def _failed(why: str) -> MeshrayError:
    return MeshrayError("install_failed", f"the new version could not be installed: {why}", hint="try again")
