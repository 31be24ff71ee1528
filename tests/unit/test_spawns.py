"""Every place at which meshray starts a program, and with which user's permissions.

A new one fails here until it is in the table: root starts only what root alone can change.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "meshray"

#: This interpreter itself, isolated: it ignores PYTHONPATH, the current folder and a user's packages.
OWN = "own"
#: A program of the system, found by `find_program`, which skips what users other than root can change.
SYSTEM = "system"
#: With the permissions of the user to whom the program belongs.
USER = "user"
#: Never by root: on a node without root, or in the user's own process.
UNPRIVILEGED = "unprivileged"
#: Found by `runtime.privileged.interpreter`, which examines everything that is loaded.
CHECKED = "checked"

SPAWNS: dict[tuple[str, str], str] = {
    ("agent/connection/coordinator_process.py", "_start"): OWN,
    ("agent/main.py", "_start_again"): OWN,
    ("agent/remote_orders.py", "create_bundle"): OWN,
    ("agent/upgrade.py", "_install"): OWN,
    ("cli/bundle.py", "_output"): SYSTEM,
    ("cli/commands/logs.py", "_follow"): SYSTEM,
    ("cli/commands/run.py", "run_command"): USER,
    ("cli/privileged.py", "run_from_copy"): CHECKED,
    ("cli/ray_program.py", "_run"): USER,
    ("doctor/job/probe.py", "_running"): USER,
    ("environment/builder.py", "_run"): USER,
    ("environment/freeze.py", "freeze"): USER,
    ("environment/matched.py", "_start"): OWN,
    ("firewall/host_programs.py", "run_program"): SYSTEM,
    ("raynode/supervisor.py", "_start"): USER,
    ("raynode/unregister.py", "_call"): USER,
    ("raynode/versions.py", "_run_probe"): USER,
    ("linux/as_user.py", "run_as_user"): USER,
    #: Its callers are in this table, too.
    ("linux/capture.py", "run_captured"): USER,
    ("runtime/docker/engine.py", "count_gpus"): SYSTEM,
    ("runtime/docker/node_container.py", "replace_process"): SYSTEM,
    ("runtime/container/first.py", "_spawn"): OWN,
    ("runtime/container/first.py", "_start_over_without"): OWN,
    ("linux/overlay_netns.py", "spawn"): SYSTEM,
    ("runtime/privileged/boundary.py", "untrusted_part"): OWN,
    ("runtime/privileged/install.py", "require_works"): CHECKED,
    ("runtime/privileged/install.py", "unpack_environment"): USER,
    ("runtime/privileged/interpreter.py", "_by_uv"): CHECKED,
    ("runtime/privileged/interpreter.py", "_copied"): USER,
    ("runtime/privileged/interpreter.py", "rejection_reason"): CHECKED,
    ("linux/process.py", "spawn"): CHECKED,
    ("runtime/rootless/enter.py", "execute"): UNPRIVILEGED,
    ("runtime/rootless/holder.py", "_help"): UNPRIVILEGED,
    ("runtime/rootless/namespace.py", "up"): UNPRIVILEGED,
    ("runtime/rootless/permission_probe.py", "find_missing"): UNPRIVILEGED,
    ("runtime/agent_service.py", "_systemctl"): SYSTEM,
    ("runtime/agent_service.py", "_spawn"): OWN,
    ("runtime/ssh.py", "_popen"): USER,
    #: A version that `runtime/upgrade/installer.py` created where only this user writes.
    ("runtime/upgrade/launch.py", "_replace_process"): OWN,
    ("runtime/upgrade/watchdog.py", "ensure"): OWN,
    ("wireguard/engines.py", "start"): SYSTEM,
    ("wireguard/unmanaged.py", "_reload"): SYSTEM,
}
_NAMES = {"Popen", "execv", "execve", "execvp", "execvpe", "posix_spawn", "posix_spawnp", "system", "popen"}


@cache
def spawns() -> tuple[tuple[str, str, ast.Call, str], ...]:
    """Return (file, function, call, the function's text) of each."""
    return tuple(_spawns())


def _spawns() -> Iterator[tuple[str, str, ast.Call, str]]:
    for file in sorted(PACKAGE.rglob("*.py")):
        source = file.read_text()
        tree = ast.parse(source)
        for function in ast.walk(tree):
            if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and _starts(call.func):
                    text = ast.get_source_segment(source, function) or ""
                    yield str(file.relative_to(PACKAGE)), function.name, call, text


def _starts(called: ast.expr) -> bool:
    if isinstance(called, ast.Name):
        return called.id == "run_captured"
    if not isinstance(called, ast.Attribute):
        return False
    owner = called.value.id if isinstance(called.value, ast.Name) else ""
    if owner == "subprocess":
        return called.attr in ("run", "Popen", "call", "check_call", "check_output")
    if owner == "os":
        return called.attr in _NAMES
    return called.attr in ("spawn", "create_subprocess_exec", "create_subprocess_shell")


def test_every_spawn_is_known() -> None:
    found = {(file, function) for file, function, _, _ in spawns()}
    assert found - set(SPAWNS) == set(), "say with whose rights it runs"
    assert set(SPAWNS) - found == set(), "gone: take it out of the table"


def test_own_processes_are_isolated() -> None:
    for file, function, _, text in spawns():
        if SPAWNS.get((file, function)) == OWN:
            assert '"-I"' in text or "_this_module()" in text, f"{file}: {function}"


def test_programs_of_the_system_are_found_where_only_root_writes() -> None:
    for file, function, _, _ in spawns():
        if SPAWNS.get((file, function)) == SYSTEM and file not in ("linux/overlay_netns.py",):
            assert "find_program" in (PACKAGE / file).read_text(), f"{file}: {function}"


def test_users_programs_run_as_users() -> None:
    for file, function, _, text in spawns():
        if SPAWNS.get((file, function)) == USER:
            assert any(word in text for word in ("identity", "user", "_become", "**who", "become")), (
                f"{file}: {function}"
            )


def test_no_shell_is_used() -> None:
    for file, function, call, _ in spawns():
        assert not any(keyword.arg == "shell" for keyword in call.keywords), f"{file}: {function}"
