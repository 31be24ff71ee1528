"""What drivers get on a node that runs no Ray itself, such as the coordinator of `init --hub-only`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from meshray.agent.main import _driver_environment
from meshray.agent.state import NodeState
from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.model.node import COORDINATOR, HEAD, HUB, Node, Versions
from meshray.raynode.tokens import new_instance
from tests.unit.agent.sample import HEAD_NODE, MAP, WORKER_A, WORKER_B, enrolment

HUB_NODE = replace(HEAD_NODE, roles=frozenset({HUB, COORDINATOR}), versions=Versions("0.1.0"))
#: The head in a pod, whose Ray another program starts.
POD = replace(WORKER_A, roles=frozenset({HEAD}), versions=Versions("0.1.0", "2.60.0", "3.12.1"))
REASON = "not asked for (--no-ray)"


def hub(folder: Path, *others: Node) -> NodeState:
    mine = replace(enrolment(HUB_NODE), with_ray=False, user_uid=os.getuid())
    nodes = {node.id: node for node in (HUB_NODE, *others)}
    return NodeState(Home(folder / "state", folder / "run"), mine, replace(MAP, nodes=nodes))


def test_a_hub_without_ray_has_the_token_of_the_heads_ray(tmp_path: Path) -> None:
    state = hub(tmp_path, replace(POD, ray_instance=new_instance(1)))
    environment = _driver_environment(state, REASON)
    assert Path(environment["RAY_AUTH_TOKEN_PATH"]).read_text() == state.enrolment.ray_token
    assert environment["RAY_API_SERVER_ADDRESS"] == f"http://{POD.ip}:8265"


@pytest.mark.parametrize(
    ("others", "cause"),
    [
        ((WORKER_B,), "this mesh has no Ray head yet"),
        ((replace(POD, versions=Versions("0.1.0")),), f"Ray does not run on the head {POD.name} (yet)"),
    ],
)
def test_without_a_heads_ray_the_head_is_the_cause(tmp_path: Path, others: tuple[Node, ...], cause: str) -> None:
    with pytest.raises(MeshrayError) as caught:
        _driver_environment(hub(tmp_path, *others), REASON)
    assert (caught.value.code, str(caught.value), caught.value.hint) == ("no_ray", cause, "meshray status")
