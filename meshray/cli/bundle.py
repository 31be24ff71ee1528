"""`meshray doctor --bundle FILE`: an archive with everything that others need to diagnose this machine.

    report.json status.json map.json versions.json    log/     commands/     sysctl.txt     ray/     unread.txt

Every text passes `meshray.doctor.redact` first; nothing is sent anywhere.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import re
import stat
import subprocess
import tarfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from meshray import __version__
from meshray.cli.app import App
from meshray.cli.new_file import new_file
from meshray.defaults import INTERFACE
from meshray.doctor.redact import Redactor
from meshray.errors import MeshrayError, UsageError
from meshray.home import Home
from meshray.linux.trusted_files import find_program
from meshray.linux.user import User
from meshray.node.state_folder import failed_logs
from meshray.protocol.control import GetStatus
from meshray.raynode.temp_folder import used_folder

#: The number of lines of each log, from its end.
_LINES = 2000
_RAY_LINES = 400
_RAY_FILES = ("raylet.out", "raylet.err", "gcs_server.out", "gcs_server.err", "dashboard*.log", "monitor*.log")
#: The timeout of each command, seconds.
_COMMAND_S = 5.0
#: The state of the machine's network; `wg show` itself hides private and preshared keys.
_COMMANDS: Mapping[str, tuple[str, ...]] = {
    "ip-address": ("ip", "-details", "address"),
    "ip-route": ("ip", "route", "show", "table", "all"),
    "ip-6-route": ("ip", "-6", "route", "show", "table", "all"),
    "ip-rule": ("ip", "rule"),
    "ip-link": ("ip", "-statistics", "link", "show", "dev", INTERFACE),
    "wg": ("wg", "show", INTERFACE),
    "wg-version": ("wg", "--version"),
    "nft": ("nft", "list", "ruleset"),
    "iptables": ("iptables-save",),
    "ip6tables": ("ip6tables-save",),
    "ss": ("ss", "-tulpn"),
    "df": ("df", "-h"),
    "free": ("free", "-m"),
}
_SYSCTLS = (
    "kernel/osrelease",
    "kernel/unprivileged_userns_clone",
    "fs/file-max",
    "fs/file-nr",
    "net/core/rmem_max",
    "net/core/wmem_max",
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/default/rp_filter",
    f"net/ipv4/conf/{INTERFACE}/rp_filter",
    f"net/ipv4/conf/{INTERFACE}/forwarding",
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_max",
)
_PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
#: In a damaged node.json any long text may have been a secret.
_LONG_TEXT = re.compile(r"\"([^\"\s]{16,})\"")

Add = Callable[[str, str], None]


def require_free(path: Path) -> None:
    """Raise UsageError if something exists at this path, or no file can be created there."""
    if path.exists() or path.is_symlink():
        raise UsageError("file_exists", f"{path} exists already", hint="choose another name for --bundle")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise UsageError("bad_file", f"no file can be created in {path.absolute().parent}", hint="--bundle FILE")


def write_bundle(app: App, path: Path, report: Mapping[str, object], *, with_addresses: bool) -> None:
    """Write the archive, mode 0600; an incomplete one is removed.

    Args:
        report: the doctor's report, as ``--json`` shows it.

    Raises:
        UsageError: ``file_exists``.
        MeshrayError: ``bundle_failed``, for example because the disk is full.
    """
    redactor = redactor_for(app.home, app.environ, with_addresses=with_addresses)
    try:
        with new_file(path, "--bundle", app.environ) as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            _fill(app, report, lambda name, text: _put(archive, path, name, redactor.text(text)))
    except OSError as error:
        raise _failed(path, error) from None


def redactor_for(home: Home, environ: Mapping[str, str], *, with_addresses: bool) -> Redactor:
    """Return a redactor that knows every secret in the files of this home and in the environment."""
    return Redactor(
        secrets_of(home, environ),
        public_keys=_public_keys(home),
        names=_host_names(home, environ),
        with_addresses=with_addresses,
    )


def secrets_of(home: Home, environ: Mapping[str, str]) -> set[str]:
    """Return the secrets in this node's files and its environment."""
    files = (home.private_key, home.pending_key, home.identity_key, home.certificate_key, home.ray_token)
    found = {_read(path) for path in files}
    text = _read(home.enrolment)
    try:
        enrolment = json.loads(text)
        found |= {str(enrolment.get(key, "")) for key in ("credential", "mesh_secret", "ray_token", "ticket")}
        for key in ("older_mesh_secrets", "older_ray_tokens"):
            found |= set(map(str, enrolment.get(key, {}).values()))
    except (ValueError, AttributeError):
        found |= set(_LONG_TEXT.findall(text))
    for name in _PROXIES:
        with contextlib.suppress(ValueError):
            found.add(urlsplit(environ.get(name, "")).password or "")
    found.add(environ.get("RAY_AUTH_TOKEN", ""))
    return found - {""}


