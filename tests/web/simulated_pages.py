"""The pages of a simulated mesh in a real browser, without a network of its own.

A real coordinator on loopback has simulated agents on real WebSockets (`tests.web.simulated`). It runs in a process,
because playwright's own event loop runs in this one.

    with simulated_mesh(folder) as mesh, chromium() as browser:
        page = open_page(browser, mesh, "phone")
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, Page

from tests.lab.host import REPOSITORY

#: The sizes of the window in which the pages are tried.
SIZES = {"wide": {"width": 1440, "height": 900}, "phone": {"width": 390, "height": 844}}


@dataclass
class SimulatedMesh:
    """The process, and the address of its page."""

    process: subprocess.Popen[str]
    url: str

    def passes(self) -> str:
        """Return the address that opens the page with a new pass."""
        return self.ask("pass")

    def ask(self, line: str) -> str:
        """Return the answer to a line of the process' input; see `tests.web.simulated`."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@contextmanager
def simulated_mesh(folder: Path) -> Iterator[SimulatedMesh]:
    """Run the mesh with its state in this folder until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.web.simulated", str(folder)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:  # It also closes both pipes.
        try:
            assert process.stdout is not None
            yield SimulatedMesh(process, process.stdout.readline().strip())
        finally:
            process.terminate()


def open_page(browser: Browser, mesh: SimulatedMesh, size: str = "wide", scheme: str = "light") -> Page:
    """Return a page in a new profile that has entered a pass."""
    context = browser.new_context(
        ignore_https_errors=True,
        bypass_csp=True,  # The page's policy forbids axe-core.
        viewport=SIZES[size],  # type: ignore[arg-type]
        color_scheme=scheme,  # type: ignore[arg-type]
    )
    page = context.new_page()
    page.goto(mesh.passes())
    page.wait_for_selector("#rows tr")
    return page
