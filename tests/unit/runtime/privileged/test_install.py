"""Root's own copy of meshray."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

from meshray.cli.privileged import clean
from meshray.errors import MeshrayError
from meshray.installation.distributions import needed
from meshray.installation.programs import ORIGIN, origin_of
from meshray.runtime.privileged import install, interpreter, packing


@pytest.fixture(scope="module")
def packed() -> bytes:
    out = io.BytesIO()
    packing.write(out)
    return out.getvalue()


def archive(*entries: tarfile.TarInfo) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w|") as built:
        for entry in entries:
            built.addfile(entry, io.BytesIO(b"x" * entry.size))
    out.seek(0)
    return out


def entry(name: str, **changes: object) -> tarfile.TarInfo:
    built = tarfile.TarInfo(name)
    built.size = 1
    for field, value in changes.items():
        setattr(built, field, value)
    return built


def test_the_copy_has_all_that_meshray_needs_and_knows_its_parts(packed: bytes, tmp_path: Path) -> None:
    install.unpack(io.BytesIO(packed), tmp_path)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import meshray, aiohttp, cryptography, json\n"
        "from importlib.metadata import distribution\n"
        "from meshray.render.templates import folder\n"
        "print(json.dumps([meshray.__file__, aiohttp.__file__, str(folder()),"
        " len(distribution('meshray').files), len(distribution('aiohttp').files)]))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, str(tmp_path)], capture_output=True, text=True, check=True, cwd="/"
    )
    *places, own, other = json.loads(done.stdout)
    assert all(Path(install_copy).is_relative_to(tmp_path) for install_copy in places)
    assert own > 200
    assert other > 50
    assert (tmp_path / "meshray/templates/meshray.service.j2").exists()


def test_compiled_files_are_copied_and_stay_valid(packed: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed)) as found:
        times = {member.name: member.mtime for member in found}
    compiled = f"aiohttp/__pycache__/client.{sys.implementation.cache_tag}.pyc"
    assert compiled in times
    assert times["aiohttp/client.py"] == int(times["aiohttp/client.py"])


@pytest.mark.parametrize(
    "bad",
    [
        entry("/etc/passwd"),
        entry("../outside"),
        entry("a/../../outside"),
        entry("link", type=tarfile.SYMTYPE, linkname="/etc/shadow", size=0),
        entry("hard", type=tarfile.LNKTYPE, linkname="/etc/shadow", size=0),
        entry("device", type=tarfile.CHRTYPE, size=0),
        entry("folder", type=tarfile.DIRTYPE, size=0),
    ],
    ids=lambda bad: bad.name,
)
def test_a_hostile_archive_makes_nothing_outside(bad: tarfile.TarInfo, tmp_path: Path) -> None:
    with pytest.raises(MeshrayError) as raised:
        install.unpack(archive(entry("package/fine.py"), bad), tmp_path / "site")
    assert raised.value.code == "install_failed"
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {"fine.py"}


def test_one_name_twice_does_not_follow_what_was_made(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        install.unpack(archive(entry("package/fine.py"), entry("package/fine.py")), tmp_path)


def test_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "_MAX_FILES", 2)
    with pytest.raises(MeshrayError, match="larger"):
        install.unpack(archive(*(entry(f"p/{number}") for number in range(3))), tmp_path)


def test_modes_are_roots_choice(tmp_path: Path) -> None:
    install.unpack(archive(entry("p/tool", mode=0o7777), entry("p/text", mode=0o666)), tmp_path)
    assert (tmp_path / "p/tool").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "p/text").stat().st_mode & 0o7777 == 0o644
    assert (tmp_path / "p").stat().st_mode & 0o7777 == 0o755


def test_the_fingerprint_changes_with_meshray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = install.fingerprint()
    assert install.fingerprint() == before
    other = tmp_path / "x.py"
    other.write_text("")
    monkeypatch.setattr(install, "own_files", lambda: [("meshray/x.py", other)])
    assert install.fingerprint() != before


def test_without_a_trusted_python_each_candidate_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        interpreter, "rejection_reason", lambda python: f"{python.parent} can be changed by users other than root"
    )
    monkeypatch.setattr(interpreter, "_copied", lambda name, root: None)
    found, rejected = interpreter.find(tmp_path)
    assert found is None
    assert rejected
    error = install._no_python(rejected)
    assert error.code == "no_trusted_python"
    assert "--trust-user-environment" in (error.hint or "")
    assert str(rejected[0].python) in error.message


def test_the_interpreter_of_these_tests_is_looked_at_whole() -> None:
    reason = interpreter.rejection_reason(Path(sys._base_executable))  # type: ignore[attr-defined]
    assert reason == "" or "can be changed" in reason or "users other than root" in reason


def test_an_interpreter_of_another_version_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho \'{"tag": "cpython-27", "suffix": ".so", "paths": []}\'\n')
    fake.chmod(0o755)
    monkeypatch.setattr(interpreter, "first_untrusted", lambda path: None)
    assert "built for another" in interpreter.rejection_reason(fake)
    fake.write_text("#!/bin/sh\nexit 1\n")
    assert "does not start" in interpreter.rejection_reason(fake)


def test_a_copy_remembers_where_ray_may_be(tmp_path: Path) -> None:
    assert origin_of(tmp_path) is None
    (tmp_path / ORIGIN).write_text("no json")
    assert origin_of(tmp_path) is None
    (tmp_path / ORIGIN).write_text(json.dumps({"origin": "/home/ann/ray/bin"}))
    assert origin_of(tmp_path) == Path("/home/ann/ray/bin")


def test_root_gets_no_variable_that_loads_code() -> None:
    environ = {"PATH": "/bin", "LD_PRELOAD": "x", "PYTHONPATH": "x", "ENV": "x", "SUDO_UID": "1", "ENVIRONMENT": "lab"}
    assert clean(environ) == {"PATH": "/bin", "SUDO_UID": "1", "ENVIRONMENT": "lab"}


def test_everything_that_meshray_needs_is_found() -> None:
    names = {found.metadata["Name"].lower() for found in needed(distribution("meshray"))}
    assert {"aiohttp", "cryptography", "cffi", "pyroute2", "rich", "click"} <= names
    assert "ray" not in names
    assert os.sep not in "".join(names)
