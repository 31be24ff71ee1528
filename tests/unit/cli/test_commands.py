"""Single commands in front of an agent that is a table of answers."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from meshray.cli import ray_program, status_table
from meshray.cli.commands.lifecycle import idle_is_awaited
from meshray.cli.commands.peer import best_endpoint, wg_quick
from meshray.cli.commands.status import StatusResult
from meshray.cli.ray_program import find_ray_node
from meshray.cli.tables import Paint, children, plain
from meshray.errors import MeshrayError
from meshray.model.address import Endpoint
from meshray.model.keys import PresharedKey, PrivateKey
from meshray.protocol.api import PeerAdded
from meshray.protocol.codec import convert
from meshray.protocol.status import Status
from tests.unit.cli.examples import BY_COMMAND
from tests.unit.cli.fakes import FakeAgent, Terminal, type_in

STATUS = {**json.loads(json.dumps(BY_COMMAND["status"].to_json())), "problems": [], "health": []}


def status_text(status: Mapping[str, object], *, now: float, paint: Paint = plain) -> str:
    return status_table.status_text(convert(status, Status), now=now, paint=paint)


def test_status_shows_every_node_and_the_totals() -> None:
    outcome = type_in("status", agent=FakeAgent({"status": STATUS}))
    assert outcome.code == 0
    assert "gpu-1 (this)" in outcome.out
    assert "direct  12.4 ms" in outcome.out
    assert "cluster: 16 CPU, 2 GPU, 64.0 GiB memory, 20.0 GiB object store" in outcome.out
    assert outcome.err == ""


def test_status_fits_into_80_columns_and_shows_a_lost_node_correctly() -> None:
    path = {"kind": "direct", "transport": "udp", "rtt_ms": 2.3, "loss": 0.0, "handshake_age_s": 54.0}
    more = {"ip": "10.99.255.254", "role": "worker", "online": True, "drained": False, "down": False, "silent": False}
    lost = {**more, "name": "laptop-of-somebody-with-a-long-name", "path": path, "silent": True}
    relayed = {
        **more,
        "name": "gpu-1234567890",
        "path": {**path, "kind": "hub", "transport": "wss"},
        "ray": {"alive": False, "resources": {}},
    }
    status = {**STATUS, "self": "gpu-1234567890", "nodes": [*children(STATUS, "nodes"), lost, relayed]}
    rows = type_in("status", agent=FakeAgent({"status": status})).out.splitlines()
    assert max(map(len, rows[: rows.index("", 2)])) <= 80
    (row,) = [row for row in rows if row.startswith("laptop")]
    assert "no answer  " in row
    assert "was direct" in row
    assert "2.3 ms" not in row
    assert any("no Ray" in row and "hub/wss" in row for row in rows)
    wide = type_in("status", "--wide", agent=FakeAgent({"status": status})).out
    assert "HANDSHAKE" in wide
    assert "54 s ago" in wide


def test_status_shows_usage_and_the_duration_of_each_state() -> None:
    now = 1_000_000.0
    (head, worker) = children(STATUS, "nodes")
    ray = {"alive": True, "resources": {"CPU": 8.0, "GPU": 1.0, "memory": 32 * 2**30}}
    busy = {**ray, "used": {"CPU": 2.5, "GPU": 1.0, "memory": 4.2 * 2**30}}
    nodes = [{**head, "ray": busy, "since": now - 7300}, {**worker, "ray": ray, "since": now - 24.4}]
    table = status_text({**STATUS, "nodes": nodes}, now=now).splitlines()[2:5]
    assert table[0].split()[-4:] == ["CPU", "GPU", "MEMORY", "SINCE"]
    assert table[1].split()[-6:] == ["2.5/8", "1/1", "4/32", "GiB", "2", "h"]
    assert table[2].rstrip().endswith("32 GiB    24 s")
    # If it does not fit, the use is omitted first, then the time.
    wide = {
        **worker,
        "name": "n" * 40,
        "ip": "10.255.255.254",
        "ray": {**busy, "resources": {"CPU": 128.0, "memory": 2**41}},
    }
    wide["path"] = {"kind": "direct", "transport": "wss", "rtt_ms": 1234.5}
    rows = status_text({**STATUS, "nodes": [*nodes, {**wide, "since": now - 86400 * 99}]}, now=now).splitlines()[2:6]
    assert max(map(len, rows)) <= 80
    assert rows[3].endswith("1.2 s    128  -    2.0 TiB")


def test_status_shows_what_a_silent_node_offered_last_with_a_question_mark() -> None:
    (head, worker) = children(STATUS, "nodes")
    ray = {"alive": None, "resources": {}, "used": None, "last_known": {"CPU": 2.0, "GPU": 1.0, "memory": 1e10}}
    silent = {**worker, "silent": True, "ray": ray, "since": 1000.0}
    row = status_text({**STATUS, "nodes": [head, silent]}, now=1024.0).splitlines()[4]
    assert row.split()[-6:] == ["-", "2?", "1?", "-", "24", "s"]
    # An agent of an older version.
    row = status_text({**STATUS, "nodes": [head, {**silent, "ray": {**ray, "last_known": None}}]}, now=1024.0)
    assert row.splitlines()[4].split()[-6:] == ["-", "-", "-", "-", "24", "s"]


def test_colours_of_status_change_no_word() -> None:
    plain = status_text(STATUS, now=0.0)
    painted = status_text(STATUS, now=0.0, paint=lambda text, colour: f"<{colour}>{text}</>" if colour else text)
    assert "<green>ready" in painted
    assert re.sub(r"</?\w*>", "", painted) == plain


def test_status_passes_on_the_agents_answer() -> None:
    outcome = type_in("status", "--json", agent=FakeAgent({"status": {**STATUS, "news": 1}}))
    assert json.loads(outcome.out) == {"schema": 1, **STATUS, "news": 1}


@pytest.mark.parametrize("change", [{"problems": ["the tunnel is down"]}, {"coordinator": {"reachable": False}}])
def test_an_unhealthy_status_is_exit_code_3(change: dict[str, object]) -> None:
    outcome = type_in("status", agent=FakeAgent({"status": {**STATUS, **change}}))
    assert outcome.code == 3
    assert StatusResult(Status()).exit_code == 3


def test_status_shows_the_fix_below_each_problem() -> None:
    unhealthy = BY_COMMAND["status"].to_json()
    outcome = type_in("status", agent=FakeAgent({"status": unhealthy}))
    assert outcome.code == 3
    (problem,) = children(unhealthy, "health")
    assert f"problem: {problem['text']}\n    fix: {problem['fix']}\n" in outcome.out
    # An older agent sends sentences only.
    outcome = type_in("status", agent=FakeAgent({"status": {**STATUS, "problems": ["the tunnel is down"]}}))
    assert "problem: the tunnel is down\n" in outcome.out


def test_doctor_queries_the_agent_and_counts_hidden_checks() -> None:
    checks = [
        {"code": "a", "title": "this", "status": "ok", "node": None, "evidence": "fine", "fix": ""},
        {"code": "b", "title": "that", "status": "fail", "node": "gpu-1", "evidence": "broken", "fix": "mend it"},
        {"code": "c", "title": "more", "status": "skip", "node": "gpu-1", "evidence": "follows", "fix": ""},
    ]
    outcome = type_in("doctor", "gpu-1", agent=FakeAgent({"doctor": {"checks": checks}}))
    assert outcome.code == 3
    assert outcome.agent.asked == [("doctor", {"node": "gpu-1"})]
    assert "FAIL  that [gpu-1]: broken\n      fix: mend it\n" in outcome.out
    assert "1 check failed (1 is fine, 1 not applicable)." in outcome.out


def test_doctor_outside_a_mesh_reports_that_and_no_fault() -> None:
    outcome = type_in("doctor", "--json")
    answer = json.loads(outcome.out)
    assert outcome.code == 0
    assert next(check["code"] for check in answer["checks"] if check["status"] == "warn") == "enrolled"
    assert not [check for check in answer["checks"] if check["status"] == "fail"]


def test_ping_prints_each_answer_as_it_arrives() -> None:
    events: list[dict[str, object]] = [{"seq": 1, "rtt_ms": 2.0}, {"seq": 2, "rtt_ms": None}]
    agent = FakeAgent({"ping": [*events, {"done": True, "path": {"kind": "hub", "transport": "udp"}}]})
    outcome = type_in("ping", "gpu-2", "-c", "2", agent=agent)
    assert outcome.code == 0
    assert outcome.err.splitlines() == ["gpu-2 1: 2.0 ms", "gpu-2 2: no answer"]
    assert "1 of 2 answered" in outcome.out
    assert "path: hub/udp" in outcome.out


def test_ping_without_an_answer_is_exit_code_3() -> None:
    agent = FakeAgent({"ping": [{"seq": 1, "rtt_ms": None}, {"done": True, "path": {"kind": "none"}}]})
    assert type_in("ping", "gpu-2", "-c", "1", agent=agent).code == 3


def test_token_create_prints_the_token_alone() -> None:
    made: dict[str, object] = {"token": "meshray1_abc", "id": "1f2e3d4c", "uses": 5, "expires": None, "port": 51888}
    outcome = type_in("token", "create", "--uses", "5", "--ttl", "never", agent=FakeAgent({"api": made}))
    assert outcome.out == "meshray1_abc\n"
    body = {"uses": 5, "ttl_s": 0, "ephemeral": False, "roles": []}
    assert outcome.agent.asked == [("api", {"method": "POST", "path": "/v1/tokens", "body": body})]


def test_a_token_grants_the_requested_roles() -> None:
    made: dict[str, object] = {"token": "meshray1_abc", "id": "1f2e3d4c", "uses": 1, "expires": None, "port": 51888}
    made["roles"] = ["head", "hub"]
    outcome = type_in("token", "create", "--hub", "--head", "--json", agent=FakeAgent({"api": made}))
    body = {"uses": 1, "ttl_s": 86400, "ephemeral": False, "roles": ["head", "hub"]}
    assert outcome.agent.asked == [("api", {"method": "POST", "path": "/v1/tokens", "body": body})]
    assert json.loads(outcome.out)["roles"] == ["head", "hub"]


#: A token that was not used yet, in the coordinator's list.
LISTED_TOKEN: dict[str, object] = {
    "id": "1f",
    "uses": 1,
    "used": 0,
    "expires": None,
    "ephemeral": False,
    "created": 0.0,
    "revoked": False,
    "roles": [],
    "name": None,
    "replace": False,
}


def test_a_token_for_a_node_s_name_and_place() -> None:
    made: dict[str, object] = {"token": "meshray1_abc", "id": "1f", "uses": 1, "expires": None, "port": 51888}
    made |= {"name": "gpu-1", "replace": True}
    outcome = type_in("token", "create", "--name", "GPU-1", "--replace", "--json", agent=FakeAgent({"api": made}))
    body = {"uses": 1, "ttl_s": 86400, "ephemeral": False, "roles": [], "name": "gpu-1", "replace": True}
    assert outcome.agent.asked == [("api", {"method": "POST", "path": "/v1/tokens", "body": body})]
    assert (json.loads(outcome.out)["name"], json.loads(outcome.out)["replace"]) == ("gpu-1", True)
    kept = {**LISTED_TOKEN, "name": "gpu-1", "replace": True}
    listed = type_in("token", "list", agent=FakeAgent({"api": {"tokens": [kept, {**kept, "replace": False}]}})).out
    assert "gpu-1 (replaces it)  valid" in listed
    assert "gpu-1                valid" in listed


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--name", "gpu-1", "--uses", "2"), "name_with_uses"),
        (("--name", "gpu-1", "--replace", "--uses", "0"), "name_with_uses"),
        (("--replace",), "replace_without_name"),
        (("--name", "not a name"), "bad_name"),
    ],
)
def test_a_token_for_a_name_is_for_one_node(words: tuple[str, ...], code: str) -> None:
    outcome = type_in("token", "create", *words, "--json", agent=FakeAgent({"api": {}}))
    assert outcome.code == 2
    assert outcome.agent.asked == []
    error = json.loads(outcome.out)["error"]
    assert error["code"] == code
    assert error["hint"]


def test_the_state_of_tokens() -> None:
    changes: list[dict[str, object]] = [{}, {"used": 1}, {"revoked": True}, {"expires": 1.0}, {"uses": 0, "used": 9}]
    tokens = [{**LISTED_TOKEN, "id": f"{n}", **change} for n, change in enumerate(changes)]
    lines = type_in("token", "list", agent=FakeAgent({"api": {"tokens": tokens}})).out.splitlines()[1:]
    assert [line.split("  ")[-1].strip() for line in lines] == ["valid", "used up", "revoked", "expired", "valid"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({}, "yes"),
        ({"silence": "silent"}, "silent"),
        ({"silence": "gone", "online": False}, "silent"),
        ({"online": False, "down": True, "drained": True}, "down, drained"),
    ],
)
def test_the_list_of_nodes_marks_silent_ones(change: dict[str, object], word: str) -> None:
    node = {**BY_COMMAND["node list"].to_json()["nodes"][0], **change}  # type: ignore[index]
    listed = type_in("node", "list", agent=FakeAgent({"api": {"nodes": [node], "restored": None}})).out
    assert f"worker  {word}" in listed


def test_lists_of_an_older_coordinator_are_shown() -> None:
    """It goes on after an upgrade until it is restarted, and lacks the fields that came later."""
    token = {key: value for key, value in LISTED_TOKEN.items() if key not in ("roles", "name", "replace")}
    assert "valid" in type_in("token", "list", agent=FakeAgent({"api": {"tokens": [token]}})).out
    node: dict[str, object] = BY_COMMAND["node list"].to_json()["nodes"][0]  # type: ignore[index]
    node = {key: value for key, value in node.items() if key not in ("silence", "ended", "seen", "hubs")}
    answer: dict[str, object] = {"nodes": [node]}
    assert "worker  yes" in type_in("node", "list", agent=FakeAgent({"api": answer})).out


def test_removing_a_node_needs_confirmation() -> None:
    outcome = type_in("node", "rm", "gpu-1", agent=FakeAgent({"api": {}}))
    assert outcome.code == 2
    assert outcome.agent.asked == []
    assert "hint: meshray node rm gpu-1 --yes" in outcome.err
    outcome = type_in("node", "rm", "gpu-1", "--yes", agent=FakeAgent({"api": {}}))
    assert outcome.code == 0
    assert outcome.agent.asked == [("api", {"method": "DELETE", "path": "/v1/nodes/gpu-1", "body": None})]


def test_with_json_there_is_no_question_even_on_a_terminal() -> None:
    outcome = type_in("node", "rm", "gpu-1", "--json", agent=FakeAgent({"api": {}}), stdin=Terminal("y\n"))
    assert outcome.code == 2
    assert json.loads(outcome.out)["error"]["code"] == "needs_yes"


def test_rename_checks_the_new_name_first() -> None:
    assert type_in("node", "rename", "gpu-1", "no good", agent=FakeAgent({"api": {}})).agent.asked == []
    asked = type_in("node", "rename", "gpu-1", "GPU-7", agent=FakeAgent({"api": {}})).agent.asked
    assert asked == [("api", {"method": "PATCH", "path": "/v1/nodes/gpu-1", "body": {"name": "gpu-7"}})]


def test_env_can_be_evaluated_by_a_shell() -> None:
    agent = FakeAgent({"env": {"env": {"RAY_ADDRESS": "10.99.0.1:6379", "ODD": "it's $HOME"}}})
    outcome = type_in("env", agent=agent)
    assert outcome.out == "export RAY_ADDRESS='10.99.0.1:6379'\nexport ODD='it'\"'\"'s $HOME'\n"
    agent = FakeAgent({"env": {"env": {}, "programs": "/home/a b/bin", "activation": {"VIRTUAL_ENV": "/home/a b"}}})
    outcome = type_in("env", agent=agent)
    assert outcome.out == "export VIRTUAL_ENV='/home/a b'\nexport PATH='/home/a b/bin':\"$PATH\"\n"


def test_dashboard_shows_address_token_and_the_ssh_command(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret")
    env = {"RAY_API_SERVER_ADDRESS": "http://10.99.0.1:8265", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    outcome = type_in("dashboard", agent=FakeAgent({"env": {"env": env, "person_uid": 0}}))
    url, token, ssh = outcome.out.splitlines()
    assert (url, token) == ("dashboard  http://10.99.0.1:8265", "token      s3cret")
    assert ssh.startswith("elsewhere  ssh -N -L 8265:10.99.0.1:8265 root@")
    (tmp_path / "token").unlink()
    outcome = type_in("dashboard", "--json", agent=FakeAgent({"env": {"env": env, "person_uid": 0}}))
    assert json.loads(outcome.out)["error"]["code"] == "no_ray_token"


def test_run_needs_a_program_that_exists() -> None:
    agent = FakeAgent({"env": {"env": {"RAY_ADDRESS": "x"}}})
    outcome = type_in("run", "--", "no-such-program-at-all", agent=agent, environ={"PATH": "/nonexistent"})
    assert outcome.code == 2
    assert "no-such-program-at-all" in outcome.err


def test_run_finds_the_ray_of_this_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, tuple[str, ...], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda *call: started.append(call))
    agent = FakeAgent({"env": {"env": {"RAY_ADDRESS": "10.99.0.1:6379"}}})
    type_in("run", "--", "python3", "job.py", "--json", agent=agent, environ={"PATH": "/nonexistent"})
    ((program, arguments, environ),) = started
    assert program == str(Path(sys.executable).parent / "python3")
    assert arguments == ("python3", "job.py", "--json")
    assert environ["RAY_ADDRESS"] == "10.99.0.1:6379"
    assert environ["PATH"].startswith("/nonexistent:")


def test_the_head_is_not_drained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_program, "_own_ray", lambda app: "/opt/ray")
    outcome = type_in("node", "drain", "head", agent=FakeAgent({"status": STATUS}))
    assert (outcome.code, [op for op, _ in outcome.agent.asked]) == (1, ["status"])
    assert "cannot be drained" in outcome.err


def test_a_drain_is_sent_to_the_coordinator_first_and_reverted_if_ray_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_program, "_own_ray", lambda app: "/opt/ray")
    agent = FakeAgent({"status": STATUS, "env": {"env": {"RAY_ADDRESS": "10.99.0.1:6379"}}, "api": {}})
    ran: list[list[str]] = []

    def run(command: list[str], environ: object, user: object) -> str:
        ran.append(command)
        if command[1] == "drain-node" and len(ran) > 2:
            raise MeshrayError("ray_failed", "ray drain-node: no")
        return json.dumps([{"node_id": "3f5c", "node_ip": "10.99.0.2"}])

    monkeypatch.setattr(ray_program, "_run", run)
    drained = type_in("node", "drain", "gpu-1", agent=agent)
    assert (drained.code, "have up to 10 min to finish" in drained.out) == (0, True)
    assert [command[1] for command in ran] == ["list", "drain-node"]
    assert type_in("node", "drain", "gpu-1", agent=agent).code == 1
    answer = [fields["body"] for op, fields in agent.asked if op == "api"]
    assert answer == [{"drained": True}, {"drained": True}, {"drained": False}]


def test_a_node_whose_ray_is_away_can_be_drained_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_program, "_own_ray", lambda app: "/opt/ray")
    monkeypatch.setattr(ray_program, "_run", lambda command, environ, user: "[]")
    agent = FakeAgent({"status": STATUS, "env": {"env": {}}, "api": {}})
    assert "gpu-1 runs no Ray" in type_in("node", "drain", "gpu-1", agent=agent).out
    assert "takes tasks again" in type_in("node", "drain", "gpu-1", "--undo", agent=agent).out
    answer = [(fields["method"], fields["path"], fields["body"]) for op, fields in agent.asked if op == "api"]
    assert answer == [("PATCH", "/v1/nodes/gpu-1", {"drained": True}), ("PATCH", "/v1/nodes/gpu-1", {"drained": False})]


@pytest.mark.parametrize(("alive", "awaited"), [(True, True), (False, False), (None, False)])
def test_a_drained_node_leaves_when_its_own_ray_has_ended(alive: bool | None, awaited: bool) -> None:
    others = {"name": "head", "ray": {"alive": True}}
    status = {"self": "gpu-1", "nodes": [others, {"name": "gpu-1", "ray": {"alive": alive}}]}
    assert idle_is_awaited(convert(status, Status)) is awaited


def test_leave_rejects_an_invalid_time_before_any_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHRAY_HOME", str(tmp_path))
    outcome = type_in("leave", "--drain", "soon", agent=FakeAgent())
    assert (outcome.code, outcome.agent.asked) == (2, [])
    assert "'soon' is not a duration" in outcome.err


def test_the_sbatch_script_goes_to_a_file_or_to_stdout(tmp_path: Path) -> None:
    words = ("render", "slurm", "--nodes", "3", "--gpus-per-node", "1")
    shown = type_in(*words, "--", "python", "train.py", "--epochs", "3")
    assert "#SBATCH --nodes=3\n" in shown.out
    assert "\ncommand=(python train.py --epochs 3)\n" in shown.out
    file = tmp_path / "job.sh"
    written = type_in(*words, "-o", str(file), "--", "python", "train.py", "--epochs", "3")
    assert (written.code, written.out, file.read_text()) == (0, "", shown.out)
    assert f"sbatch {file}" in written.err
    assert type_in(*words, "-o", str(tmp_path)).code == 1
    assert type_in(*words, "--time", "soon").code == 2


def test_status_distinguishes_draining_from_drained() -> None:
    nodes = [{**node, "drained": True} for node in children(STATUS, "nodes")]
    nodes[1]["ray"] = {"alive": False, "resources": {}}
    outcome = type_in("status", agent=FakeAgent({"status": {**STATUS, "nodes": nodes}}))
    assert [word in outcome.out for word in ("draining", "drained", "ALIVE")] == [True, True, False]


def peer_answer() -> dict[str, object]:
    return {
        "mesh": "m1",
        "name": "phone",
        "ip": "10.99.0.9",
        "private_key": PrivateKey(bytes(range(32))).reveal(),
        "public_key": str(PrivateKey(bytes(range(32))).public()),
        "network": "10.99.0.0/16",
        "hub": {
            "name": "head",
            "ip": "10.99.0.1",
            "public_key": str(PrivateKey(bytes(32)).public()),
            "preshared_key": PresharedKey(bytes(32)).reveal(),
            "endpoints": ["192.168.1.5:51888", "203.0.113.7:51888", "8.8.8.8:51888"],
        },
    }


def test_a_peers_file_is_for_its_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "phone.conf"
    outcome = type_in("peer", "add", "phone", "--config", str(file), agent=FakeAgent({"api": peer_answer()}))
    assert outcome.code == 0
    assert file.stat().st_mode & 0o777 == 0o600
    text = file.read_text()
    assert PrivateKey(bytes(range(32))).reveal() in text
    assert "Endpoint = 8.8.8.8:51888" in text
    assert "AllowedIPs = 10.99.0.0/16" in text
    assert PrivateKey(bytes(range(32))).reveal() not in outcome.out + outcome.err


def test_a_peers_file_never_replaces_another(tmp_path: Path) -> None:
    file = tmp_path / "phone.conf"
    file.write_text("mine")
    outcome = type_in("peer", "add", "phone", "--config", str(file), agent=FakeAgent({"api": peer_answer()}))
    assert (outcome.code, file.read_text(), outcome.agent.asked) == (2, "mine", [])


def test_a_refused_peer_leaves_no_file(tmp_path: Path) -> None:
    file = tmp_path / "phone.conf"
    agent = FakeAgent({"api": MeshrayError("name_taken", "another node is called phone")})
    assert type_in("peer", "add", "phone", "--config", str(file), agent=agent).code == 1
    assert not file.exists()


def test_a_peers_file_on_stdout() -> None:
    outcome = type_in("peer", "add", "phone", "--config", "-", agent=FakeAgent({"api": peer_answer()}))
    assert outcome.out == wg_quick(convert(peer_answer(), PeerAdded))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for another user")
def test_the_file_of_a_device_belongs_to_the_user_behind_sudo() -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        os.chown(folder, 65534, -1)
        file = folder / "phone.conf"
        environ = {"MESHRAY_HOME": "/nonexistent/meshray", "SUDO_UID": "65534"}
        agent = FakeAgent({"api": peer_answer()})
        assert type_in("peer", "add", "phone", "--config", str(file), agent=agent, environ=environ).code == 0
        about = file.stat()
        assert (about.st_uid, stat.S_IMODE(about.st_mode)) == (65534, 0o600)
    finally:
        shutil.rmtree(folder)


def test_a_peers_file_names_a_hub_that_has_a_name() -> None:
    answer = peer_answer()
    hub = answer["hub"]
    assert isinstance(hub, dict)
    answer["hub"] = {**hub, "endpoints": ["10.0.0.1:51888", "head.example.org:51888"]}
    named = wg_quick(convert(answer, PeerAdded))
    assert "\nEndpoint = head.example.org:51888\n" in named


def test_the_endpoint_that_a_device_reaches_most_likely() -> None:
    private, public, name = (Endpoint(host, 51888) for host in ("10.0.0.1", "8.8.8.8", "head.example.org"))
    assert best_endpoint([private, public]) == public
    assert best_endpoint([private, public, name]) == name
    assert best_endpoint([private]) == private
    with pytest.raises(MeshrayError):
        best_endpoint([])


def test_the_newest_ray_node_at_an_address() -> None:
    nodes = [
        {"node_id": "old", "node_ip": "10.99.0.2", "start_time_ms": 1},
        {"node_id": "new", "node_ip": "10.99.0.2", "start_time_ms": 2},
        {"node_id": "other", "node_ip": "10.99.0.3", "start_time_ms": 3},
    ]
    assert find_ray_node("some warning\n" + json.dumps(nodes), "10.99.0.2") == "new"
    assert find_ray_node("[]", "10.99.0.2") is None
    assert find_ray_node("no json", "10.99.0.2") is None


def test_logs_of_a_failed_try(tmp_path: Path) -> None:
    (tmp_path / "log.failed").mkdir()
    (tmp_path / "log.failed/ray.log").write_text("one\ntwo\nthree\n")
    outcome = type_in("logs", "ray", "-n", "2", environ={"MESHRAY_HOME": str(tmp_path)})
    assert outcome.out == "two\nthree\n"
    assert type_in("logs", environ={"MESHRAY_HOME": str(tmp_path)}).code == 1


def test_a_token_from_stdin_and_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("nonsense\n")
    for outcome in (type_in("join", "-", stdin=io.StringIO("nonsense\n")), type_in("join", f"@{tmp_path}/token")):
        assert outcome.code == 2
        assert "not a meshray token" in outcome.err
    assert "there is no token" in type_in("join", "-").err
