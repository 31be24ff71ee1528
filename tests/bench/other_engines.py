"""The engines that the engine benchmark builds for comparison: current wireguard-go, Tailscale's, and boringtun.

Only `make bench` builds them, and only for the section `engine`. requirements/bench/ names the versions and the
checksums. If one cannot be built, the benchmark measures without it and reports the reason.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.go_programs import BUILD_S, CACHE, FETCH_S, NICENESS, REQUIREMENTS, Module, building, discard_go_caches

_GROUP = "bench"
CURRENT, TAILSCALE, BORINGTUN = "current wireguard-go", "tailscaled", "boringtun"
_WIREGUARD_GO = Module(
    _GROUP, "wireguard", "golang.zx2c4.com/wireguard", {"wireguard-go": "golang.zx2c4.com/wireguard"}
)
TAILSCALE_MODULE = Module(
    _GROUP,
    "tailscale",
    "tailscale.com",
    {"tailscaled": "tailscale.com/cmd/tailscaled", "control": "."},
    # The command line is part of the daemon. Features that no packet of the benchmark passes are left out.
    tags=",".join((REQUIREMENTS / _GROUP / "tailscale" / "tags.txt").read_text().split()),
)
#: Cargo.toml names boringtun's version, and Cargo.lock the checksums of its source and of all that it needs.
_CRATES = REQUIREMENTS / _GROUP / "boringtun"
_CRATE = "boringtun-cli"


def _crate_version() -> str:
    found = re.search(rf'^{_CRATE} = "=([^"]+)"', (_CRATES / "Cargo.toml").read_text(), re.MULTILINE)
    assert found, f"{_CRATES / 'Cargo.toml'} does not require one version of {_CRATE}"
    return found[1]


def _crate_place() -> Path:
    source = "".join((_CRATES / file).read_text() for file in ("Cargo.lock", "Cargo.toml"))
    return CACHE / f"boringtun-{_crate_version()}-{hashlib.sha256(source.encode()).hexdigest()[:8]}"


#: Of each engine that `wg` configures, the words before the name of its interface.
COMMANDS = {
    CURRENT: (_WIREGUARD_GO.place / "wireguard-go", "-f"),
    BORINGTUN: (_crate_place() / "bin" / _CRATE, "--foreground", "--disable-drop-privileges"),
}


def build_missing(report: Callable[[str], None]) -> dict[str, str]:
    """Build the engines that are not in the cache; return the reason for each that cannot be measured."""
    modules = {CURRENT: _WIREGUARD_GO, TAILSCALE: TAILSCALE_MODULE}
    builders: dict[str, Callable[[], None]] = {name: partial(_build_go, module) for name, module in modules.items()}
    builders[BORINGTUN] = _build_boringtun
    reasons = {}
    with building(_GROUP, tuple(modules.values())):
        for name, build in builders.items():
            report(f"{name}: is built now unless it is in the cache")
            try:
                build()
            except FileNotFoundError as error:
                reasons[name] = str(error)
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                reasons[name] = f"its build failed ({type(error).__name__})"
        if not reasons.keys() & modules:
            discard_go_caches(_GROUP)
    return reasons


def _build_go(module: Module) -> None:
    missing = [name for name in module.packages if not (module.place / name).exists()]
    if missing:
        go = os.environ.get("GO") or _find("go", "Go")
        for name in missing:
            module.build(go, name)


def _build_boringtun() -> None:
    place = _crate_place()
    if (place / "bin" / _CRATE).exists():
        return
    cargo = ["nice", "-n", str(NICENESS), _find("cargo", "cargo")]
    work = CACHE / f"{_GROUP}-cargo"
    env = {**os.environ, "CARGO_HOME": str(work), "CARGO_TARGET_DIR": str(work / "target")}
    # cargo compares what it fetches with the checksums. A program without a library cannot be built as a dependency.
    fetch = [*cargo, "fetch", "--quiet", "--locked", "--manifest-path", str(_CRATES / "Cargo.toml")]
    subprocess.run(fetch, env=env, stdin=subprocess.DEVNULL, check=True, timeout=FETCH_S)
    (source,) = work.glob(f"registry/src/*/{_CRATE}-{_crate_version()}")
    install = [*cargo, "install", "--quiet", "--locked", "--offline", "--path", str(source), "--root", str(place)]
    subprocess.run(install, env=env, stdin=subprocess.DEVNULL, check=True, timeout=BUILD_S)
    shutil.rmtree(work)


def _find(program: str, name: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed")
    return found


def versions() -> str:
    """Return the versions of the engines that this module builds."""
    revision = _WIREGUARD_GO.version.rsplit("-", 1)[-1]
    return f"{CURRENT} {revision}, {TAILSCALE} {TAILSCALE_MODULE.version}, {BORINGTUN} {_crate_version()}"
