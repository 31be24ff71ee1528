"""The requests of join and init to the coordinator: heads, hubs, endpoints, and the route of the enrolment."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable

import pytest

from meshray.cli.app import App
from meshray.cli.commands import join as join_module
from meshray.cli.enrolment_route import EnrolmentRoute, ForwardRoute, SshRoute, parse_via
from meshray.coordinator.sqlite_store import SqliteStore
from meshray.errors import MeshrayError, UnreachableError, UsageError
from meshray.linux import ports
from meshray.model.address import Endpoint
from meshray.model.enrol import EnrolAnswer, EnrolRequest
from meshray.model.keys import PrivateKey
from meshray.model.token import Token
from meshray.node.enrolment import Enrolment
from meshray.node.map_cache import load_map
from meshray.runtime import own_endpoints
from meshray.runtime.ssh import SshTarget
from tests.unit.cli.test_bring_up import TOKEN, Machine, init, join, machine

__all__ = ["machine"]


class Way:
    """A fake of ssh: enrolments through it reach the machine's fake coordinator."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.asked: list[tuple[str, EnrolRequest]] = []
        self.withdrawn: list[str] = []

    def enrol(
        self,
        app: App,
        via: EnrolmentRoute,
        token: Token,
        request: EnrolRequest,
        key: PrivateKey,
        *,
        on_sent: Callable[[], None] = lambda: None,
    ) -> EnrolAnswer:
        self.asked.append((str(via), request))
        return asyncio.run(self.machine.enrol(token, request, key, on_sent=on_sent))[0]

    def unenrol(self, app: App, via: EnrolmentRoute, enrolment: Enrolment) -> None:
        self.withdrawn.append(str(via))


