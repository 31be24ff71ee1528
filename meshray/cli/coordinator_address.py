"""`meshray up --coordinator HOST:PORT`: the coordinator of this node's mesh has another address.

HOST:PORT ──► the pinned certificate answers there? ──► stored in node.json; a running agent moves there at once

Nothing changes if another certificate answers, or no server.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from meshray.cli.app import App
from meshray.errors import MeshrayError, RefusedError, UnreachableError, UsageError
from meshray.home import Home

if TYPE_CHECKING:
    from meshray.model.address import Endpoint
    from meshray.node.enrolment import Enrolment

#: A running agent connects within this, seconds: its own pause between attempts is shortened.
_CONNECTED_S, _POLL_S = 15.0, 0.2


def use_coordinator(app: App, home: Home, enrolment: Enrolment, text: str) -> None:
    """Make this node try this address of its coordinator first.

    Raises:
        UsageError: this is not an address, or this machine itself runs the coordinator.
        RefusedError: another mesh's coordinator answers there.
        UnreachableError: no server answers there.
    """
    from meshray.client.agent import ControlClient
    from meshray.model.address import Endpoint
    from meshray.protocol.control import UseCoordinator
    from meshray.runtime import agent_service

    endpoint = Endpoint.parse(text, enrolment.mesh_port)
    if enrolment.hosts_coordinator:
        raise UsageError(
            "hosts_coordinator",
            "this machine runs the coordinator itself",
            hint=f"to give the other nodes another address: meshray init --advertise {endpoint.host}",
        )
    with app.progress() as progress:
        progress.stage("coordinator", "run", str(endpoint))
        _require_own(enrolment, endpoint)
        progress.stage("coordinator", "ok", f"{endpoint} is this mesh's")
    if agent_service.answers(home.control_socket):
        ControlClient(home.control_socket).request(UseCoordinator(str(endpoint)))
    else:
        enrolment.with_preferred_coordinator(endpoint).save(home)


def wait_until_connected(app: App) -> None:
    """Wait until the agent is connected to its coordinator. Raises UnreachableError if that takes too long."""
    from meshray.protocol.control import GetStatus

    deadline = time.monotonic() + _CONNECTED_S
    while not app.control().request(GetStatus()).coordinator.reachable:
        if time.monotonic() > deadline:
            raise UnreachableError(
                "coordinator_unreachable",
                f"the coordinator answered, but the agent did not connect to it within {_CONNECTED_S:.0f} s",
                hint="meshray doctor",
            )
        time.sleep(_POLL_S)


def _require_own(enrolment: Enrolment, endpoint: Endpoint) -> None:
    from meshray.client.coordinator import Coordinator

    coordinator = Coordinator((endpoint,), bytes.fromhex(enrolment.fingerprint), enrolment.credential)
    try:
        asyncio.run(coordinator.call("GET", "/v1/hello"))
    except UnreachableError as error:
        raise UnreachableError(
            error.code,
            f"{error.message}; nothing was changed",
            hint="on the head: meshray status. Is this its address now, and does its firewall allow TCP port "
            f"{endpoint.port}?",
        ) from None
    except RefusedError as error:
        if error.code != "token_other_mesh":
            raise
        raise RefusedError(
            "other_coordinator",
            f"what answers at {endpoint} is not this mesh's coordinator: it shows another certificate; nothing was "
            "changed",
            hint="on the head, its addresses: meshray token create --json",
        ) from None
    except MeshrayError as error:
        raise MeshrayError(error.code, f"{endpoint}: {error.message}; nothing was changed", hint=error.hint) from None
