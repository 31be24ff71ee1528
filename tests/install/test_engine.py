"""The builder patches the pinned WireGuard library, which still passes its tests and sends the same bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import hatch_build
from tests.lab.host import REPOSITORY

ENGINE = (REPOSITORY / hatch_build.ENGINE).parent
STATIC = {"CGO_ENABLED": "0"}
#: Seconds of each fuzzer here. `go -C builder run . test -fuzz NAME -fuzztime 1h PACKAGE` runs one for longer.
FUZZ_S = 2


def go() -> str:
    """Return the Go of this machine, or the one that scripts/setup.sh fetched."""
    unpacked = REPOSITORY / ".cache/go/go/bin/go"
    found = os.environ.get("GO") or shutil.which("go") or str(unpacked)
    assert Path(found).exists() or shutil.which(found), "no Go: make engine"
    return found


def build(
    *words: str | Path, engine: Path = ENGINE, settings: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the builder on a folder of the engine's sources."""
    command: Sequence[str | Path] = [go(), "-C", ENGINE / "builder", "run", ".", "-go", go(), "-engine", engine, *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=900, env={**os.environ, **(settings or {})}
    )


def passes(*words: str | Path, **settings: str) -> str:
    """Run tests through the builder, and return their output."""
    done = build("test", *words, settings=settings)
    assert done.returncode == 0, f"{words}: {done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a copy of the engine's sources."""
    return shutil.copytree(ENGINE, tmp_path / "engine", ignore=shutil.ignore_patterns(hatch_build.ENGINE))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", ["inline", "parallel"])
def test_the_patched_library_passes_its_own_tests_and_ours(path: str) -> None:
    output = passes("-path", path, "engine", "device", "conn", "tun")
    assert output.count("PASS") == 4


@pytest.mark.timeout(900)
def test_neither_data_path_has_a_data_race() -> None:
    if shutil.which("gcc") is None:
        pytest.skip("the race detector needs gcc")
    # TestConcurrencySafety is the library's test for this. The transcript's 10,000 packets take long with the detector.
    tests = "TestConcurrencySafety|TestTwoDevicePing|TestReordered|TestRekey|TestPeerRoams|TestUpDown"
    for path in ("inline", "parallel"):
        passes("-race", "-path", path, "-run", tests, "device", CGO_ENABLED="1")
    passes("-race", "-run", "TestDatagrams|TestClose", "engine", CGO_ENABLED="1")


@pytest.mark.timeout(900)
def test_random_packets_are_the_same_bytes_with_and_without_the_patch(tmp_path: Path) -> None:
    transcripts = []
    for number, words in enumerate((["-unpatched"], ["-path", "inline"], ["-path", "parallel"])):
        transcript = tmp_path / str(number)
        passes(*words, "-run", "TestTranscript", "device", MESHRAY_TRANSCRIPT=str(transcript))
        transcripts.append(transcript.read_bytes())
    assert len(transcripts[0]) > 10_000_000
    assert transcripts[1] == transcripts[0]
    assert transcripts[2] == transcripts[0]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("package", "fuzzer"),
    [
        ("device", "FuzzDatagrams"),
        ("device", "FuzzContents"),
        ("engine", "FuzzSplit"),
        ("engine", "FuzzJoin"),
        ("engine", "FuzzControl"),
    ],
)
def test_hostile_packets_break_nothing(package: str, fuzzer: str) -> None:
    passes("-fuzz", f"^{fuzzer}$", "-fuzztime", f"{FUZZ_S}s", "-run", "^$", package)


def test_a_patch_that_does_not_apply_stops_the_build_with_one_line(copy: Path, tmp_path: Path) -> None:
    patch = copy / "wireguard.patch"
    text, context = patch.read_text(), " 	device := new(Device)\n"
    assert text.count(context) == 1
    patch.write_text(text.replace(context, " 	device := new(Other)\n"))
    done = build("build", "-o", tmp_path / "built", ".", engine=copy)
    assert done.returncode != 0
    line, status = done.stderr.splitlines()
    assert status == "exit status 1"
    version = "v0.0.0-20260522210424-ecfc5a8d5446"
    expected = (
        f"engine: wireguard.patch does not apply to device/device.go of golang.zx2c4.com/wireguard {version}: hunk "
    )
    assert line.startswith(expected)
    assert not (tmp_path / "built").exists()


def test_a_file_that_the_library_no_longer_has_stops_the_build(copy: Path, tmp_path: Path) -> None:
    patch = copy / "wireguard.patch"
    patch.write_text(patch.read_text().replace("device/peer.go", "device/gone.go"))
    done = build("build", "-o", tmp_path / "built", ".", engine=copy)
    assert "does not apply to device/gone.go" in done.stderr
    assert "the library has no such file" in done.stderr


def test_an_engine_for_another_processor_is_static_and_has_no_path_of_this_clone(tmp_path: Path) -> None:
    for arch in ("arm64", "arm"):
        engine = tmp_path / arch
        done = build("-arch", arch, "build", "-trimpath", "-ldflags", "-s -w", "-o", engine, ".", settings=STATIC)
        assert done.returncode == 0, done.stderr
        content = engine.read_bytes()
        assert content[:4] == b"\x7fELF"
        assert content[18] == {"arm64": 0xB7, "arm": 0x28}[arch]
        assert str(REPOSITORY).encode() not in content
        assert b"meshray-engine-" not in content  # the builder's temporary folder
    assert not (ENGINE / "_wireguard").exists()
