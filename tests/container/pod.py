"""A pod, run by Docker with the restrictions that its specification has: capabilities, users, mounts, probes.

pod = Pod(engine, "pod-1", specification, secrets={"token": Path("/tmp/secret")})
pod.start("meshray")        # one container
pod.start("ray-worker")     # shares the network, and the processes if the specification says so, with the first
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.container.engine import DockerEngine
from tests.lab.host import Result

#: The folder in the engine's host for the volumes of all pods.
_VOLUMES = Path("/tmp/pods")


class Pod:
    """One pod.

    Args:
        secrets: the folder with the keys of each Secret that exists, by volume, in the engine's host.
        environment: variables that a container has besides those of the specification.
    """

    def __init__(
        self,
        engine: DockerEngine,
        name: str,
        pod: Mapping[str, Any],
        *,
        secrets: Mapping[str, Path],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._engine = engine
        self.name = name
        self._pod = pod
        self._containers = {one["name"]: one for one in (*pod.get("initContainers", ()), *pod["containers"])}
        self._volumes = {volume["name"]: volume for volume in pod["volumes"]}
        self._secrets = secrets
        self._environment = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", **(environment or {})}
        self._started: list[str] = []

    def start(self, name: str) -> None:
        """Start a container of the pod."""
        container = self._containers[name]
        words = ["run", "--detach", f"--name={self._name_of(name)}"]
        if self._started:
            first = self._name_of(self._started[0])
            words.append(f"--network=container:{first}")
            words += [f"--pid=container:{first}"] if self._pod.get("shareProcessNamespace") else []
        else:
            words.append(f"--hostname={self.name}")
        if "command" in container:
            # The image of the tests has no bash.
            words.append("--entrypoint=sh")
        words += [*self._restrictions(container), *self._mounts(container), container["image"]]
        self._engine.docker(*words, *container.get("command", ())[1:], *container.get("args", ()))
        self._started.append(name)

    def run_hook(self, name: str, hook: str, *, check: bool = True) -> Result:
        """Run the command of a probe or of a lifecycle hook of a container, inside."""
        container = self._containers[name]
        handler = container["lifecycle"]["preStop"] if hook == "preStop" else container[hook]
        return self._engine.docker("exec", self._name_of(name), *handler["exec"]["command"], check=check)

    def log(self, name: str) -> str:
        """Return what `kubectl logs` would show."""
        done = self._engine.docker("logs", self._name_of(name))
        return done.stdout + done.stderr

    def end(self, name: str) -> int:
        """Send SIGTERM to a container, and return its exit code."""
        self._engine.docker("stop", "--time=60", self._name_of(name))
        return int(self._engine.inspect("inspect", self._name_of(name))["State"]["ExitCode"])

    def wait(self, name: str) -> int:
        """Wait for the end of a container, and return its exit code."""
        return int(self._engine.docker("wait", self._name_of(name)).stdout)

    def remove(self) -> None:
        """Remove its containers and volumes."""
        for name in reversed(self._started):
            self._engine.docker("rm", "--force", self._name_of(name))
        self._engine.host.run(["rm", "-rf", _VOLUMES / self.name])

    def _name_of(self, container: str) -> str:
        return f"{self.name}-{container}"

    def _restrictions(self, container: Mapping[str, Any]) -> Iterator[str]:
        context = container["securityContext"]
        yield f"--user={context['runAsUser']}"
        assert context["allowPrivilegeEscalation"] is False
        yield "--security-opt=no-new-privileges"
        if context.get("readOnlyRootFilesystem"):
            yield "--read-only"
        yield from (f"--cap-drop={name}" for name in context["capabilities"]["drop"])
        yield from (f"--cap-add={name}" for name in context["capabilities"].get("add", ()))
        own = {entry["name"]: entry["value"] for entry in container["env"]}
        yield from (f"--env={name}={value}" for name, value in {**self._environment, **own}.items())

    def _mounts(self, container: Mapping[str, Any]) -> Iterator[str]:
        for mount in container["volumeMounts"]:
            volume, place = self._volumes[mount["name"]], mount["mountPath"]
            ending = ":ro" if mount.get("readOnly") else ""
            if "hostPath" in volume:
                yield f"--device={volume['hostPath']['path']}"
            elif place == "/dev/shm":
                yield f"--shm-size={volume['emptyDir']['sizeLimit']}"
            elif "emptyDir" in volume:
                folder = _VOLUMES / self.name / volume["name"]
                # Any user may write into an emptyDir.
                self._engine.host.run(["sh", "-c", f"mkdir -p {folder} && chmod 777 {folder}"])
                yield f"--volume={folder}:{place}{ending}"
            elif volume["name"] in self._secrets:
                yield f"--volume={self._secrets[volume['name']]}:{place}{ending}"
            else:
                assert volume["secret"]["optional"] is True
