"""The command that installs meshray again with its engine names the source from which it was installed."""

from __future__ import annotations

import io
import json
import tarfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from meshray import __version__
from meshray.installation import reinstall
from meshray.runtime.privileged import packing

PYTHON = Path("/home/ann/ray/bin/python")
PIP = f"MESHRAY_BUILD_ENGINE=1 {PYTHON} -m pip install --force-reinstall --no-deps --no-cache-dir"
GIT = {"url": "https://example.org/m.git", "vcs_info": {"vcs": "git", "commit_id": "1d0c"}}


class Installed:
    """A distribution with these files beside its metadata."""

    def __init__(self, **files: str) -> None:
        self.files = files

    def read_text(self, name: str) -> str | None:
        return self.files.get(name)


def command(monkeypatch: pytest.MonkeyPatch, origin: str, installer: str = "pip\n") -> str:
    files = {"direct_url.json": origin, "INSTALLER": installer}
    monkeypatch.setattr(reinstall, "distribution", lambda name: Installed(**files))
    return reinstall.reinstall_command(PYTHON)


@pytest.mark.parametrize(
    ("origin", "source"),
    [
        (GIT, "git+https://example.org/m.git@1d0c"),
        ({"url": "file:///home/ann/my%20clone", "dir_info": {}}, "'/home/ann/my clone'"),
        (
            {"url": "https://example.org/m-1.tar.gz", "archive_info": {"hash": "sha256=00"}},
            "https://example.org/m-1.tar.gz",
        ),
        ({"url": "https://example.org/a;b", "archive_info": {}}, "'https://example.org/a;b'"),
    ],
)
def test_pip_installs_again_from_the_same_source(
    monkeypatch: pytest.MonkeyPatch, origin: dict[str, object], source: str
) -> None:
    assert command(monkeypatch, json.dumps(origin)) == f"{PIP} {source}"


@pytest.mark.parametrize(
    "origin", ["", "no json", "[]", "{}", '{"url": "x", "vcs_info": 3}', '{"url": "x", "dir_info": []}']
)
def test_without_a_usable_record_it_came_from_an_index(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    assert command(monkeypatch, origin) == f"{PIP} meshray=={__version__}"


def test_uv_installs_again_what_uv_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = f"MESHRAY_BUILD_ENGINE=1 uv pip install --python {PYTHON} --reinstall --no-deps --no-cache"
    assert command(monkeypatch, json.dumps(GIT), "uv") == f"{expected} git+https://example.org/m.git@1d0c"


def test_in_a_clone_the_engine_is_built_there(monkeypatch: pytest.MonkeyPatch) -> None:
    editable = json.dumps({"url": "file:///home/ann/m", "dir_info": {"editable": True}})
    assert command(monkeypatch, editable) == "make -C /home/ann/m engine"

    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(reinstall, "distribution", missing)
    assert reinstall.reinstall_command(PYTHON) == f"make -C {Path(__file__).resolve().parents[3]} engine"


def test_the_copy_that_root_runs_knows_from_where_meshray_was_installed() -> None:
    archive = io.BytesIO()
    packing.write(archive)
    archive.seek(0)
    with tarfile.open(fileobj=archive, mode="r") as opened:
        file = opened.extractfile(f"meshray-{__version__}.dist-info/direct_url.json")
        assert file is not None
        kept = file.read().decode()
    here = Path(__file__).resolve().parents[3]
    assert reinstall.read_origin(kept) == ("", here)
