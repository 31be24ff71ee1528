"""Before the program is loaded: Ctrl-C while Python imports it, and the work of a container's first process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

#: A slow import, which is interrupted in the middle.
INTERRUPTED = """
import builtins, os, signal
real = builtins.__import__
def slow(name, *rest, **more):
    if name == "meshray.cli.main":
        os.kill(os.getpid(), signal.SIGINT)
    return real(name, *rest, **more)
builtins.__import__ = slow
from meshray.cli.entry import main
raise SystemExit(main())
"""
#: Create an orphan that ends at once, and check whether it remains, as a zombie does.
ORPHAN = """
import os, sys, time
from meshray.runtime.pid1 import run_as_first
run_as_first()
middle = os.fork()
if middle == 0:
    if os.fork() == 0:
        os._exit(0)
    os._exit(0)
os.waitpid(middle, 0)
def others():
    return [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if pid not in (1, os.getpid())]
deadline = time.monotonic() + 10
while others() and time.monotonic() < deadline:
    time.sleep(0.01)
print(os.getpid() != 1, others(), flush=True)
if "wait" in sys.argv:
    time.sleep(60)
raise SystemExit(7)
"""
BOUND_S = 60


def test_ctrl_c_while_python_imports_is_one_line() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=BOUND_S, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "meshray: interrupted\n")


def in_pid_namespace(*arguments: str) -> list[str]:
    return ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", ORPHAN, *arguments]


needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run(["unshare", "--pid", "--fork", "true"], check=False).returncode != 0,
    reason="a pid namespace needs root",
)


@needs_namespaces
def test_the_first_process_reaps_orphans_and_ends_as_the_program_does() -> None:
    ended = subprocess.run(in_pid_namespace(), capture_output=True, text=True, timeout=BOUND_S, check=False)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("True []\n", "", 7)


@needs_namespaces
def test_the_first_process_passes_signals_on() -> None:
    with subprocess.Popen(in_pid_namespace("wait"), stdout=subprocess.PIPE, text=True) as outside:
        assert outside.stdout is not None and outside.stdout.readline() == "True []\n"
        first = int(Path(f"/proc/{outside.pid}/task/{outside.pid}/children").read_text().split()[0])
        os.kill(first, signal.SIGTERM)
        assert outside.wait(BOUND_S) == 128 + signal.SIGTERM
