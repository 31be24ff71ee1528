"""Unregister dead nodes in Ray before Ray notices their death.

    await unregister(installation, plan, user, ["3f5c…"], "it left the mesh")

Ray's GCS considers a node alive until its health checks have failed for the whole patience, and tasks that it assigns
to the node meanwhile hang. The call is the one of a raylet that ends (NodeInfoGcsService.UnregisterNode, Ray 2.9 and
later). It runs in Ray's own Python, as Ray's user, because gRPC and the message types are there. It does not import
Ray, which would take a second.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from meshray.home import Home
from meshray.linux import overlay_netns
from meshray.linux.process import ManagedProcess
from meshray.linux.user import User
from meshray.raynode.command import RayPlan, client_environment
from meshray.raynode.versions import RayInstallation

_log = logging.getLogger(__name__)
#: The timeout of the whole call, seconds. GCS does not answer for a node that it considers dead.
_TIMEOUT_S = 10.0
_PROGRAM = """
import os, sys, types
folders = (os.path.join(entry, "ray") for entry in sys.path)
folder = next(folder for folder in folders if os.path.isdir(folder + "/core/generated"))
package = types.ModuleType("ray")
package.__path__ = [folder]
sys.modules["ray"] = package
import grpc
from ray.core.generated import gcs_service_pb2 as messages, gcs_service_pb2_grpc as services
reason, nodes = sys.argv[1], sys.argv[2:]
token = os.environ.get("RAY_AUTH_TOKEN_PATH")
headers = [("authorization", "Bearer " + open(token).read().strip())] if token else []
with grpc.insecure_channel(os.environ["RAY_ADDRESS"], options=[("grpc.enable_http_proxy", 0)]) as channel:
    gcs = services.NodeInfoGcsServiceStub(channel)
    for node in nodes:
        death = {"reason": 1, "reason_message": reason}
        request = messages.UnregisterNodeRequest(node_id=bytes.fromhex(node), node_death_info=death)
        try:
            gcs.UnregisterNode(request, metadata=headers, timeout=2)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                sys.exit(f"{error.code().name}: {error.details()}")
"""


class Unregister:
    """Calls GCS from this node, one call at a time.

    Args:
        home: has the pid file and the log of the call's process.
    """

    def __init__(self, home: Home) -> None:
        self._process = ManagedProcess(home.pid_file("unregister"))
        self._log_file = home.logs / "unregister.log"
        self._one_call = asyncio.Lock()

    async def __call__(
        self, installation: RayInstallation, plan: RayPlan, user: User, nodes: Sequence[str], reason: str
    ) -> bool:
        """Mark the nodes with these ids (hexadecimal) as dead, and return whether GCS accepted it.

        A failure is only logged, because Ray notices the death later.
        """
        async with self._one_call:
            try:
                await self._call(installation, plan, user, nodes, reason)
            except (OSError, asyncio.TimeoutError) as error:
                _log.warning("a dead node could not be unregistered in Ray: %s", error or "it did not answer")
                return False
            finally:
                await self._process.stop(0)
        if self._process.exit_code:
            _log.warning("a dead node could not be unregistered in Ray: %s", _last_line(self._log_file))
            return False
        _log.info("unregistered %s in Ray: %s", ", ".join(nodes), reason)
        return True

    async def _call(
        self, installation: RayInstallation, plan: RayPlan, user: User, nodes: Sequence[str], reason: str
    ) -> None:
        self._log_file.write_bytes(b"")
        overlay_netns.spawn(
            self._process,
            [str(installation.python), "-c", _PROGRAM, reason, *nodes],
            env={"PATH": os.defpath, "HOME": str(user.home), **client_environment(plan)},
            log=self._log_file,
            user=user,
            cwd=Path("/"),
        )
        await asyncio.wait_for(self._process.wait(), _TIMEOUT_S)


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1][:300] if lines else "its Python ended without a message"
