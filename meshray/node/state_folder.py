"""The state folders of a node: locked by one command at a time, checked, and removed.

with claimed(home) as release:
    require_clean(home)                 # no files of another program in it
    ...
    delete_state(home, keep_logs=True)  # this machine left the mesh; `meshray logs` still works
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from meshray.errors import MeshrayError
from meshray.home import Home
from meshray.linux.files import make_folder

#: Files that a machine outside a mesh may have: the keys of a killed join (with the same keys it becomes the same
#: node), the run folder of a node without root, and logs.
_HARMLESS = {"log", "log.failed", "run", "private.key", "identity.key", "identity.json"}
#: Files that only an enrolled node has.
_NODE_FILES = {
    "node.json",
    "map.json",
    "coordinator.db",
    "coordinator.crt",
    "coordinator.key",
    "audit.log",
    "audit.log.1",
    "pins.json",
    "offered_token",
    "version.json",
    "versions",
    "wheels",
}
#: Files of a node without root in its run folder; see `meshray.runtime.rootless.holder`.
NAMESPACE_FILES = ("namespace.json", "hosts", "resolv.conf", "meshray0.sock")
#: Prefixes of unfinished files.
_UNFINISHED = (".", "coordinator.db.new", "coordinator.db-")


def failed_logs(home: Home) -> Path:
    """Return the folder with the logs of an init or join that was rolled back."""
    return home.state / "log.failed"


@contextlib.contextmanager
def claimed(home: Home) -> Iterator[Callable[[], None]]:
    """Create the state folder and lock it against other commands, until the block ends or ``release`` is called.

    Raises:
        MeshrayError: ``busy``, if another command has the lock.
    """
    # An existing folder keeps its mode until it is known to be meshray's: it could be /etc.
    if not home.state.is_dir():
        make_folder(home.state)
    handle = os.open(home.state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MeshrayError(
                "busy", "another meshray command is changing this node", hint="wait until it has ended"
            ) from None
        yield lambda: fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        with contextlib.suppress(OSError):  # remove the folder if it is still empty
            home.state.rmdir()
        os.close(handle)


def is_claimed(home: Home) -> bool:
    """Return whether a command is changing this node."""
    try:
        handle = os.open(home.state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def require_clean(home: Home) -> None:
    """Raise MeshrayError if the state folder contains files of another program, or an incomplete node."""
    found = {entry.name for entry in home.state.iterdir() if not entry.name.startswith(_UNFINISHED)} - _HARMLESS
    if node_files := sorted(found & _NODE_FILES):
        raise MeshrayError(
            "state_damaged",
            f"{home.state} contains {', '.join(node_files)}, but not the enrolment of this node (node.json)",
            hint="restore node.json from a backup, or: meshray leave --yes",
        )
    if found:
        raise MeshrayError(
            "state_foreign",
            f"{home.state} is not empty ({', '.join(sorted(found)[:3])}): meshray needs its own folder",
            hint=f"MESHRAY_HOME={free_folder(home)}",
        )


def free_folder(home: Home, default: Path | None = None) -> Path:
    """Return a free folder to use instead of one with files of another program.

    Args:
        default: the state folder without MESHRAY_HOME; it is returned if it is another folder and free.
    """
    if default is not None and default != home.state and _is_free(default):
        return default
    # A subfolder of a chosen folder, or a sibling of the default one, which belongs to meshray alone.
    first = home.state.with_name(f"{home.state.name}-2") if default == home.state else home.state / "meshray"
    others = (home.state.with_name(f"{home.state.name}-{number}") for number in itertools.count(2))
    return next(folder for folder in (first, *itertools.islice(others, 100)) if _is_free(folder))


def _is_free(folder: Path) -> bool:
    try:
        return not os.path.lexists(folder) or not any(folder.iterdir())
    except OSError:
        return False


def is_harmless(home: Home) -> bool:
    """Return whether the folder contains only files of a failed or killed join."""
    return all(entry.name in _HARMLESS or entry.name.startswith(_UNFINISHED) for entry in home.state.iterdir())


def delete_state(home: Home, *, keep_logs: bool = False, keep_keys: bool = False) -> None:
    """Remove the files of meshray. Other files are kept, and so are folders that contain some.

    Args:
        keep_logs: move the logs to `failed_logs`, replacing those of an earlier attempt.
        keep_keys: keep key and identity, with which a join becomes the same node again.
    """
    if home.logs.is_dir() or not keep_logs:
        shutil.rmtree(failed_logs(home), ignore_errors=True)
    if home.logs.is_dir() and keep_logs:
        home.logs.rename(failed_logs(home))
    if home.state.is_dir():
        for entry in home.state.iterdir():
            if entry.name.startswith(_UNFINISHED) and entry.is_file():
                entry.unlink(missing_ok=True)
        shutil.rmtree(home.restoring, ignore_errors=True)
    if os.path.lexists(home.run / NAMESPACE_FILES[1]):
        from meshray.runtime.rootless.namespace import remove_scratch

        remove_scratch(home)
    _remove_files(home, keep_keys=keep_keys)


def _remove_files(home: Home, *, keep_keys: bool) -> None:
    files = [
        *(() if keep_keys else (home.private_key, home.identity_key, home.identity)),
        home.pending_key,
        home.pins,
        home.enrolment,
        home.map_cache,
        home.offered_token,
        *(home.database.with_name(home.database.name + end) for end in ("", "-wal", "-shm", "-journal")),
        home.certificate,
        home.certificate_key,
        home.audit_log,
        home.older_audit_log,
        home.version_pointer,
        *home.wheels.glob("*"),
        *home.logs.glob("*.log*"),
        *home.run.glob("*.pid"),
        home.run / "agent.lock",
        home.control_socket,
        home.ray_token,
        home.ray_environment,
        *(home.run / name for name in NAMESPACE_FILES),
    ]
    for file in files:
        file.unlink(missing_ok=True)
    shutil.rmtree(home.versions, ignore_errors=True)
    for folder in (home.wheels, home.logs, home.run, home.state):
        with contextlib.suppress(OSError):
            folder.rmdir()
