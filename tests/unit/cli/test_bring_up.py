"""init and join from end to end, with real state on disk and fakes for what acts on the machine."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import msgspec
import pytest

from meshray.cli import bring_up, membership_checks
from meshray.cli.app import App
from meshray.cli.rollback import Rollback
from meshray.client import coordinator
from meshray.errors import MeshrayError, RefusedError, UnreachableError
from meshray.home import Home
from meshray.linux import ports
from meshray.model.address import Endpoint, NodeName, OverlayNetwork
from meshray.model.enrol import EnrolAnswer, EnrolRequest
from meshray.model.keys import MeshSecret, PrivateKey
from meshray.model.meshmap import MeshInfo, MeshMap
from meshray.model.node import Node
from meshray.model.path import PathKind, Transport
from meshray.model.token import Token
from meshray.node import cleanup
from meshray.node.enrolment import Enrolment
from meshray.protocol.codec import WireError, to_json
from meshray.protocol.control import Summary, SummaryNode, SummaryPath, Up
from meshray.runtime import agent_service, own_endpoints, preflight
from meshray.runtime.preflight import Route
from meshray.wireguard import engines
from tests.unit.cli.fakes import FakeAgent, Outcome, type_in

TOKEN = Token("00112233aabbccdd", (Endpoint("192.0.2.1", 51888),), bytes(32), "1f2e3d4c", "a secret")
SUMMARY = Summary("lab", SummaryNode("lab", "10.99.0.1"), SummaryPath(PathKind.SELF))


class Machine:
    """The recorded actions of commands on this machine; each part can be made to fail."""

    def __init__(self, home: Path) -> None:
        self.home = Home(home, home.with_name("run"))
        self.done: list[str] = []
        self.agent = FakeAgent()
        self.failure: BaseException | None = None
        self.routes: list[Route] = []
        self.refusal: BaseException | None = None
        #: Whether the request for an enrolment leaves this machine.
        self.is_asked = True
        self.withdrawal_fails: MeshrayError | None = None
        self.keys: list[str] = []

    def start_and_follow(self, app: App, home: Home) -> Summary:
        self.done.append("start")
        assert Enrolment.load(home).name
        home.logs.mkdir(exist_ok=True)
        (home.logs / "agent.log").write_text("what happened\n")
        if self.failure is not None:
            raise self.failure
        return SUMMARY

    def stop(self, home: Home) -> bool:
        self.done.append("stop")
        return True

    async def find_endpoints(self, port: int) -> tuple[Endpoint, ...]:
        return (Endpoint("10.1.2.3", port),)

    def unenrol(self, enrolment: Enrolment, *, take_back: bool = False) -> None:
        self.done.append("take back" if take_back else "unenrol")
        if self.withdrawal_fails is not None:
            raise self.withdrawal_fails

    async def withdraw(self, token: Token, key: PrivateKey) -> None:
        self.done.append("withdraw")
        assert str(key.public()) == self.keys[-1]
        if self.withdrawal_fails is not None:
            raise self.withdrawal_fails

    async def enrol(
        self,
        token: Token,
        request: EnrolRequest,
        key: PrivateKey,
        *,
        on_sent: Callable[[], None] = lambda: None,
        on_wait: Callable[[str], None] = lambda words: None,
    ) -> tuple[EnrolAnswer, Endpoint]:
        self.done.append("enrol")
        self.keys.append(str(request.public_key))
        if self.is_asked:
            on_sent()
        if self.refusal is not None:
            raise self.refusal
        node = Node("n2", request.name, IPv4Address("10.99.0.2"), request.public_key, frozenset({"worker"}))
        mesh = MeshInfo(request.mesh_id, "lab", OverlayNetwork(IPv4Network("10.99.0.0/16")))
        answer = EnrolAnswer("n2", "credential", MeshSecret.generate(), "ray token", MeshMap(mesh, 2, {"n2": node}))
        return answer, token.coordinators[0]

    def type_in(self, *arguments: str, **variables: str) -> Outcome:
        environ = {"MESHRAY_HOME": str(self.home.state), "MESHRAY_RUN": str(self.home.run), **variables}
        return type_in(*arguments, agent=self.agent, environ=environ)

    def left(self) -> set[str]:
        return {path.name for path in self.home.state.iterdir()} if self.home.state.exists() else set()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path / "state")
    monkeypatch.setattr(bring_up, "start_and_follow", machine.start_and_follow)
    monkeypatch.setattr(agent_service, "stop", machine.stop)
    monkeypatch.setattr(agent_service, "uninstall", lambda home: None)
    monkeypatch.setattr(cleanup, "clear", lambda home: [])
    monkeypatch.setattr(membership_checks, "unenrol", machine.unenrol)
    monkeypatch.setattr(coordinator, "enrol", machine.enrol)
    monkeypatch.setattr(coordinator, "withdraw", machine.withdraw)
    monkeypatch.setattr(preflight, "check_wireguard", lambda environ: "kernel WireGuard")
    monkeypatch.setattr(preflight, "routes", lambda: machine.routes)
    monkeypatch.setattr(preflight, "require_free", lambda port: None)
    monkeypatch.setattr(ports, "require_free", lambda port, kinds=(): None)
    monkeypatch.setattr(own_endpoints, "find_endpoints", machine.find_endpoints)
    monkeypatch.setattr("meshray.firewall.open_port_commands", lambda port: ["ufw allow 51888/udp"])
    return machine


def init(machine: Machine, *more: str) -> Outcome:
    return machine.type_in("init", "--no-ray", "--name", "lab", "--advertise", "192.0.2.1", *more)


def join(machine: Machine, *more: str) -> Outcome:
    return machine.type_in("join", TOKEN.encode(), "--no-ray", "--name", "gpu-1", *more)


def test_init_prints_the_join_line_and_what_must_be_reachable(machine: Machine) -> None:
    outcome = init(machine)
    assert outcome.code == 0
    (line,) = [line for line in outcome.out.splitlines() if "sudo meshray join" in line]
    token = Token.parse(line.split()[-1])
    assert token.coordinators == (Endpoint("192.0.2.1", 51888), Endpoint("10.1.2.3", 51888))
    assert "UDP and TCP port 51888" in outcome.out
    assert "ufw allow 51888/udp" in outcome.out
    enrolment = Enrolment.load(machine.home)
    assert (enrolment.hosts_coordinator, enrolment.listen_port, enrolment.mesh_id) == (True, 51888, token.mesh_id)


def test_init_in_json(machine: Machine) -> None:
    answer = json.loads(init(machine, "--json").out)
    assert {"token", "mesh", "node", "ray_address", "dashboard"} <= answer.keys()
    assert answer["node"] == {"name": "lab", "ip": "10.99.0.1"}
    assert answer["ray_address"] is None


def test_join_with_nothing_but_variables(machine: Machine) -> None:
    outcome = machine.type_in(
        "join",
        MESHRAY_TOKEN=TOKEN.encode(),
        MESHRAY_JOIN_NAME="gpu-1",
        MESHRAY_JOIN_NO_RAY="1",
        MESHRAY_JOIN_LABEL="zone=lab disk=ssd",
        MESHRAY_JOIN_ENV="EPOCHS=3 'NOTE=two words'",
    )
    assert (outcome.code, outcome.err.count("secret")) == (0, 0)
    enrolment = Enrolment.load(machine.home)
    assert (enrolment.name, enrolment.with_ray) == ("gpu-1", False)
    assert enrolment.labels == {"zone": "lab", "disk": "ssd"}
    assert enrolment.environment.chosen == {"EPOCHS": "3", "NOTE": "two words"}


def test_a_variable_requests_another_mesh_as_an_option_does(machine: Machine) -> None:
    init(machine)
    assert machine.type_in("init", MESHRAY_INIT_PORT="51888", MESHRAY_INIT_NO_RAY="1").code == 0
    outcome = machine.type_in("init", MESHRAY_INIT_PORT="51999", MESHRAY_INIT_NO_RAY="1")
    assert outcome.code == 1
    assert "already" in outcome.err


def test_init_twice_changes_nothing(machine: Machine) -> None:
    init(machine)
    before = machine.home.enrolment.read_bytes(), machine.home.database.read_bytes()
    outcome = machine.type_in("init", "--no-ray", "--name", "lab", "--json")
    assert outcome.code == 0
    answer = json.loads(outcome.out)
    assert (answer["already"], answer["token"], answer["node"]["name"]) == (True, None, "lab")
    assert answer["endpoints"] == ["192.0.2.1:51888", "10.1.2.3:51888"]
    assert "meshray token create --line" in machine.type_in("init").out
    assert (machine.home.enrolment.read_bytes(), machine.home.database.read_bytes()) == before


@pytest.mark.parametrize(
    "more",
    [("--name", "other"), ("--port", "443"), ("--network", "10.77.0.0/16"), ("--lock", "/tmp/lock"), ("--hub-only",)],
)
def test_init_of_another_mesh_is_refused_and_changes_nothing(machine: Machine, more: tuple[str, ...]) -> None:
    machine.type_in("init", "--name", "lab", "--no-ray")
    enrolment = Enrolment.load(machine.home)
    outcome = machine.type_in("init", "--json", *more)
    assert (outcome.code, json.loads(outcome.out)["error"]["code"]) == (1, "already_enrolled")
    assert Enrolment.load(machine.home) == enrolment
    assert machine.done == ["start"]


FAILURES: list[tuple[BaseException, int]] = [
    (MeshrayError("ray_failed", "Ray did not start", hint="meshray logs ray"), 1),
    (KeyboardInterrupt(), 130),
    (RuntimeError("a bug"), 1),
]


@pytest.mark.parametrize(("failure", "code"), FAILURES)
@pytest.mark.parametrize(("command", "undone"), [(init, ["stop"]), (join, ["stop", "take back"])])
def test_a_late_failure_takes_everything_back_but_the_logs(
    machine: Machine, command: Callable[[Machine], Outcome], undone: list[str], failure: BaseException, code: int
) -> None:
    machine.failure = failure
    outcome = command(machine)
    assert outcome.code == code
    assert machine.done[machine.done.index("start") + 1 :] == undone
    assert machine.left() - {"log"} == {"log.failed"}
    assert machine.type_in("logs").out == "what happened\n"
    machine.failure = None
    assert command(machine).code == 0  # Nothing of it blocks another attempt.


@pytest.mark.parametrize("problem", ["network", "port", "wireguard"])
def test_init_on_a_machine_that_lacks_something_leaves_no_trace(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    def missing(*_: object) -> str:
        raise MeshrayError("missing", "something is missing", hint="get it")

    if problem == "network":
        machine.routes = [Route(IPv4Network("0.0.0.0/2"), "tun0", is_main=False)]
        machine.routes += [Route(IPv4Network(text), "tun0", is_main=False) for text in ("100.0.0.0/8", "128.0.0.0/2")]
        machine.routes += [Route(IPv4Network("192.0.0.0/8"), "tun0", is_main=False)]
    else:
        name = "require_free" if problem == "port" else "check_wireguard"
        monkeypatch.setattr(preflight, name, missing)
    outcome = init(machine)
    assert outcome.code == 1
    assert machine.done == []
    assert not machine.home.state.exists()


@pytest.mark.parametrize("command", ["init", "join"])
def test_a_node_with_root_warns_about_the_missing_engine(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(engines, "install_command", lambda: "make -C /m engine")
    run = init if command == "init" else join
    warned = "warning: meshray-engine, which has several times the throughput of wireguard-go, is not installed: "
    monkeypatch.setattr(preflight, "check_wireguard", lambda environ: "wireguard-go")
    assert f"{warned}make -C /m engine" in run(machine).err
    machine.type_in("leave", "--yes")
    monkeypatch.setattr(preflight, "check_wireguard", lambda environ: "kernel WireGuard")
    assert warned not in run(machine).err


def test_join_keeps_the_nodes_identity(machine: Machine) -> None:
    outcome = join(machine, "--label", "zone=a", "--ephemeral", "--transport", "wss")
    assert outcome.code == 0
    enrolment = Enrolment.load(machine.home)
    assert (enrolment.name, enrolment.labels, enrolment.hosts_coordinator) == ("gpu-1", {"zone": "a"}, False)
    assert (enrolment.credential, enrolment.transport) == ("credential", "wss")
    assert "a secret" not in machine.home.enrolment.read_text()


def test_a_join_without_udp_reports_the_cost(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    relayed = msgspec.structs.replace(SUMMARY, path=SummaryPath(PathKind.HUB, Transport.WSS))
    monkeypatch.setattr(bring_up, "start_and_follow", lambda app, home: relayed)
    assert "UDP port 51888 of the head does not answer" in join(machine).out
    machine.type_in("leave", "--yes")
    assert "UDP port" not in join(machine, "--transport", "wss").out


@pytest.mark.parametrize("error", [RefusedError("token_expired", "expired"), UnreachableError("gone", "no answer")])
def test_a_refused_join_leaves_no_trace(machine: Machine, error: MeshrayError) -> None:
    machine.refusal = error
    machine.is_asked = isinstance(error, RefusedError)
    assert join(machine).code == error.exit_code
    assert machine.done == ["enrol"]
    assert not machine.home.state.exists()


@pytest.mark.parametrize(
    ("lost", "code"),
    [
        (KeyboardInterrupt(), 130),
        (UnreachableError("coordinator_unreachable", "it stopped answering"), 5),
        (WireError("the answer has another form"), 1),
    ],
)
def test_an_enrolment_whose_answer_is_lost_is_withdrawn(machine: Machine, lost: BaseException, code: int) -> None:
    machine.refusal = lost
    outcome = join(machine)
    assert outcome.code == code
    assert machine.done == ["enrol", "withdraw"]
    assert "could not be undone" not in outcome.err
    assert not machine.home.state.exists()


def test_an_interrupt_right_after_the_answer_withdraws_it_as_well(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: object, **_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Enrolment, "__init__", interrupted)
    assert join(machine).code == 130
    assert machine.done == ["enrol", "withdraw"]


def test_an_interrupt_before_the_request_withdraws_nothing(machine: Machine) -> None:
    machine.refusal, machine.is_asked = KeyboardInterrupt(), False
    assert join(machine).code == 130
    assert machine.done == ["enrol"]


@pytest.mark.parametrize("has_answer", [False, True])
def test_after_a_failed_withdrawal_the_next_join_is_the_same_node(machine: Machine, has_answer: bool) -> None:
    machine.withdrawal_fails = UnreachableError("coordinator_unreachable", "no answer", hint="-")
    if has_answer:
        machine.failure = KeyboardInterrupt()
    else:
        machine.refusal = KeyboardInterrupt()
    outcome = join(machine)
    assert outcome.code == 130
    assert "the enrolment could not be undone: no answer; the next join of this machine becomes the same" in outcome.err
    assert {"private.key"} <= machine.left() <= {"private.key", "identity.key", "identity.json", "log.failed"}
    machine.refusal = machine.failure = machine.withdrawal_fails = None
    assert join(machine).code == 0
    assert machine.keys[0] == machine.keys[1]


def test_the_head_s_own_init_ends_when_others_can_join(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    from meshray.client import agent as control

    agent = FakeAgent({"progress": to_json(Up(summary=SUMMARY)), "status": {"coordinator": {"reachable": False}}})
    monkeypatch.setattr(control, "ControlClient", lambda _: agent)
    monkeypatch.setattr(bring_up, "_COORDINATOR_S", 0.0)
    init(machine)
    shown: list[tuple[str, str, str]] = []
    (machine.home.logs / "coordinator.log").write_text("listening\nmeshray coordinator: the disk is gone\n  a hint\n")
    with pytest.raises(MeshrayError, match="the disk is gone"):
        bring_up.follow(machine.home, lambda *stage: shown.append(stage))
    agent.answers["status"] = {"coordinator": {"reachable": True}}
    assert bring_up.follow(machine.home, lambda *stage: shown.append(stage)) == SUMMARY
    assert [state for _, state, _ in shown] == ["fail", "ok"]


def test_a_network_that_overlaps_here_unenrols_again(machine: Machine) -> None:
    machine.routes = [Route(IPv4Network("10.99.7.0/24"), "docker0")]
    outcome = join(machine)
    assert outcome.code == 1
    assert "10.99.7.0/24 on docker0" in outcome.err
    assert machine.done == ["enrol", "take back"]
    assert not machine.home.state.exists()


@pytest.mark.parametrize(
    "pasted",
    [
        ("'{token}'",),
        ("\ufeff{token}\u200b",),
        ("sudo meshray join {token}",),
        ("sudo", "~/ray/bin/meshray", "join", "{token}"),
        ("{head}", "{tail}"),
        ("\u201c{token}\u201d",),
    ],
)
def test_a_token_is_found_in_what_was_pasted(machine: Machine, pasted: tuple[str, ...]) -> None:
    token = TOKEN.encode()
    words = [word.format(token=token, head=token[:80], tail=token[80:]) for word in pasted]
    assert machine.type_in("join", *words, "--no-ray", "--name", "gpu-1").code == 0


def test_a_token_file_in_the_home_folder(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text(TOKEN.encode() + "\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert machine.type_in("join", "@~/token", "--no-ray").code == 0


def test_join_twice_brings_the_node_up(machine: Machine) -> None:
    join(machine)
    again = join(machine, "--json")
    assert (again.code, json.loads(again.out)["already"]) == (0, True)
    assert machine.done == ["enrol", "start", "start"]
    assert "already" in init(machine).err
    other = replace(TOKEN, mesh_id="0123456789abcdef")
    refused = machine.type_in("join", other.encode(), "--no-ray")
    assert (refused.code, "leave before it joins another one" in refused.err) == (1, True)
    assert machine.done == ["enrol", "start", "start"]


def test_a_killed_join_is_taken_up_with_the_same_key(machine: Machine) -> None:
    from meshray.model.keys import PrivateKey
    from meshray.node.enrolment import load_private_key, save_private_key

    key = PrivateKey.generate()
    save_private_key(machine.home, key)
    join(machine)
    assert load_private_key(machine.home) == key


def test_a_folder_with_other_content_is_not_touched(machine: Machine) -> None:
    machine.home.state.mkdir()
    (machine.home.state / "thesis.tex").write_text("years of work")
    outcome = init(machine)
    assert outcome.code == 1
    assert "thesis.tex" in outcome.err
    assert machine.left() == {"thesis.tex"}


@pytest.mark.parametrize("command", [init, join])
def test_a_folder_with_other_content_keeps_its_mode(machine: Machine, command: Callable[[Machine], Outcome]) -> None:
    machine.home.state.mkdir(mode=0o755)
    (machine.home.state / "passwd").write_text("root")
    assert command(machine).code == 1
    assert machine.home.state.stat().st_mode & 0o777 == 0o755


def test_an_incomplete_mesh_is_not_overwritten(machine: Machine) -> None:
    init(machine)
    machine.home.enrolment.unlink()
    database = machine.home.database.read_bytes()
    outcome = init(machine)
    assert outcome.code == 1
    assert "meshray leave --yes" in outcome.err
    assert machine.home.database.read_bytes() == database


def test_leave_removes_all_state(machine: Machine) -> None:
    join(machine)
    outcome = machine.type_in("leave", "--json")
    assert json.loads(outcome.out) == {"schema": 1, "node": "gpu-1", "unenrolled": True}
    assert machine.done[-2:] == ["stop", "unenrol"]
    assert not machine.home.state.exists()
    assert machine.type_in("leave").code == 1


def test_leave_after_a_failed_join_needs_no_confirmation(machine: Machine) -> None:
    machine.failure = MeshrayError("failed", "no")
    join(machine)
    assert machine.left() == {"log.failed"}
    assert machine.type_in("leave").code == 0
    assert not machine.home.state.exists()


@pytest.mark.parametrize("name", ["map.json", "private.key"])
def test_up_with_a_damaged_file_reports_the_fix(machine: Machine, name: str) -> None:
    join(machine)
    (machine.home.state / name).write_text("half a f")
    done = list(machine.done)
    outcome = machine.type_in("up")
    assert outcome.code == 1
    assert str(machine.home.state / name) in outcome.err
    assert "hint: " in outcome.err
    assert machine.done == done


def test_up_on_the_head_restores_a_lost_map(machine: Machine) -> None:
    from meshray.node.map_cache import load_map

    init(machine)
    before = load_map(machine.home)
    machine.home.map_cache.unlink()
    assert machine.type_in("up").code == 0
    assert load_map(machine.home).nodes.keys() == before.nodes.keys()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_nothing_is_named(machine: Machine, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def write(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("meshray.node.enrolment.write_atomically", write)
    outcome = init(machine)
    assert (outcome.code, str(machine.home.state) in outcome.err, "MESHRAY_HOME" in outcome.err) == (1, True, True)


def test_leave_continues_without_the_coordinator(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(enrolment: Enrolment) -> None:
        raise UnreachableError("coordinator_unreachable", "nobody answers")

    join(machine)
    monkeypatch.setattr(membership_checks, "unenrol", away)
    outcome = machine.type_in("leave", "--json")
    assert (outcome.code, json.loads(outcome.out)["unenrolled"]) == (0, False)
    assert "meshray node rm gpu-1" in outcome.err
    assert not machine.home.state.exists()


def test_the_head_with_other_nodes_leaves_only_after_confirmation(machine: Machine) -> None:
    from meshray.model.keys import PrivateKey
    from meshray.node.map_cache import load_map, save_map

    init(machine)
    known = load_map(machine.home)
    public = PrivateKey.generate().public()
    other = Node("n2", NodeName("gpu-1"), IPv4Address("10.99.0.2"), public, frozenset({"worker"}))
    save_map(machine.home, MeshMap(known.mesh, known.revision, {**known.nodes, "n2": other}))
    outcome = machine.type_in("leave")
    assert (outcome.code, "gpu-1" in outcome.err) == (2, True)
    assert machine.home.database.exists()
    assert machine.type_in("leave", "--yes").code == 0
    assert not machine.home.state.exists()


def test_down_and_up(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    join(machine)
    assert json.loads(machine.type_in("down", "--json").out) == {"schema": 1, "node": "gpu-1", "was_running": True}
    monkeypatch.setattr(agent_service, "is_running", lambda home: False)
    (machine.home.logs / "agent.log").unlink()
    machine.home.logs.rmdir()
    assert machine.type_in("up").code == 0
    assert machine.done == ["enrol", "start", "stop", "start"]


def test_two_concurrent_commands(machine: Machine) -> None:
    from meshray.node.state_folder import claimed

    with claimed(machine.home):
        assert "another meshray command" in init(machine).err
    assert not machine.home.state.exists()


def test_undoing_goes_on_after_a_step_that_fails(capsys: pytest.CaptureFixture[str]) -> None:
    done: list[str] = []

    def broken() -> None:
        raise OSError("no")

    with pytest.raises(ZeroDivisionError), Rollback(App(())) as rollback:
        rollback.add("first", lambda: done.append("first"))
        rollback.add("second", broken)
        rollback.add("third", lambda: done.append("third"))
        raise ZeroDivisionError
    assert done == ["third", "first"]
    assert "second could not be undone" in capsys.readouterr().err


def test_up_with_another_address_of_the_coordinator(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[Endpoint] = []

    async def call(self: coordinator.Coordinator, method: str, path: str) -> Mapping[str, object]:
        requests.extend(self.endpoints)
        return {}

    monkeypatch.setattr(coordinator.Coordinator, "call", call)
    monkeypatch.setattr(agent_service, "is_running", lambda home: False)
    join(machine)
    machine.type_in("down")
    before = Enrolment.load(machine.home)
    machine.agent.answers["status"] = {"coordinator": {"reachable": True}}
    assert machine.type_in("up", "--coordinator", "192.0.2.9", "--json").code == 0
    after = Enrolment.load(machine.home)
    assert requests == [Endpoint("192.0.2.9", 51888)]
    assert after.coordinators == (Endpoint("192.0.2.9", 51888), *before.coordinators)
    assert (after.node_id, after.credential, after.name) == (before.node_id, before.credential, before.name)


def test_up_with_an_address_at_which_another_coordinator_answers(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def call(self: coordinator.Coordinator, method: str, path: str) -> Mapping[str, object]:
        raise RefusedError("token_other_mesh", "another certificate answered")

    monkeypatch.setattr(coordinator.Coordinator, "call", call)
    join(machine)
    before = Enrolment.load(machine.home)
    outcome = machine.type_in("up", "--coordinator", "192.0.2.9", "--json")
    assert json.loads(outcome.out)["error"]["code"] == "other_coordinator"
    assert Enrolment.load(machine.home) == before


def test_up_on_the_head_with_an_address_of_the_coordinator(machine: Machine) -> None:
    init(machine)
    outcome = machine.type_in("up", "--coordinator", "192.0.2.9", "--json")
    error = json.loads(outcome.out)["error"]
    assert (error["code"], "meshray init --advertise 192.0.2.9" in error["hint"]) == ("hosts_coordinator", True)


def test_init_on_a_head_is_refused_with_more_than_an_address(machine: Machine) -> None:
    init(machine)
    outcome = machine.type_in("init", "--advertise", "192.0.2.9", "--hub-only", "--json")
    assert json.loads(outcome.out)["error"]["code"] == "already_enrolled"
