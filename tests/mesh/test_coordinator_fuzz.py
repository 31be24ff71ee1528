"""The coordinator against everything that its own description allows, and much that it does not.

A real process, real TLS, every operation: without a credential, as a worker and as the node that runs the coordinator.
schemathesis generates the cases from the description that the coordinator serves; they are the same in every run.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from requests.adapters import HTTPAdapter
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from meshray.coordinator.api_routes import ROUTES, Caller, Route
from meshray.coordinator.sqlite_store import SqliteStore
from meshray.model.attestation import Attestation
from meshray.model.keys import PublicKey
from meshray.model.token import Token

from .coordinator_harness import HEAD_IDENTITY, PATIENCE_S, enrol_request, make_mesh, new_key, with_proof
from .process_harness import coordinator_process

#: Cases of each operation, caller and mode.
EXAMPLES = 7
#: Slow machines take a while; a call that hangs takes longer than this.
ONE_CALL_S = 5.0
MAX_GROWTH_MIB = 40
#: A documentation address: the coordinator's packets go nowhere.
ENDPOINT = "192.0.2.9:9"
#: The credential of an unauthenticated client.
WRONG = ("", "Bearer", "Bearer ", "Bearer x", "bearer " + "y" * 4000, "Basic eDp5", "\u00ff", "Bearer \u00e9 \u00ff")
SAME_EVERY_TIME = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
load_all_checks()
AS_DESCRIBED = [
    CHECKS.get_one(name)
    for name in (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
    )
]
REFUSED = CHECKS.get_one("negative_data_rejection")


class Pinned(HTTPAdapter):  # type: ignore[misc]  # its types are not installed
    """A client that trusts one certificate, as nodes do."""

    def __init__(self, fingerprint: bytes) -> None:
        self._fingerprint = fingerprint.hex()
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **more: Any) -> None:
        super().init_poolmanager(
            *arguments, **more, assert_fingerprint=self._fingerprint, assert_hostname=False, cert_reqs="CERT_NONE"
        )

    def cert_verify(self, *_: Any) -> None:
        """Accept the fingerprint alone."""


@dataclass
class Target:
    """The coordinator under test, from the point of view of three callers."""

    url: str
    session: requests.Session
    token: Token
    admin: str
    worker: str = ""
    worker_key: str = ""
    statuses: dict[str, set[int]] = field(default_factory=dict)

    def ask(self, method: str, path: str, credential: str = "", body: object = None) -> requests.Response:
        headers = {"Authorization": f"Bearer {credential}"} if credential else {}
        return self.session.request(
            method, self.url + path, headers=headers, json=body, timeout=PATIENCE_S, verify=False
        )

    def enrolled(self) -> str:
        """Return the credential of an existing worker."""
        if not self.worker:
            body = enrol_request(self.token, "victim", endpoints=[ENDPOINT])
            self.worker = self.ask("POST", "/v1/enroll", body=self.proven("/v1/enroll", body)).json()["credential"]
            self.worker_key = str(body["public_key"])
        return self.worker

    def proven(self, path: str, body: Mapping[str, object]) -> Mapping[str, object]:
        """Return the request with the proof of its key, if the test has the private half."""
        return with_proof(self.ask("GET", "/v1/hello").json(), path, body)

    def credential(self, caller: Caller) -> str:
        return self.admin if caller is Caller.ADMIN else self.enrolled()

    def nodes(self) -> list[dict[str, Any]]:
        nodes = self.ask("GET", "/v1/nodes", self.admin).json()["nodes"]
        assert isinstance(nodes, list)
        return nodes


def allowed(route: Route, caller: Caller, status: int) -> bool:
    """Return whether the caller gets the refusals that the description promises."""
    if route.is_socket:
        # None of these asks for a WebSocket, which is checked before the credential.
        return status in (400, 401)
    if route.caller in (Caller.NODE, Caller.ADMIN) and caller is Caller.ANYONE:
        return status == 401
    if route.caller is Caller.ADMIN and caller is Caller.NODE:
        return status == 403
    # A malformed credential is refused even where none is needed.
    return status != 401 or (route.name == "hello" and caller is Caller.ANYONE)


def make_real(target: Target, route: Route, case: Any, number: int) -> None:
    """Replace invented values by existing ones: this also tests what comes after the first refusal."""
    nodes = target.nodes()
    make_path_real(target, case, nodes, number)
    if not isinstance(case.body, dict):
        return
    if route.caller is Caller.TOKEN:
        shown = {"mesh_id": target.token.mesh_id, "token_id": target.token.token_id, "secret": target.token.secret}
        case.body |= shown
    if number % 3 or (route.name == "rotate" and number % 4):
        case.body.pop("attestation", None)
    if route.name == "enrol":
        case.body |= {
            "public_key": [new_key(), nodes[-1]["public_key"]][number % 4 == 0],
            "name": [f"fuzzed-{number}", nodes[-1]["name"]][number % 2],
            "endpoints": [ENDPOINT],
            "roles": [],
            # One that does not follow would prevent rotations of the secrets.
            "follows_epochs": True,
        }
        if number % 5:
            case.body = dict(target.proven(route.path, case.body))
    if route.name in ("rotate", "withdraw"):
        # Its own key again, or another, which is refused here, because no hub's agent would learn it.
        case.body |= {"public_key": target.worker_key if number % 4 else new_key()}
        case.body = dict(target.proven(route.path, case.body))
    if route.name == "reach":
        case.body |= {"endpoint": ENDPOINT}
    if route.name == "change_node":
        # Invented bodies rarely hold exactly one of the two changes.
        case.body = {"name": f"renamed-{number}"}
    make_signed(target, route, case, nodes, number)


def make_path_real(target: Target, case: Any, nodes: list[dict[str, Any]], number: int) -> None:
    """Replace the invented names and ids in the path."""
    if "name" in case.path_parameters:
        # The head as well: it must refuse to be removed.
        case.path_parameters["name"] = nodes[number % len(nodes)]["name"]
    if "id" in case.path_parameters:
        tokens = target.ask("GET", "/v1/tokens", target.admin).json()["tokens"]
        spare = [token["id"] for token in tokens if token["id"] != target.token.token_id]
        case.path_parameters["id"] = (spare or ["none"])[number % max(1, len(spare))]
    if "pass" in case.path_parameters:
        passes = target.ask("GET", "/v1/web/passes", target.admin).json()["passes"]
        case.path_parameters["pass"] = passes[number % len(passes)]["name" if number % 2 else "id"]


def make_signed(target: Target, route: Route, case: Any, nodes: list[dict[str, Any]], number: int) -> None:
    """Make signatures real: invented ones are refused."""
    if route.name == "remove_node" and number % 2:
        case.body.pop("removal", None)
    static = [node for node in nodes if "static" in node["roles"]]
    if route.name == "sign_peer" and static:
        key, ip = PublicKey.parse(static[0]["public_key"]), IPv4Address(static[0]["ip"])
        signed = Attestation.sign(HEAD_IDENTITY, target.token.mesh_id, key, counter=0, ip=ip, static=True)
        case.path_parameters["name"] = static[0]["name"]
        case.body = {"attestation": signed.to_json()}


def try_operation(target: Target, schema: Any, route: Route, caller: Caller, mode: GenerationMode) -> None:
    operation = schema[route.path][route.method]
    turns = itertools.count()

    @SAME_EVERY_TIME
    @given(case=operation.as_strategy(generation_mode=mode), number=st.integers(0, 9))
    def try_one(case: Any, number: int) -> None:
        # By turns and not at random: a choice that is the same in every run could be invented in every run.
        real = next(turns) % 2 == 0
        if real and mode is GenerationMode.POSITIVE:
            make_real(target, route, case, number)
        says = f"Bearer {target.credential(caller)}" if caller is not Caller.ANYONE else WRONG[number % len(WRONG)]
        headers = {"Authorization": says} if says else {}
        answer = case.call(
            base_url=target.url, session=target.session, headers=headers, timeout=PATIENCE_S, verify=False
        )
        if answer.status_code == 200 and route.name in ("enrol", "withdraw", "leave", "remove_node"):
            target.worker = ""  # It may be removed, or another node may have its key.
        target.statuses.setdefault(route.name, set()).add(answer.status_code)
        assert answer.elapsed < ONE_CALL_S
        assert "Traceback" not in answer.text
        # Too large a body is also refused, which that check does not know.
        case.validate_response(answer, checks=AS_DESCRIBED if answer.status_code == 413 else [*AS_DESCRIBED, REFUSED])
        assert allowed(route, caller, answer.status_code), (route.name, caller, answer.status_code, answer.text)

    try_one()


def modes(operation: Any) -> Iterable[GenerationMode]:
    """Return the modes: an operation without input cannot get a wrong one."""
    yield GenerationMode.POSITIVE
    if operation.body:
        yield GenerationMode.NEGATIVE


def without_security(description: dict[str, Any]) -> dict[str, Any]:
    """Return the description without credentials: this test uses those of its callers."""
    for operations in description["paths"].values():
        for operation in operations.values():
            operation["security"] = []
    return description


def try_everything(target: Target) -> None:
    schema = schemathesis.openapi.from_dict(without_security(target.ask("GET", "/v1/openapi.json").json()))
    for route in ROUTES:
        for caller in (Caller.ANYONE, Caller.NODE, Caller.ADMIN):
            for mode in modes(schema[route.path][route.method]):
                try_operation(target, schema, route, caller, mode)
        assert_consistent(target.nodes())


def assert_consistent(nodes: list[dict[str, Any]]) -> None:
    for unique in ("id", "name", "ip", "public_key"):
        values = [node[unique] for node in nodes]
        assert len(set(values)) == len(values), (unique, values)
    assert [node["name"] for node in nodes if "coordinator" in node["roles"]] != []
    assert len([node for node in nodes if "head" in node["roles"]]) == 1


def unlimited(target: Target) -> None:
    """Return a token that enrols any number of nodes, and that the fuzzing does not revoke."""
    made = target.ask("POST", "/v1/tokens", target.admin, {"uses": 0, "ttl_s": 0})
    target.token = Token.parse(made.json()["token"])


# Half a minute alone; the others of three that run at a time share two cores.
@pytest.mark.timeout(240)
async def test_every_request_is_answered_as_described(tmp_path: Path) -> None:
    home, head, token = make_mesh(tmp_path)
    log = tmp_path / "log"
    async with coordinator_process(home, log) as coordinator:
        process = coordinator.process
        with requests.Session() as session:
            session.mount("https://", Pinned(token.fingerprint))
            target = Target(f"https://127.0.0.1:{coordinator.port}", session, token, head.credential)
            await asyncio.to_thread(unlimited, target)
            before = coordinator.resident_bytes()
            await asyncio.to_thread(try_everything, target)
            nodes = await asyncio.to_thread(target.nodes)
            assert coordinator.resident_bytes() - before < MAX_GROWTH_MIB * 1024 * 1024
        process.terminate()
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0
    written = log.read_text()
    assert "Traceback" not in written
    assert not [secret for secret in (token.secret, target.token.secret, head.credential) if secret in written]
    # Every operation succeeded at least once, except the WebSockets, which were requested without an upgrade.
    succeeded = {name for name, statuses in target.statuses.items() if 200 in statuses}
    assert succeeded == {route.name for route in ROUTES if not route.is_socket}
    # The answer matches what was stored.
    store = SqliteStore.open(home.database)
    stored = store.load().members
    store.close()
    assert {key: str(member.node.ip) for key, member in stored.items()} == {node["id"]: node["ip"] for node in nodes}
