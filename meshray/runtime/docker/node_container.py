"""A node's container: created, started, stopped and removed, and commands in it.

container = make(engine, plan)
code = NodeContainer.of(engine, record).meshray(["status", "--json"], out=answer.extend, err=progress)
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import socket
import tarfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from meshray import __version__
from meshray.errors import MeshrayError, UnreachableError
from meshray.linux.trusted_files import find_program
from meshray.runtime.base import Sink
from meshray.runtime.docker.container_plan import LABEL, STATE, Plan
from meshray.runtime.docker.engine import Engine, engine_errors
from meshray.runtime.docker.record import Record

if TYPE_CHECKING:
    from docker.models.containers import Container

#: Time limit for stopping it, seconds; longer than that of `meshray down` inside.
STOP_S = 90
_TUN = "/dev/net/tun"
#: The variable that marks a process which was started from outside.
_MARK = "MESHRAY_CALL"
#: Sends SIGINT to the marked process. Its parent is outside of the container and has pid 0 as seen from inside; its
#: children (the agent) inherited the mark, but have another parent.
_INTERRUPT = """
import os, signal, sys
for pid in filter(str.isdecimal, os.listdir("/proc")):
    try:
        marked = sys.argv[1].encode() in open(f"/proc/{pid}/environ", "rb").read().split(b"\\0")
        if marked and open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1] == "0":
            os.kill(int(pid), signal.SIGINT)
    except OSError:
        pass