def _public_keys(home: Home) -> Iterator[str]:
    with contextlib.suppress(ValueError, AttributeError):
        for node in json.loads(_read(home.map_cache) or "{}").get("nodes", {}).values():
            yield str(node.get("public_key", ""))


def _host_names(home: Home, environ: Mapping[str, str]) -> Iterator[str]:
    """Return the host names of the coordinator and the proxy. Addresses are recognised without that."""
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        for endpoint in json.loads(_read(home.enrolment) or "{}").get("coordinators", []):
            yield from _name(str(endpoint).rpartition(":")[0])
    for name in _PROXIES:
        with contextlib.suppress(ValueError):
            yield from _name(urlsplit(environ.get(name, "")).hostname or "")


def _name(host: str) -> Iterator[str]:
    if "." in host and ":" not in host and not host.replace(".", "").isdigit():
        yield host


def _fill(app: App, report: Mapping[str, object], add: Add) -> None:
    home, unread = app.home, list[str]()
    add("report.json", _pretty(report))
    add("versions.json", _pretty(_versions()))
    add("map.json", _read(home.map_cache, unread))
    try:
        add("status.json", _pretty(app.control().request_json(GetStatus(), timeout_s=_COMMAND_S)))
    except MeshrayError as error:
        unread.append(f"status: {error.message}")
    for folder, name in ((home.logs, "log"), (failed_logs(home), "log.failed")):
        _add_logs(add, folder, name, ("*.log", "*.log.1"), lines=_LINES, unread=unread)
    # Ray's folders belong to its user, who may put symbolic links there: they are read with that user's permissions.
    user = _ray_user(home, app.environ)
    with user.impersonated():
        _add_logs(add, _ray_logs(app.environ, user), "ray", _RAY_FILES, lines=_RAY_LINES, unread=unread)
    for name, command in _COMMANDS.items():
        add(f"commands/{name}.txt", _output(command))
    add("sysctl.txt", "".join(f"{name} = {_read(Path('/proc/sys', name)).strip() or '-'}\n" for name in _SYSCTLS))
    add("unread.txt", "".join(f"{line}\n" for line in unread))


def _add_logs(add: Add, folder: Path, name: str, patterns: Iterable[str], *, lines: int, unread: list[str]) -> None:
    try:
        paths = sorted(
            {path for pattern in patterns for path in folder.glob(pattern) if path.is_file() and not path.is_symlink()}
        )
    except OSError as error:
        unread.append(f"{folder}: {error.strerror}")
        return
    for path in paths:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(handle, errors="replace") as file:
                if stat.S_ISREG(os.fstat(handle).st_mode):
                    add(f"{name}/{path.name}", "".join(deque(file, maxlen=lines)))
        except OSError as error:
            unread.append(f"{path}: {error.strerror}")


def _ray_logs(environ: Mapping[str, str], user: User) -> Path:
    """Return the folder with the logs of the last Ray that this user started on this machine."""
    return used_folder(environ, user) / "session_latest" / "logs"


def _ray_user(home: Home, environ: Mapping[str, str]) -> User:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return User.by_uid(int(json.loads(_read(home.enrolment))["person_uid"]))
    return User.invoking(environ)


def _versions() -> Mapping[str, object]:
    with contextlib.suppress(OSError):
        release = platform.freedesktop_os_release()
        return {**_program(), "system": release.get("PRETTY_NAME", "")}
    return _program()


def _program() -> Mapping[str, object]:
    return {
        "meshray": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _output(command: tuple[str, ...]) -> str:
    environ = {**os.environ, "LC_ALL": "C", "WG_HIDE_KEYS": "always"}
    program = find_program(command[0], os.environ)
    if program is None:
        return f"{command[0]}: not found\n"
    try:
        done = subprocess.run(
            [str(program), *command[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMMAND_S,
            env=environ,
            check=False,
        )
    except OSError as error:
        return f"{command[0]}: {error.strerror}\n"
    except subprocess.TimeoutExpired:
        return f"{command[0]}: timed out after {_COMMAND_S:.0f} s\n"
    return done.stdout + done.stderr


def _put(archive: tarfile.TarFile, path: Path, name: str, text: str) -> None:
    content = text.encode(errors="replace")
    entry = tarfile.TarInfo(f"{path.name.removesuffix('.gz').removesuffix('.tar').removesuffix('.tgz')}/{name}")
    entry.size, entry.mode, entry.mtime = len(content), 0o600, int(time.time())
    archive.addfile(entry, io.BytesIO(content))


def _read(path: Path, unread: list[str] | None = None) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        if unread is not None:
            unread.append(f"{path}: {error.strerror}")
        return ""


def _pretty(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _failed(path: Path, error: OSError) -> MeshrayError:
    return MeshrayError("bundle_failed", f"{path} cannot be written: {error.strerror or error}", hint="--bundle FILE")
