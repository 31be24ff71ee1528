"""`meshray doctor`: the display of its report, its repairs, and the data that may leave the machine."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from msgspec import structs

from meshray.cli.diagnosis import doctor_text, explanation_text
from meshray.cli.output import coloured
from meshray.doctor.repairs import AGENT, REPAIRS, planned
from meshray.errors import MeshrayError
from meshray.protocol.answers import Doctor
from meshray.protocol.codec import to_json
from meshray.protocol.doctor import Check, DoctorReport
from tests.unit.cli.fakes import FakeAgent, FakeApp, type_in


def check(code: str, status: str, node: str | None = None, **more: str) -> Check:
    fields = {"evidence": f"{code} seen", **more}
    return Check(code, f"the {code}", status, node, **fields)  # type: ignore[arg-type]


def answer(*checks: Check) -> Doctor:
    return Doctor(healthy=True, node=None, checks=checks, repaired=())


def test_causes_come_first_and_healthy_nodes_are_one_line() -> None:
    checks = (
        check("agent", "ok"),
        *(check("handshake", "ok", f"gpu-{n}") for n in range(10)),
        check("loss", "ok", "a", peer="b"),
        check("loss", "ok", "b", peer="a"),
        check("token", "warn", "head", fix="meshray token create"),
        check("answers", "fail", "gpu-3", fix="meshray up"),
        check("ray", "skip", "gpu-3", evidence="follows from: the answers"),
        check("phone", "skip", "phone", evidence="offline"),
        check("firewall", "skip", fix="sudo meshray doctor", evidence="only root may look"),
    )
    assert doctor_text(answer(*checks), show_all=True).splitlines() == [
        "FAIL  the answers [gpu-3]: answers seen",
        "      fix: meshray up",
        "WARN  the token [head]: token seen",
        "      fix: meshray token create",
        "--    the firewall: only root may look",
        "      fix: sudo meshray doctor",
        "--    1 check only follows from that (--json lists them)",
        "ok    the agent: agent seen",
        "ok    the handshake: 10 nodes",
        "ok    the loss: 2 pairs",
        "",
        "1 check failed, 1 warning (13 are fine, 3 not applicable).",
    ]
    assert not any(line.startswith("ok") for line in doctor_text(answer(*checks)).splitlines())


def test_a_healthy_mesh_is_one_line() -> None:
    nodes = [check("agent", "ok", name) for name in ("vm", "gpu-1", "gpu-2")]
    pairs = [
        check("handshake", "ok", one, peer=two) for one in ("vm", "gpu-1") for two in ("vm", "gpu-2") if one != two
    ]
    output = doctor_text(answer(*nodes, *pairs, check("nat", "skip", "vm")))
    assert output == "All 3 nodes and 3 pairs are healthy (6 checks, 1 not applicable)."
    assert doctor_text(answer(check("agent", "ok", "vm"))) == "vm is healthy (1 check, 0 not applicable)."
    only_doubts = (check("agent", "ok"), check("token", "warn"))
    assert doctor_text(answer(*only_doubts)).splitlines()[-1] == (
        "No check failed, 1 warning (1 is fine, 0 not applicable)."
    )


def test_colours_change_no_word() -> None:
    report = answer(check("agent", "ok"), check("answers", "fail", "gpu-3"))
    shown = doctor_text(report, paint=coloured)
    assert "\x1b[31mFAIL\x1b[0m" in shown
    assert "\x1b" not in doctor_text(report)


def test_only_repairs_of_this_machine_are_planned_each_once_the_cause_first() -> None:
    checks = [
        check("guard", "fail", "head", repair="firewall"),
        check("admitted", "warn", "head", repair="firewall"),
        check("agent", "fail", repair="agent"),
        check("running", "fail", "gpu-1", repair="ray"),
        check("fine", "ok", "head", repair="device"),
        check("newer", "fail", "head", repair="of a later version"),
    ]
    assert planned(checks, "head") == ["firewall", "agent"]


BROKEN = {"doctor": to_json(DoctorReport("head", (check("guard", "fail", "head", repair="firewall"),)))}


def test_fix_confirms_and_the_agent_repairs() -> None:
    agent = FakeAgent({**BROKEN, "repair": {"done": "nft: table inet meshray in place"}})
    outcome = type_in("doctor", "--fix", "--yes", "--json", agent=agent)
    assert [op for op, _ in agent.asked] == ["doctor", "repair", "doctor"]
    assert agent.asked[1][1] == {"key": "firewall"}
    assert json.loads(outcome.out)["repaired"] == ["nft: table inet meshray in place"]
    assert outcome.code == 3  # This fake agent is as broken as before.


def test_fix_without_a_terminal_changes_nothing() -> None:
    agent = FakeAgent(dict(BROKEN))
    outcome = type_in("doctor", "--fix", agent=agent)
    assert outcome.code == 2
    assert [op for op, _ in agent.asked] == ["doctor"]
    assert "--yes" in outcome.err


def test_fix_with_nothing_to_repair_asks_no_question() -> None:
    agent = FakeAgent({"doctor": to_json(DoctorReport("head", (check("agent", "ok"),)))})
    assert type_in("doctor", "--fix", agent=agent).code == 0


def test_fix_needs_root() -> None:
    outcome = type_in("doctor", "--fix", agent=FakeAgent(dict(BROKEN)), euid=1000)
    assert outcome.code == 1
    assert "sudo" in outcome.err


def test_a_repair_that_fails_is_an_error_with_its_cause() -> None:
    agent = FakeAgent({**BROKEN, "repair": MeshrayError("firewall_failed", "nft: not permitted")})
    outcome = type_in("doctor", "--fix", "--yes", agent=agent)
    assert outcome.code == 1
    assert "not permitted" in outcome.err


@pytest.mark.parametrize("arguments", [("--yes",), ("--soak",), ("--with-addresses",)])
def test_options_that_need_another_name_it(arguments: tuple[str, ...]) -> None:
    assert type_in("doctor", *arguments, agent=FakeAgent(dict(BROKEN))).code == 2


def test_every_repair_has_an_implementation() -> None:
    from meshray.agent.repair_actions import REPAIRS as OF_THE_AGENT
    from meshray.cli.doctor_fix import HERE

    assert {key for key, repair in REPAIRS.items() if repair.by == AGENT} == set(OF_THE_AGENT)
    assert {key for key, repair in REPAIRS.items() if repair.by != AGENT} == set(HERE)


def test_a_bundle_is_private_complete_and_never_overwrites(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "log").mkdir(parents=True)
    secrets = {
        "credential": "credential-of-a-node",
        "mesh_secret": "m" * 43 + "=",
        "ray_token": "token-of-ray-token",
        "ticket": "ticket-of-a-node",
    }
    (home / "node.json").write_text(json.dumps({**secrets, "coordinators": ["head.example.org:51888"]}))
    (home / "private.key").write_text("k" * 43 + "=\n")
    log = f"{secrets} {'k' * 43}= at 8.8.8.8 (head.example.org), meshray join meshray1_abcdef\n"
    (home / "log" / "agent.log").write_text(log)
    path = tmp_path / "report.tar.gz"
    environ = {"MESHRAY_HOME": str(home), "HTTPS_PROXY": "http://me:proxy-password@192.168.1.1:3128"}
    agent = FakeAgent({**BROKEN, "status": {"proxy": environ["HTTPS_PROXY"]}})
    outcome = type_in("doctor", "--bundle", str(path), agent=agent, environ=environ)
    assert str(path) in outcome.out
    assert path.stat().st_mode & 0o777 == 0o600
    files = unpacked(path)
    assert {"report.json", "status.json", "versions.json", "log/agent.log", "commands/nft.txt", "sysctl.txt"} <= set(
        files
    )
    everything = "".join(files.values())
    for secret in (*secrets.values(), "k" * 43, "meshray1_a", "proxy-password", "8.8.8.8", "head.example.org"):
        assert secret not in everything
    assert "public-" in files["log/agent.log"]

    again = type_in("doctor", "--bundle", str(path), agent=agent, environ=environ)
    assert again.code == 2
    assert unpacked(path) == files


def test_a_bundle_with_addresses_still_has_no_secrets(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "log").mkdir(parents=True)
    (home / "node.json").write_text('{"credential": "credential-of-a-node", "damaged')
    (home / "log" / "agent.log").write_text("8.8.8.8 credential-of-a-node\n")
    path = tmp_path / "report.tgz"
    environ = {"MESHRAY_HOME": str(home)}
    type_in("doctor", "--bundle", str(path), "--with-addresses", agent=FakeAgent(dict(BROKEN)), environ=environ)
    assert unpacked(path)["log/agent.log"] == "8.8.8.8 [removed]\n"


def test_a_bundle_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    outcome = type_in("doctor", "--bundle", str(tmp_path / "no" / "folder.tgz"), agent=FakeAgent(dict(BROKEN)))
    assert outcome.code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_declined_repair_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[str] = []

    def say_no(app: FakeApp, question: str, yes: bool) -> None:
        requests.append(question)
        raise MeshrayError("not_confirmed", "nothing was changed")

    monkeypatch.setattr(FakeApp, "confirm", say_no)
    agent = FakeAgent({"doctor": to_json(DoctorReport("head", (check("ray_running", "fail", "head", repair="ray"),)))})
    outcome = type_in("doctor", "--fix", agent=agent)
    assert requests == ["Start this node's Ray again. This interrupts what Ray runs on this node."]
    assert [op for op, _ in agent.asked] == ["doctor"]
    assert outcome.code == 3


def unpacked(path: Path) -> dict[str, str]:
    """Return the texts of an archive by name, without its one folder."""
    with tarfile.open(path) as archive:
        return {
            member.name.partition("/")[2]: file.read().decode()
            for member in archive.getmembers()
            if (file := archive.extractfile(member)) is not None
        }


def test_explain_shows_what_one_check_weighed() -> None:
    weighed = structs.replace(
        check("tcp", "fail", "gpu-3", fix="meshray up"),
        depends_on=("agent",),
        explanation=("not: the firewall, because gpu-2 is connected", "possible: its network"),
    )
    assert explanation_text(answer(check("agent", "ok"), weighed), "tcp").splitlines() == [
        "FAIL  the tcp [gpu-3]: tcp seen",
        "      fix: meshray up",
        "      not: the firewall, because gpu-2 is connected",
        "      possible: its network",
        "It is judged only if these pass: agent.",
    ]
    assert explanation_text(answer(check("agent", "ok")), "tcp") == "The check tcp does not apply to this mesh."


def test_explain_names_the_check_that_was_meant() -> None:
    outcome = type_in("doctor", "--explain", "coordinator_tpc", agent=FakeAgent(dict(BROKEN)))
    assert (outcome.code, "meshray doctor --explain coordinator_tcp" in outcome.err) == (2, True)
