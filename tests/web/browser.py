"""A headless Chromium in the network of a host of the lab, driven from the test.

with chromium(laptop) as browser:
    page = browser.new_page(ignore_https_errors=True)
    page.goto("https://203.0.113.10:51888/")
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from tests.lab.host import Host

#: It runs as root in the lab, and must not look for anything outside.
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
#: Two slow cores may run three Rays beside it, milliseconds.
LAUNCH_MS = 60_000


@contextmanager
def chromium(host: Host | None = None) -> Iterator[Browser]:
    """Yield a browser in the network of this host; None: in the machine's own. It ends with the block."""
    program = shutil.which("chromium")
    assert program, "no chromium"
    with tempfile.TemporaryDirectory(prefix="meshray-browser-") as folder, sync_playwright() as playwright:
        if host is not None:
            inside = Path(folder) / "chromium"
            inside.write_text(f'#!/bin/sh\nexec nsenter --target={host.pid} --net -- {program} "$@"\n')
            inside.chmod(0o755)
            program = str(inside)
        browser = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS), timeout=LAUNCH_MS)
        try:
            yield browser
        finally:
            browser.close()


def accessibility_faults(page: Page) -> list[str]:
    """Return what axe-core calls a serious or critical fault of the page, with the elements concerned."""
    found = Axe().run(page).response["violations"]
    return [
        f"{fault['id']}: {fault['help']}: {[node['target'] for node in fault['nodes']]}"
        for fault in found
        if fault["impact"] in {"serious", "critical"}
    ]
