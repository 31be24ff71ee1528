"""State on disk: complete, private, and with a clear error if it is damaged."""

import json
from dataclasses import MISSING, fields, replace
from pathlib import Path

import pytest

from meshray.errors import MeshrayError, UsageError
from meshray.home import Home
from meshray.model.keys import MeshSecret, PrivateKey
from meshray.node.enrolment import MATCH, Enrolment, load_private_key, parse_open, save_private_key
from meshray.node.map_cache import load_map, save_map
from meshray.node.state_folder import delete_state
from meshray.raynode.user_environment import UserEnvironment
from tests.unit.agent.sample import MAP, WORKER_A, enrolment


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "state", tmp_path / "run")


def test_saved_state_is_loaded(home: Home) -> None:
    mine, key = replace(enrolment(WORKER_A), transport="wss", open=("22",), unguarded=True), PrivateKey.generate()
    mine.save(home)
    save_private_key(home, key)
    save_map(home, MAP)
    assert (Enrolment.load(home), load_private_key(home), load_map(home)) == (mine, key, MAP)


def test_every_field_has_its_place_in_the_file(home: Home) -> None:
    mine = replace(
        enrolment(WORKER_A),
        hosts_coordinator=True,
        ephemeral=True,
        with_ray=False,
        ray="/opt/ray/bin/ray",
        ray_args=("--num-cpus=2",),
        labels={"site": "cellar"},
        taken_out=True,
        transport="wss",
        observed="192.0.2.1",
        ticket="ticket",
        rootless=True,
        env=MATCH,
        trust_user_environment=True,
        secret_epoch=5,
        older_mesh_secrets={4: MeshSecret.generate()},
        older_ray_tokens={4: "older"},
        open=("22", "all"),
        exposed=(8265,),
        unguarded=True,
        no_remote=True,
        environment=UserEnvironment({"LANG": "C"}, {"EPOCHS": "3"}),
        external=True,
    )
    for item in fields(Enrolment):
        assert item.default is MISSING or getattr(mine, item.name) != item.default, f"{item.name}: not tested"
    mine.save(home)
    assert Enrolment.load(home) == mine
    kept = json.loads(home.enrolment.read_text())
    renamed = {"user_uid": "person_uid"}
    assert set(kept) == {renamed.get(item.name, item.name) for item in fields(Enrolment)} | {"session_environment"}


@pytest.mark.parametrize("item", ["0", "65536", "-1", "22/tcp", "ALL", "", "٢٢", "000000022"])
def test_invalid_open_items_are_refused(item: str) -> None:
    with pytest.raises(UsageError, match="neither a port nor all"):
        parse_open(["22", item])


def test_open_ports_are_parsed() -> None:
    mine = replace(enrolment(WORKER_A), open=parse_open(["22", "0022", "all"]))
    assert (mine.open, mine.open_ports, mine.open_all) == (("22", "all"), (22,), True)


def test_other_users_cannot_read_it(home: Home) -> None:
    enrolment(WORKER_A).save(home)
    save_private_key(home, PrivateKey.generate())
    save_map(home, MAP)
    assert home.state.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in home.state.iterdir()} == {0o600}


def test_secrets_are_in_no_repr() -> None:
    shown = repr(enrolment(WORKER_A))
    assert "credential-part" not in shown
    assert "ray-part" not in shown


def test_every_file_that_is_missing_has_its_own_code(home: Home) -> None:
    for load, code in (
        (Enrolment.load, "not_enrolled"),
        (load_private_key, "state_damaged"),
        (load_map, "no_map"),
    ):
        with pytest.raises(MeshrayError) as caught:
            load(home)
        assert caught.value.code == code
        assert "meshray" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"mesh": {"id": 7}}', b'{"nodes": []}'])
def test_damaged_files_are_loud_and_kept(home: Home, content: bytes) -> None:
    home.state.mkdir()
    for path, load in (
        (home.enrolment, Enrolment.load),
        (home.map_cache, load_map),
        (home.private_key, load_private_key),
    ):
        path.write_bytes(content)
        with pytest.raises(MeshrayError) as caught:
            load(home)
        assert caught.value.code in ("state_damaged", "cache_damaged")
        assert str(path) in caught.value.message
        assert path.read_bytes() == content


def test_removing_the_state_leaves_foreign_files(home: Home) -> None:
    enrolment(WORKER_A).save(home)
    (home.state / "thesis.tex").write_text("mine")
    delete_state(home)
    assert [file.name for file in home.state.iterdir()] == ["thesis.tex"]
