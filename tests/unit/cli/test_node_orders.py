"""`meshray node logs|restart|bundle` and `meshray audit`, as a user types them."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from meshray.coordinator.audit_log import AuditLog
from meshray.errors import RefusedError
from meshray.protocol.control import Done, GiveOrder, OrderPart
from tests.unit.cli.fakes import FakeApp, Outcome, type_in


class FakeAgent:
    """The agent of the head, which answers each order with these bytes."""

    def __init__(self, parts: Iterable[bytes], error: RefusedError | None = None) -> None:
        self.parts = list(parts)
        self.error = error
        self.orders: list[tuple[str, str, Mapping[str, object]]] = []

    def watch(self, request: GiveOrder, on_event: Callable[[OrderPart], None], *, timeout_s: float) -> Done:
        self.orders.append((request.node, request.order, request.arguments))
        for part in self.parts:
            on_event(OrderPart(base64.b64encode(part).decode()))
        if self.error is not None:
            raise self.error
        return Done()


def answered_by(monkeypatch: pytest.MonkeyPatch, agent: FakeAgent) -> FakeAgent:
    monkeypatch.setattr(FakeApp, "control", lambda self: agent)
    return agent


def typed(tmp_path: Path, *words: str, **options: Any) -> Outcome:
    environ = {"MESHRAY_HOME": str(tmp_path / "state"), "MESHRAY_RUN": str(tmp_path / "run")}
    return type_in(*words, environ=environ, **options)


def test_logs_are_printed_as_they_arrive_and_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    euro = "100 €\n".encode()
    agent = answered_by(monkeypatch, FakeAgent([b"one\n", b"", euro[:5], euro[5:], b"\x1b[2J\n"]))
    done = typed(tmp_path, "node", "logs", "gpu-1", "ray", "-f", "--since", "10m")
    assert done.code == 0
    assert done.out.startswith("one\n100 €\n")
    assert "\x1b" not in done.out
    (order,) = agent.orders
    assert order == ("gpu-1", "logs", {"part": "ray", "lines": 10_000_000, "since_s": 600, "follow": True})


def test_logs_in_json_are_one_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = answered_by(monkeypatch, FakeAgent([b"one\n", b"two\n"]))
    done = typed(tmp_path, "node", "logs", "gpu-1", "--json")
    assert json.loads(done.out) == {"schema": 1, "node": "gpu-1", "part": "agent", "text": "one\ntwo\n"}
    assert agent.orders[0][2]["lines"] == 100
    refused = typed(tmp_path, "node", "logs", "gpu-1", "-f", "--json")
    assert (refused.code, json.loads(refused.out)["error"]["code"]) == (2, "follow_json")
    assert len(agent.orders) == 1


def test_a_restart_reports_what_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = answered_by(monkeypatch, FakeAgent([b"the agent restarts now"]))
    assert "its Ray continues" in typed(tmp_path, "node", "restart", "gpu-1").out
    assert "Ray on gpu-1 is restarted" in typed(tmp_path, "node", "restart", "gpu-1", "--ray").out
    assert [arguments for _, _, arguments in agent.orders] == [{"ray": False}, {"ray": True}]


def test_a_bundle_is_written_and_an_incomplete_one_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered_by(monkeypatch, FakeAgent([b"ab", b"cd"]))
    path = tmp_path / "gpu-1.tar.gz"
    done = typed(tmp_path, "node", "bundle", "gpu-1", str(path), "--json")
    assert json.loads(done.out) == {"schema": 1, "node": "gpu-1", "bundle": str(path), "size": 4}
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"abcd", 0o600)
    again = typed(tmp_path, "node", "bundle", "gpu-1", str(path), "--json")
    assert json.loads(again.out)["error"]["code"] == "file_exists"
    refusal = RefusedError("remote_refused", "gpu-1 accepts no remote orders")
    answered_by(monkeypatch, FakeAgent([b"ab"], refusal))
    refused = typed(tmp_path, "node", "bundle", "gpu-1", str(tmp_path / "other"), "--json")
    assert (refused.code, json.loads(refused.out)["error"]["code"]) == (4, "remote_refused")
    assert not (tmp_path / "other").exists()


def with_sessions(tmp_path: Path, number: int) -> dict[str, str]:
    """Return the environment of a user outside the mesh who has used this many passes."""
    folder = tmp_path / "user/meshray/sessions"
    folder.mkdir(parents=True)
    for each in range(number):
        # Nothing listens on this port.
        kept = {"endpoint": "127.0.0.1:9", "fingerprint": "00" * 32, "cookie": f"__Host-meshray=secret-{each}"}
        (folder / f"{each}.json").write_text(json.dumps(kept))
    return {"MESHRAY_HOME": str(tmp_path / "state"), "XDG_STATE_HOME": str(tmp_path / "user")}


def refused_with(done: Outcome) -> tuple[int, str]:
    return done.code, json.loads(done.out)["error"]["code"]


def test_outside_the_mesh_the_only_session_is_used_and_several_need_the_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = answered_by(monkeypatch, FakeAgent([b"one\n"]))
    one = type_in("node", "logs", "gpu-1", "--json", environ=with_sessions(tmp_path / "one", 1))
    assert refused_with(one) == (5, "coordinator_unreachable")
    assert "secret-0" not in one.out + one.err
    two = type_in("node", "restart", "gpu-1", "--json", environ=with_sessions(tmp_path / "two", 2))
    assert refused_with(two) == (2, "needs_pass")
    hint = json.loads(two.out)["error"]["hint"]
    assert hint == "meshray node restart gpu-1 --pass -, with the URL of meshray web invite NAME --admin from the head"
    assert agent.orders == []
    # Without a session, the command needs a node here, as before.
    assert type_in("node", "logs", "gpu-1", environ=with_sessions(tmp_path / "none", 0)).out == "one\n"


def test_a_pass_comes_from_a_file_or_standard_input_and_is_never_shown(tmp_path: Path) -> None:
    secret = "s" * 43
    environ = with_sessions(tmp_path, 0)
    for shown in (f"https://head/enter#{secret}", f"https://head:1/#{secret}.{'ab' * 32}"):
        file = tmp_path / "invitation"
        file.write_text(shown)
        typed_pass = type_in("node", "logs", "gpu-1", "--pass", shown, "--json", environ=environ)
        from_file = type_in("node", "logs", "gpu-1", f"--pass=@{file}", "--json", environ=environ)
        from_stdin = type_in("node", "bundle", "gpu-1", "--pass", "-", "--json", environ=environ, stdin=StringIO(shown))
        for done in (typed_pass, from_file, from_stdin):
            assert refused_with(done) == (2, "bad_pass")
            assert "meshray web invite NAME --admin" in done.out
            assert secret not in done.out + done.err
        assert "other users of this machine can see the pass" in typed_pass.err
        assert "other users" not in from_file.err + from_stdin.err
    missing = type_in("node", "restart", "gpu-1", "--pass", f"@{tmp_path}/missing", "--json", environ=environ)
    assert refused_with(missing) == (2, "bad_pass")


def test_an_upgrade_takes_no_pass(tmp_path: Path) -> None:
    refused = type_in(
        "node", "upgrade", "gpu-1", "--pass", "-", "--json", environ=with_sessions(tmp_path, 0), euid=1000
    )
    assert refused_with(refused) == (4, "order_needs_root")
    assert "a pass cannot give the order upgrade: it needs root on the head" in refused.out


def test_the_audit_log_is_shown_and_verified(tmp_path: Path) -> None:
    none = typed(tmp_path, "audit", "--json")
    assert json.loads(none.out)["error"]["code"] == "no_audit"
    path = tmp_path / "state" / "audit.log"
    log = AuditLog.open(path, time.time)
    log.record("node_enrolled", by="token 1f2e3d4c", source="192.0.2.7", node="gpu-1", ip="10.99.0.2")
    log.record("order", by="root on head", source="127.0.0.1", node="gpu-1", order="restart")
    shown = typed(tmp_path, "audit")
    assert shown.code == 0
    assert "token 1f2e3d4c" in shown.out
    assert "2 records; their hashes match; the newest is " in shown.out
    answer = json.loads(typed(tmp_path, "audit", "--lines", "1", "--json").out)
    assert (answer["total"], [record["event"] for record in answer["records"]]) == (2, ["order"])
    path.write_text(path.read_text().replace("restart", "logs"))
    changed = typed(tmp_path, "audit")
    assert changed.code == 3
    assert "the log was changed: line 2: the hash does not match" in changed.out
    assert json.loads(typed(tmp_path, "audit", "--json").out)["intact"] is False
