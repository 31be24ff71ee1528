"""Each kind of change of a mesh is in the audit log: what, by whom, from where, and nothing secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshray.client.coordinator import Coordinator
from meshray.client.order import give_order
from meshray.coordinator.audit_log import read_log
from meshray.errors import MeshrayError
from meshray.model.address import Endpoint
from meshray.model.token import Token
from meshray.protocol.orders import OrderForm

from .coordinator_harness import Running, running_mesh
from .page_client import browser_of

ROOT, HERE = "root on head", "127.0.0.1"


async def admin(mesh: Running, method: str, path: str, body: object = None) -> dict[str, object]:
    reply = await mesh.admin(method, path, body)
    assert reply.status == 200, reply.body
    return dict(reply.body)


async def order_by(mesh: Running, credential: str, node: str) -> None:
    endpoint = Endpoint("127.0.0.1", mesh.client.port)
    giver = Coordinator((endpoint,), mesh.client.fingerprint, credential)
    with pytest.raises(MeshrayError):
        async for _ in give_order(giver, OrderForm(node, "logs")):
            pass


async def test_every_kind_of_change_is_recorded_with_its_cause_and_source(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        made = await admin(mesh, "POST", "/v1/tokens", {"uses": 3, "ttl_s": 600, "roles": ["hub"]})
        token = Token.parse(str(made["token"]))
        hub = await mesh.client.enrol(token, "hub-1", roles=["hub"], endpoints=["192.0.2.8:51888"])
        worker = await mesh.client.enrol(mesh.token, "gpu-1", with_ray=True)
        await admin(mesh, "DELETE", f"/v1/tokens/{token.token_id}")
        await admin(mesh, "PATCH", "/v1/nodes/gpu-1", {"name": "gpu-7"})
        await admin(mesh, "PATCH", "/v1/nodes/gpu-7", {"drained": True})
        await admin(mesh, "PATCH", "/v1/nodes/gpu-7", {"drained": False})
        await order_by(mesh, mesh.head.credential, "gpu-7")
        await order_by(mesh, worker.credential, "hub-1")
        browser = await browser_of(mesh, "ana", "admin")
        assert (await mesh.client.call("POST", "/v1/web/session", credential=worker.credential)).status == 200
        confirmed = {"confirm": "gpu-7", "csrf": await browser.csrf("/nodes/gpu-7/remove")}
        assert (await browser.call("POST", "/nodes/gpu-7/remove", confirmed)).status == 200
        await admin(mesh, "DELETE", "/v1/web/passes/ana")
        assert (await mesh.client.call("POST", "/v1/leave", credential=hub.credential)).status == 200
        gone = await mesh.client.enrol(mesh.token, "gone")
        await admin(mesh, "DELETE", "/v1/nodes/gone")
        await admin(mesh, "POST", "/v1/advertise", {"endpoints": ["192.0.2.9:51888"]})
        await admin(mesh, "PUT", "/v1/environment", {"requirements": "numpy==2.1.0"})
        await admin(mesh, "POST", "/v1/peers", {"name": "phone"})
        await admin(mesh, "POST", "/v1/backup")
        whole = mesh.home.audit_log.read_text()
        log = read_log(mesh.home.audit_log)
    assert log.broken == ""
    passed = next(record.by for record in log.records if record.event == "pass_used")
    assert passed.startswith("pass ") and passed.endswith(" of ana")
    first, second = f"token {token.token_id}", f"token {mesh.token.token_id}"
    assert [(record.event, record.node, record.by) for record in log.records] == [
        ("token_created", "", ROOT),
        ("node_enrolled", "hub-1", first),
        ("node_enrolled", "gpu-1", second),
        ("token_revoked", "", ROOT),
        ("node_renamed", "gpu-1", ROOT),
        ("node_drained", "gpu-7", ROOT),
        ("node_undrained", "gpu-7", ROOT),
        ("order", "gpu-7", ROOT),
        ("order_ended", "gpu-7", ROOT),
        ("order_refused", "hub-1", "root on gpu-7"),
        ("pass_created", "", ROOT),
        ("pass_used", "", passed),
        ("link_created", "", "root on gpu-7"),
        ("node_removed", "gpu-7", passed),
        ("pass_revoked", "", ROOT),
        ("node_left", "hub-1", "root on hub-1"),
        ("node_enrolled", "gone", second),
        ("node_removed", "gone", ROOT),
        ("address_advertised", "head", ROOT),
        ("environment_locked", "", ROOT),
        ("peer_added", "phone", ROOT),
        ("backup_created", "", ROOT),
    ]
    assert {record.source for record in log.records} == {HERE}
    enrolled = log.records[1].details
    assert (enrolled["token"], enrolled["roles"], enrolled["ip"]) == (
        token.token_id,
        "hub",
        str(hub.map.nodes[hub.node_id].ip),
    )
    # Who may do what changes with these: the roles of a token, the level of a pass.
    assert (log.records[0].details["roles"], log.records[10].details["level"]) == ("hub", "admin")
    for secret in (token.secret, mesh.token.secret, hub.credential, worker.credential, gone.credential, browser.cookie):
        assert secret not in whole
