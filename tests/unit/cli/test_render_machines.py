"""`meshray render cloud-init` and `meshray render ansible`: their options, their files and their errors."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import yaml

from meshray import __version__
from meshray.render.ansible import FOLDER
from tests.unit.cli.fakes import type_in
from tests.unit.cli.test_bring_up import TOKEN as PARSED_TOKEN

TOKEN = PARSED_TOKEN.encode()


def test_user_data_with_a_token_is_a_file_for_its_owner(tmp_path: Path) -> None:
    file = tmp_path / "gpu-1.yaml"
    file.touch(mode=0o644)
    words = ("render", "cloud-init", "-", "--name", "GPU-1", "--wait", "10m", "--no-ray", "--meshray", "/opt/m")
    written = type_in(*words, "-o", str(file), stdin=io.StringIO(TOKEN + "\n"))
    assert (written.code, written.out) == (0, "")
    assert file.stat().st_mode & 0o777 == 0o600
    token, script = yaml.safe_load(file.read_text())["write_files"]
    assert token["content"] == TOKEN
    assert "--name gpu-1 --no-ray" in script["content"]
    assert "+ 600))" in script["content"]
    assert "pip install" not in script["content"]


def test_user_data_of_a_head_needs_no_token() -> None:
    shown = type_in("render", "cloud-init", "--role", "head", "--advertise", "h.example.org", "--ray-arg=--num-cpus=4")
    (script,) = yaml.safe_load(shown.out)["write_files"]
    assert '"$program" init --advertise h.example.org -- --num-cpus=4' in script["content"]
    assert json.loads(type_in("render", "cloud-init", "--terraform", "--json").out)["kind"] == "cloud-init"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), "usage"),
        ((TOKEN, "--role", "head"), "token_not_needed"),
        ((TOKEN, "--terraform"), "token_not_needed"),
        ((TOKEN, "--advertise", "h"), "advertise_needs_head"),
        ((TOKEN, "--no-ray", "--ray-arg=--num-cpus=1"), "no_ray_with_ray"),
        ((TOKEN, "--name", "no name"), "bad_name"),
        ((TOKEN, "--wait", "soon"), "bad_duration"),
    ],
)
def test_a_contradiction_is_refused(words: tuple[str, ...], code: str) -> None:
    outcome = type_in("render", "cloud-init", "--json", *words)
    assert (outcome.code, json.loads(outcome.out)["error"]["code"]) == (2, code)


def test_the_playbook_has_a_play_for_each_role() -> None:
    plays = yaml.safe_load(type_in("render", "ansible").out)
    assert [play["hosts"] for play in plays] == ["headnode", "workernode"]
    (worker,) = yaml.safe_load(type_in("render", "ansible", "--role", "worker").out)
    assert (worker["hosts"], worker["roles"]) == ("workernode", [{"role": "meshray.mesh.node"}])


def test_the_collection_is_an_archive_with_this_version(tmp_path: Path) -> None:
    file = tmp_path / "mesh.tgz"
    assert type_in("render", "ansible", "--collection", "-o", str(file)).code == 0
    with tarfile.open(file) as tar:
        names = set(tar.getnames())
        galaxy = tar.extractfile(f"{FOLDER}/galaxy.yml")
        assert galaxy is not None
        assert yaml.safe_load(galaxy)["version"] == __version__
    assert {f"{FOLDER}/plugins/modules/{name}.py" for name in ("node", "token")} <= names
    assert not [name for name in names if name.endswith((".j2", ".pyc"))]
    refused = type_in("render", "ansible", "--collection", "--json")
    assert (refused.code, json.loads(refused.out)["error"]["code"]) == (2, "output_missing")
    both = type_in("render", "ansible", "--collection", "--role", "head", "-o", str(file), "--json")
    assert (both.code, json.loads(both.out)["error"]["code"]) == (2, "collection_with_role")


def test_the_committed_playbook_of_the_collection_is_the_rendered_one(tmp_path: Path) -> None:
    file = tmp_path / "mesh.tgz"
    type_in("render", "ansible", "--collection", "-o", str(file))
    with tarfile.open(file) as tar:
        site = tar.extractfile(f"{FOLDER}/playbooks/site.yml")
        assert site is not None
        assert yaml.safe_load(site) == yaml.safe_load(type_in("render", "ansible").out)
