"""cloud-init as the distribution packages it, unpacked into the tests' cache and never installed.

    python -m tests.cloud_init_programs    fetches it; `scripts/setup.sh test` runs this

An installed cloud-init runs at the machine's next boot. On a cloud's machine it may then replace sshd's keys, accounts
and the list of mirrors. Unpacked files run only when a test starts them.

apt chooses and verifies the packages: cloud-init, and what it depends on and this machine lacks. They are in
$XDG_CACHE_HOME/meshray-tests, by default ~/.cache/meshray-tests, and fetched again if they do not run any more, such as
after an upgrade of the distribution.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "meshray-tests"
#: A folder with the packages' /usr.
PLACE = CACHE / "cloud-init"
#: A root's download does not need apt's own user, which cannot enter root's home.
_APT = ["apt-get", "-q", "-y", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root"]
_FETCH_S = 300


def missing() -> str:
    """Return what this machine lacks to unpack the packages; empty if nothing."""
    return "" if shutil.which("apt-get") and shutil.which("dpkg-deb") else "apt-get and dpkg-deb (Debian or Ubuntu)"


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command of cloud-init that changes nothing."""
    return _run(PLACE, *map(str, words))


def make() -> None:
    """Fetch and unpack the packages if they are missing.

    Raises:
        subprocess.CalledProcessError: the packages cannot be had, or do not run; nothing remains of them.
    """
    if run("--version").returncode == 0:
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        waiting = Path(folder)
        (waiting / "archives/partial").mkdir(parents=True)
        _fetch(waiting / "archives")
        for package in sorted((waiting / "archives").glob("*.deb")):
            subprocess.run(["dpkg-deb", "--extract", package, waiting / "tree"], check=True, timeout=_FETCH_S)
        # The rest is in /etc and /lib: units of systemd, and hooks of a DHCP client.
        (waiting / "place").mkdir()
        (waiting / "tree/usr").rename(waiting / "place/usr")
        _run(waiting / "place", "--version").check_returncode()
        shutil.rmtree(PLACE, ignore_errors=True)
        (waiting / "place").rename(PLACE)


def _fetch(archives: Path) -> None:
    # An installed cloud-init, which only its own machine may run, is fetched as well.
    words = ["install", "--download-only", "--no-install-recommends", "--reinstall", "cloud-init"]
    download = [*_APT, "-o", f"Dir::Cache::archives={archives}", *words]
    if subprocess.run(download, check=False, timeout=_FETCH_S).returncode:
        subprocess.run([*_APT, "update"], check=True, timeout=_FETCH_S)  # The lists may be old.
        subprocess.run(download, check=True, timeout=_FETCH_S)


def _run(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    packages = {"PYTHONPATH": str(place / "usr/lib/python3/dist-packages"), "PYTHONDONTWRITEBYTECODE": "1"}
    argv = ["/usr/bin/python3", str(place / "usr/bin/cloud-init"), *words]
    environ = {**os.environ, **packages}
    return subprocess.run(argv, check=False, env=environ, capture_output=True, text=True, timeout=60)


if __name__ == "__main__":
    if missing():
        print(f"cloud-init's tests will be skipped: this machine lacks {missing()}")
    else:
        make()