@pytest.fixture
def way(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Way:
    async def found(port: int) -> tuple[Endpoint, ...]:
        return (Endpoint("10.0.0.5", port),)

    way = Way(machine)
    monkeypatch.setattr(join_module, "enrol_via", way.enrol)
    monkeypatch.setattr(join_module, "unenrol_via", way.unenrol)
    monkeypatch.setattr(own_endpoints, "find_endpoints", found)
    monkeypatch.setattr(ports, "free_udp_port", lambda preferred: preferred)
    return way


def test_a_hub_only_node_has_no_ray_and_prints_the_command_for_the_head(machine: Machine) -> None:
    outcome = machine.type_in("init", "--hub-only", "--name", "lab", "--advertise", "192.0.2.1")
    assert outcome.code == 0
    assert "sudo meshray join --head meshray1_" in outcome.out
    assert Enrolment.load(machine.home).with_ray is False
    assert load_map(machine.home).head is None
    assert [hub.name for hub in load_map(machine.home).hubs] == ["lab"]
    assert first_token_roles(machine) == {"head"}


def test_the_first_token_of_a_mesh_with_a_head_grants_no_role(machine: Machine) -> None:
    assert machine.type_in("init", "--name", "lab", "--advertise", "192.0.2.1", "--no-ray").code == 0
    assert first_token_roles(machine) == set()


def first_token_roles(machine: Machine) -> frozenset[str]:
    with contextlib.closing(SqliteStore.open(machine.home.database)) as store:
        (token,) = store.load().tokens.values()
    return token.roles


def test_contradictory_options_change_nothing(machine: Machine) -> None:
    for arguments, code in (
        (("init", "--hub-only", "--", "--num-cpus=1"), "hub_only_without_ray"),
        (("join", TOKEN.encode(), "--head", "--no-ray"), "head_without_ray"),
        (("join", TOKEN.encode(), "--hub"), "hub_needs_endpoint"),
        (("join", TOKEN.encode(), "--endpoint", "nowhere"), "bad_endpoint"),
        (("join", TOKEN.encode(), "--endpoint", "10.0.0.300:7000"), "bad_endpoint"),
        (("join", TOKEN.encode(), "--via", "head"), "bad_via"),
        (("join", TOKEN.encode(), "--via", "ssh://-oProxyCommand=x"), "bad_ssh_target"),
    ):
        outcome = machine.type_in(arguments[0], "--json", *arguments[1:])
        assert (outcome.code, json.loads(outcome.out)["error"]["code"]) == (2, code), arguments
    assert machine.done == []
    assert not machine.home.state.exists()


def test_an_endpoint_is_reported_and_its_port_is_open(machine: Machine) -> None:
    requests: list[EnrolRequest] = []
    original = machine.enrol

    async def enrol(
        token: Token,
        request: EnrolRequest,
        key: PrivateKey,
        *,
        on_sent: Callable[[], None],
        on_wait: Callable[[str], None],
    ) -> tuple[EnrolAnswer, Endpoint]:
        requests.append(request)
        return await original(token, request, key, on_sent=on_sent)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("meshray.client.coordinator.enrol", enrol)
        tried: list[object] = []
        patch.setattr("meshray.cli.hub_check.require_reachable", lambda *arguments: tried.append(arguments[1:3]))
        assert join(machine, "--hub", "--endpoint", "gpu.example.org:7000").code == 0
    assert tried == [((Endpoint("gpu.example.org", 7000),), 7000)]
    (request,) = requests
    assert request.endpoints == (Endpoint("gpu.example.org", 7000),)
    assert request.roles == {"hub"}
    assert Enrolment.load(machine.home).listen_port == 7000


def test_an_unreachable_hub_is_not_a_hub(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> None:
        raise MeshrayError("hub_unreachable", "nobody gets through", hint="ufw allow 7000/udp")

    monkeypatch.setattr("meshray.cli.hub_check.require_reachable", unreachable)
    outcome = join(machine, "--hub", "--endpoint", "gpu.example.org:7000")
    assert outcome.code == 1
    assert machine.done == ["enrol", "take back"]
    assert not machine.home.state.exists()


def test_behind_a_port_forward_both_ports_are_reported(machine: Machine) -> None:
    assert join(machine, "--endpoint", "gpu.example.org:7000", "--port", "51888").code == 0
    assert Enrolment.load(machine.home).listen_port == 51888


def test_only_the_enrolment_goes_through_ssh(machine: Machine, way: Way) -> None:
    assert join(machine, "--via", "ssh://ana@head:2222").code == 0
    ((via, request),) = way.asked
    assert via == "ssh://ana@head:2222"
    assert request.endpoints == (Endpoint("10.0.0.5", 51888),)
    enrolment = Enrolment.load(machine.home)
    assert enrolment.coordinators == TOKEN.coordinators
    assert (enrolment.listen_port, enrolment.mesh_port) == (51888, 51888)


def test_a_late_failure_withdraws_the_enrolment_over_the_same_route(machine: Machine, way: Way) -> None:
    machine.failure = UnreachableError("no_handshake", "nobody answers")
    assert join(machine, "--via", "127.0.0.1:4000").code == 5
    assert way.withdrawn == ["127.0.0.1:4000"]
    assert "unenrol" not in machine.done


def test_via_is_ssh_or_a_forward() -> None:
    assert parse_via("ssh://head") == SshRoute(SshTarget("head"))
    assert parse_via("127.0.0.1:4000") == ForwardRoute(Endpoint("127.0.0.1", 4000))


def test_init_without_options_is_unchanged(machine: Machine) -> None:
    outcome = init(machine)
    assert "--head" not in outcome.out
    head = load_map(machine.home).head
    assert head is not None


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("ssh://ana@gpu-1:2222", SshTarget("gpu-1", "ana", 2222)),
        ("ssh://gpu_1.lab/", SshTarget("gpu_1.lab")),
        ("ssh://root@[2001:db8::7]:22", SshTarget("2001:db8::7", "root", 22)),
    ],
)
def test_ssh_targets(text: str, target: SshTarget) -> None:
    assert SshTarget.parse(text) == target
    assert SshTarget.parse(str(target)) == target
    assert target.argv("-T")[-2:] == ["--", target.host]


@pytest.mark.parametrize(
    "text",
    ["", "head", "ssh://", "ssh://a@", "ssh://-oX=y@h", "ssh://h:0", "ssh://h:65536", "ssh://a:geheim@h", "ssh://h/x",
     "ssh://a@h;id", "http://h"],
)  # fmt: skip
def test_invalid_ssh_targets_are_rejected(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        SshTarget.parse(text)
    assert "geheim" not in caught.value.message
