"""The folders of a node's state as a whole: claimed by one command at a time, and removed again.

with claimed(home) as release:
    require_clean(home)                 # nothing of another program in it
    ...
    forget(home, keep_logs=True)        # this machine is a stranger again; `meshray logs` still tells why
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

#: What may lie in the folder of a machine that is in no mesh: the keys of a join that was killed (with the same keys
#: it gets the same node again), the runtime folder of a user without root, and logs.
_HARMLESS = {"log", "log.failed", "run", "private.key", "identity.key", "identity.json"}
#: What only an enrolled node has.
_OURS = {"node.json", "map.json", "coordinator.db", "coordinator.crt", "coordinator.key", "pins.json", "offered_token"}
#: What a node without root has there beside its sockets; see `meshray.runtime.rootless.holder`.
NAMESPACE_FILES = ("namespace.json", "hosts", "resolv.conf", "meshray0.sock")
#: Begins the names of files that were not finished.
_UNFINISHED = (".", "coordinator.db.new", "coordinator.db-")


def failed_logs(home: Home) -> Path:
    """Where the logs of an init or join lie that was rolled back."""
    return home.state / "log.failed"


@contextlib.contextmanager
def claimed(home: Home) -> Iterator[Callable[[], None]]:
    """Makes the folder and keeps other commands that change it out, until the block ends or ``release`` is called.

    Raises:
        MeshrayError: ``busy``, another one is at work.
    """
    # One that is there already keeps its mode until it is known to be ours: it could be /etc.
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
        with contextlib.suppress(OSError):  # nothing was put into it: leave no trace
            home.state.rmdir()
        os.close(handle)


def is_claimed(home: Home) -> bool:
    """Whether a command is at work that changes this node."""
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
    """Raises MeshrayError where the state folder holds something of another program, or half of a node."""
    found = {entry.name for entry in home.state.iterdir() if not entry.name.startswith(_UNFINISHED)} - _HARMLESS
    if found & _OURS:
        raise MeshrayError(
            "state_damaged",
            f"{home.state} holds {', '.join(sorted(found & _OURS))}, but not who this node is (node.json)",
            hint="restore node.json from a backup, or: meshray leave --yes",
        )
    if found:
        raise MeshrayError(
            "state_foreign",
            f"{home.state} is not empty ({', '.join(sorted(found)[:3])}): meshray needs a folder of its own",
            hint=f"MESHRAY_HOME={free_folder(home)}",
        )


def free_folder(home: Home, default: Path | None = None) -> Path:
    """Return a folder that this node's state could have instead of one that holds files of another program.

    Args:
        default: where state is without MESHRAY_HOME; taken where it is another folder, and free.
    """
    if default is not None and default != home.state and _is_free(default):
        return default
    # Below a folder that somebody chose; beside the customary one, which belongs to meshray alone.
    first = home.state.with_name(f"{home.state.name}-2") if default == home.state else home.state / "meshray"
    others = (home.state.with_name(f"{home.state.name}-{number}") for number in itertools.count(2))
    return next(folder for folder in (first, *itertools.islice(others, 100)) if _is_free(folder))


def _is_free(folder: Path) -> bool:
    try:
        return not os.path.lexists(folder) or not any(folder.iterdir())
    except OSError:
        return False


def is_harmless(home: Home) -> bool:
    """Whether the folder holds nothing but what a join that failed or was killed left."""
    return all(entry.name in _HARMLESS or entry.name.startswith(_UNFINISHED) for entry in home.state.iterdir())


def forget(home: Home, *, keep_logs: bool = False, keep_keys: bool = False) -> None:
    """Removes what meshray wrote; files of others stay, and so does a folder that still holds some.

    Args:
        keep_logs: as `failed_logs`, in place of those of an earlier try.
        keep_keys: key and identity stay, with which the coordinator gives the same node again.
    """
    if home.logs.is_dir() or not keep_logs:
        shutil.rmtree(failed_logs(home), ignore_errors=True)
    if home.logs.is_dir() and keep_logs:
        home.logs.rename(failed_logs(home))
    if home.state.is_dir():
        for entry in home.state.iterdir():
            if entry.name.startswith(_UNFINISHED) and entry.is_file():
                entry.unlink(missing_ok=True)
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
        *home.logs.glob("*.log*"),
        *home.run.glob("*.pid"),
        home.run / "agent.lock",
        home.control_socket,
        home.ray_token,
        *(home.run / name for name in NAMESPACE_FILES),
    ]
    for file in files:
        file.unlink(missing_ok=True)
    for folder in (home.logs, home.run, home.state):
        with contextlib.suppress(OSError):
            folder.rmdir()