"""


@dataclass(frozen=True)
class NodeContainer:
    """The container of a node; see `meshray.runtime.base.Container`."""

    engine: Engine
    record: Record
    container: Container

    @classmethod
    def of(cls, engine: Engine, record: Record) -> NodeContainer:
        """Return the recorded container.

        Raises:
            UnreachableError: ``container_gone``: a user removed it.
        """
        import docker.errors

        with engine_errors(f"the container {record.name}"):
            try:
                return cls(engine, record, engine.client.containers.get(record.container))
            except docker.errors.NotFound:
                raise UnreachableError(
                    "container_gone",
                    f"the container {record.name} of this node does not exist: a user removed it",
                    hint="meshray leave --yes removes the rest of the node; on the head: meshray node list",
                ) from None

    @property
    def name(self) -> str:
        """Its name, as `docker ps` shows it."""
        return self.record.name

    @property
    def runs(self) -> bool:
        """Whether it runs."""
        return str(self.container.status) == "running"

    def require_running(self) -> None:
        """Raise UnreachableError if it is stopped."""
        if not self.runs:
            raise UnreachableError(
                "container_down",
                f"the container {self.record.name} of this node is {self.container.status}",
                hint="meshray up",
            )

    def start(self) -> None:
        """Start it; its first process brings an enrolled node up."""
        with engine_errors(f"the container {self.record.name} cannot be started"):
            self.container.start()

    def stop(self) -> None:
        """Stop it; its first process takes the node down."""
        with engine_errors(f"the container {self.record.name} cannot be stopped"):
            self.container.stop(timeout=STOP_S)

    def remove(self) -> None:
        """Remove it and the node's state."""
        remove_container(self.engine, self.record)

    def wait(self) -> int:
        """Wait until it has ended; return its exit code."""
        with engine_errors(f"the container {self.record.name}"):
            return int(self.container.wait(timeout=None)["StatusCode"])

    def meshray(
        self,
        arguments: Sequence[str],
        *,
        out: Sink,
        err: Sink,
        stdin: Callable[[], bytes] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> int:
        """See `Container.meshray`.

        Raises:
            KeyboardInterrupt: came here and was forwarded, and the command has ended.
        """
        mark = f"{_MARK}={secrets.token_hex(8)}"
        command = [*self._meshray(), *arguments]
        api = self.engine.client.api
        variables = [mark, *(f"{name}={value}" for name, value in (environ or {}).items())]
        with engine_errors(f"no command can be run in the container {self.record.name}"):
            call = api.exec_create(
                self.container.id, command, stdin=stdin is not None, user="0", environment=variables
            )["Id"]
            stream = api.exec_start(call, socket=True)
        try:
            if stdin is not None:
                threading.Thread(target=_feed, args=(stream, stdin), daemon=True).start()
            self._carry(stream, mark, out, err)
        finally:
            stream.close()
        with engine_errors(f"the container {self.record.name}"):
            code = api.exec_inspect(call)["ExitCode"]
        return 1 if code is None else int(code)

    def replace_process(self, arguments: Sequence[str]) -> None:
        """See `Container.replace_process`: the docker program serves a terminal better than `meshray` does."""
        docker = find_program("docker", os.environ)
        if docker is not None:
            words = [str(docker), "--host", self.record.engine, "exec", "-it", "--user", "0", str(self.container.id)]
            os.execv(docker, [*words, *self._meshray(), *arguments])  # noqa: S606 - no shell

    def _meshray(self) -> list[str]:
        return [self.record.python, "-I", "-m", "meshray.cli"]

    def _carry(self, stream: Any, mark: str, out: Sink, err: Sink) -> None:
        from docker.utils.socket import STDERR, frames_iter

        interrupted = False
        frames = frames_iter(stream, tty=False)
        while True:
            try:
                for kind, data in frames:
                    (err if kind == STDERR else out)(data)
                break
            except KeyboardInterrupt:
                if interrupted:
                    raise
                interrupted = True
                # The exception ended the generator; reading on takes a new one.
                frames = frames_iter(stream, tty=False)
                self.container.exec_run([self.record.python, "-c", _INTERRUPT, mark], user="0")
        if interrupted:
            raise KeyboardInterrupt

    def run_once(self, arguments: Sequence[str]) -> tuple[int, bytes]:
        """Run a meshray command on its state while it is stopped; return exit code and standard output."""
        settings = self.container.attrs["HostConfig"]
        with engine_errors(f"the state of the container {self.record.name}"):
            helper = self.engine.client.containers.create(
                self.container.attrs["Image"],
                entrypoint=self._meshray(),
                command=list(arguments),
                user="0",
                cap_add=["NET_ADMIN"],
                devices=[_TUN],
                network=settings["NetworkMode"] if settings["NetworkMode"] != "default" else None,
                volumes_from=[self.container.id],
                labels={LABEL: __version__},
            )
            try:
                helper.start()
                code = int(helper.wait(timeout=STOP_S)["StatusCode"])
                return code, bytes(helper.logs(stdout=True, stderr=False))
            finally:
                helper.remove(force=True)

    def unlink(self, path: str) -> None:
        """See `Container.unlink`."""
        with engine_errors(f"the container {self.record.name}"):
            self.container.exec_run(["rm", "-f", path], user="0")

    def read(self, path: str) -> bytes | None:
        """Return the content of a file in it, even if it is stopped; None if the file does not exist."""
        import docker.errors

        with engine_errors(f"the container {self.record.name}"):
            try:
                chunks, _ = self.container.get_archive(path)
            except docker.errors.NotFound:
                return None
            with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
                member = tar.next()
                file = tar.extractfile(member) if member is not None else None
                return file.read() if file is not None else None

    def read_log(self, part: str) -> bytes | None:
        """See `Container.read_log`."""
        return self.read(f"{STATE}/log/{part}.log")


def _feed(stream: Any, read: Callable[[], bytes]) -> None:
    raw = getattr(stream, "_sock", stream)
    with contextlib.suppress(OSError, ValueError):
        while data := read():
            raw.sendall(data)
        raw.shutdown(socket.SHUT_WR)


def remove_container(engine: Engine, record: Record) -> None:
    """Remove a node's container and its state, as far as they still exist."""
    import docker.errors

    with engine_errors(f"the container {record.name} cannot be removed"):
        with contextlib.suppress(docker.errors.NotFound):
            engine.client.containers.get(record.container or record.name).remove(force=True, v=True)
        with contextlib.suppress(docker.errors.NotFound):
            engine.client.volumes.get(record.volume).remove(force=True)


def create_container(engine: Engine, plan: Plan) -> NodeContainer:
    """Create and start a node's container. Nothing is left of a container that does not start.

    Raises:
        MeshrayError: what the engine refuses.
    """
    import docker.types

    gpus = [docker.types.DeviceRequest(count=-1, capabilities=[["gpu"]])] if plan.gpus else None
    inside = {plan.volume: {"bind": STATE, "mode": "rw"}}
    inside |= {outside: {"bind": path, "mode": "rw"} for path, outside in plan.volumes.items()}
    with engine_errors("the node's container cannot be created"):
        engine.client.volumes.create(plan.volume, labels={LABEL: __version__})
    record = Record(engine.address, "", plan.name, plan.volume, plan.python, plan.ephemeral)
    try:
        with engine_errors("the node's container cannot be created"):
            container = engine.client.containers.create(
                plan.image,
                entrypoint=[plan.python, "-I", "-m", "meshray.runtime.container.first"],
                command=[],
                name=plan.name,
                hostname=plan.hostname,
                user="0",
                cap_add=["NET_ADMIN"],
                devices=[_TUN],
                device_requests=gpus,
                shm_size=plan.shm,
                network=plan.bridge or None,
                ports={f"{port}/udp": port for port in plan.ports},
                volumes=inside,
                tmpfs={"/run/meshray": "mode=711"},
                environment=plan.environment,
                restart_policy={"Name": "no" if plan.ephemeral else "unless-stopped"},
                labels={LABEL: __version__},
            )
    except BaseException:
        remove_container(engine, record)
        raise
    node = NodeContainer(engine, replace(record, container=str(container.id)), container)
    try:
        node.start()
        node.container.reload()
        node.require_running()
    except BaseException:
        output = node.container.logs().decode(errors="replace").strip()[-300:] if node.container.id else ""
        node.remove()
        if output:
            raise MeshrayError(
                "container_failed", f"the node's container ended at once: {output}", hint="docker info"
            ) from None
        raise
    return node
