"""The folders and files of one node's state.

MESHRAY_HOME    state: keys, enrolment, cached map, the coordinator's store, logs. 0700.
MESHRAY_RUN     sockets, pid files, Ray's token. Does not survive a reboot. 0711.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Home:
    """The folders and files of one node's state.

    Attributes:
        state: survives a reboot. A machine without it is not in a mesh.
        run: does not survive a reboot.
    """

    state: Path
    run: Path

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Home:
        """Return MESHRAY_HOME and MESHRAY_RUN, or the defaults of root or of this user."""
        is_root = os.geteuid() == 0
        user_state = Path(environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "meshray"
        state = Path(environ.get("MESHRAY_HOME") or ("/var/lib/meshray" if is_root else user_state)).absolute()
        if environ.get("MESHRAY_RUN"):
            return cls(state, Path(environ["MESHRAY_RUN"]).absolute())
        return cls(state, _system_run(environ) if is_root else state / "run")

    @property
    def private_key(self) -> Path:
        """The node's WireGuard key, base64."""
        return self.state / "private.key"

    @property
    def pending_key(self) -> Path:
        """The next WireGuard key, until the coordinator has confirmed it."""
        return self.state / "private.key.next"

    @property
    def identity_key(self) -> Path:
        """The node's Ed25519 identity, base64: see `meshray.node.identity`."""
        return self.state / "identity.key"

    @property
    def identity(self) -> Path:
        """The counter of the identity's signatures, and the chain that admitted it."""
        return self.state / "identity.json"

    @property
    def pins(self) -> Path:
        """The identities of the other nodes, as they were first seen: see `meshray.node.pins`."""
        return self.state / "pins.json"

    @property
    def enrolment(self) -> Path:
        """The enrolment of this node: see `meshray.node.enrolment`."""
        return self.state / "node.json"

    @property
    def container(self) -> Path:
        """The container in which this node runs, if it does: see `meshray.runtime.docker.record`."""
        return self.state / "container.json"

    @property
    def map_cache(self) -> Path:
        """The last map, for times when the coordinator is unreachable."""
        return self.state / "map.json"

    @property
    def database(self) -> Path:
        """The coordinator's database."""
        return self.state / "coordinator.db"

    @property
    def audit_log(self) -> Path:
        """What was done in the mesh, by whom: see `meshray.coordinator.audit_log`."""
        return self.state / "audit.log"

    @property
    def older_audit_log(self) -> Path:
        """The file that the audit log continues, once it was full."""
        return self.state / "audit.log.1"

    @property
    def restoring(self) -> Path:
        """The folder in which `meshray restore` prepares the state; it exists until all files are in their places."""
        return self.state / ".restore"

    @property
    def version_pointer(self) -> Path:
        """The version of meshray that runs, after a remote upgrade: see `meshray.runtime.upgrade.pointer`."""
        return self.state / "version.json"

    @property
    def versions(self) -> Path:
        """The versions of meshray of a node without root, after a remote upgrade."""
        return self.state / "versions"

    @property
    def wheels(self) -> Path:
        """The wheels of remote upgrades: those that the head offers, and the one that a node receives."""
        return self.state / "wheels"

    @property
    def certificate(self) -> Path:
        """The coordinator's self-signed certificate, PEM."""
        return self.state / "coordinator.crt"

    @property
    def certificate_key(self) -> Path:
        """The private key of the certificate, PEM."""
        return self.state / "coordinator.key"

    @property
    def logs(self) -> Path:
        """The folder of agent.log, coordinator.log, engine.log and ray.log."""
        return self.state / "log"

    @property
    def control_socket(self) -> Path:
        """The socket between command line and agent."""
        return self.run / "agent.sock"

    @property
    def overlay_socket(self) -> Path:
        """Where the agent passes sockets of the overlay, if that is in its own network namespace."""
        return self.run / "overlay.sock"

    @property
    def ray_token(self) -> Path:
        """Ray's token, readable by the user who runs Ray."""
        return self.run / "ray_token"

    @property
    def ray_environment(self) -> Path:
        """What another program needs to start Ray here (``--ray external``): see `meshray.raynode.environment_file`."""
        return self.run / "env"

    @property
    def offered_token(self) -> Path:
        """The digest of the token that was written to Ray's default place: see `meshray.raynode.user_token`."""
        return self.state / "offered_token"

    def pid_file(self, name: str) -> Path:
        """Return the file that identifies a process of meshray: agent, coordinator, engine or ray."""
        return self.run / f"{name}.pid"


def _system_run(environ: Mapping[str, str]) -> Path:
    """Return root's run folder. It is outside the state folder, which only root may enter, because Ray's user reads the
    token here."""
    chosen = environ.get("MESHRAY_HOME", "")
    return Path(f"/run/meshray-{hashlib.sha256(chosen.encode()).hexdigest()[:8]}" if chosen else "/run/meshray")
